"""Nothing of ours loads a pickle that could run code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAFE = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
UNSAFE = ("pickle.load", "pickle.loads", "joblib.load", "dill.load", "marshal.loads", "eval", "exec")


def unsafe_calls(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            arguments = {f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords}
            if called in UNSAFE or (called in SAFE and SAFE[called] not in arguments):
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("package", ["pipeline", "data_prep"])
def test_loads_are_safe(package: str) -> None:
    files = list(ROOT.glob(f"{package}/**/*.py"))
    assert len(files) > 20
    for path in files:
        assert not list(unsafe_calls(path.read_text())), path


def test_the_search_finds_what_it_looks_for() -> None:
    unsafe = ["torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p)", "pickle.load(f)"]
    assert len(list(unsafe_calls("\n".join([*unsafe, "torch.load(p, weights_only=True)"])))) == len(unsafe)
