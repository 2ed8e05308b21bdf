"""pyproject.toml declares what is imported, and nothing else."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OTHERWISE = {  # used, but not by an import
    "s3fs",  # fsspec finds it
    "psycopg2-binary",  # SQLAlchemy finds it
    "moto",  # a server that the tests start
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "mypy",
    "types-pyyaml",
    "uv",
    "selenium",  # only where there is a browser
}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: Iterable[str]) -> set[str]:
    return {canonical(re.split(r"[\[<>=~! ]", requirement)[0]) for requirement in requirements}


def imported(*folders: str) -> dict[str, Path]:
    """The packages of other people that these folders import, and where."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    helpers = {path.stem for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
    own = {"pipeline", "data_prep", "tests", "lab"} | helpers
    found: dict[str, Path] = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.split(".")[0] for name in names} - own - sys.stdlib_module_names
            found |= dict.fromkeys(tops, path)
    return found


def distributions(packages: Iterable[str]) -> dict[str, set[str]]:
    """By package, who may have brought it."""
    known = packages_distributions()
    return {package: {canonical(name) for name in known.get(package, [])} for package in packages}


def test_what_is_imported_is_declared() -> None:
    runtime = declared(PROJECT["dependencies"])
    for folders, allowed in {
        ("pipeline", "data_prep"): runtime,
        ("tests",): runtime | declared(PROJECT["optional-dependencies"]["dev"]),
    }.items():
        found = imported(*folders)
        undeclared = {name: found[name] for name, brought in distributions(found).items() if not brought & allowed}
        assert not undeclared


def test_what_is_declared_is_used() -> None:
    brought = set().union(*distributions(imported("pipeline", "data_prep", "tests")).values())
    unused = declared([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]) - brought - OTHERWISE
    assert not unused
