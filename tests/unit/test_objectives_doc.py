"""docs/objectives.md is true: its objective, its recipe and its test run, and it keeps the contract on ranks."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import pipeline.config.objectives
import pipeline.objectives
from pipeline.errors import UserError
from pipeline.objectives import Features, Objective, ObjectiveOutput, build_objective
from tests.distributed import test_objective_contract as contract
from tests.distributed.launch import run_ranks

TEXT = (Path(__file__).parents[2] / "docs/objectives.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
CONFIG, OBJECTIVE, OPTIONS_LINE, REGISTRY_LINE, TEST = PYTHON
NAME = "decoupled"


def execute(code: str, module_name: str) -> ModuleType:
    """The module that a file with this code would be."""
    module = ModuleType(module_name)
    sys.modules[module_name] = module  # pydantic looks annotations up there
    exec(compile(code, f"docs/objectives.md:{module_name}", "exec"), module.__dict__)
    return module


def register(patch: pytest.MonkeyPatch) -> None:
    """Add the document's classes and lines to the modules that it names."""
    patch.setattr(pipeline.config.objectives, "DecoupledConfig", None, raising=False)
    options = pipeline.config.objectives.__dict__
    exec(compile(CONFIG, "docs/objectives.md:options", "exec"), options)
    patch.setitem(options, "OPTIONS", {**options["OPTIONS"], **eval("{" + OPTIONS_LINE + "}", options)})
    module = execute(OBJECTIVE, "objective_of_the_document")
    added = eval("{" + REGISTRY_LINE + "}", module.__dict__)
    patch.setattr(pipeline.objectives, "REGISTRY", {**pipeline.objectives.REGISTRY, **added})


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def test_the_recipe_reaches_the_objective() -> None:
    recipe = yaml.safe_load(RECIPE)
    objective = build_objective(recipe["objective"], recipe["objectives"][NAME])
    assert objective.config.eps == 1e-10
    with pytest.raises(UserError, match=r"objectives.decoupled: unknown key 'epz': did you mean 'eps'"):
        build_objective(NAME, {"epz": 1})


def test_the_test_of_the_document_passes_and_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    module = execute(TEST, "test_of_the_document")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test(0.05)
    broken = OBJECTIVE.replace("- math.log(2 * batch.size)", "- math.log(batch.size)")
    assert broken != OBJECTIVE
    cls = execute(broken, "broken_objective").Decoupled
    monkeypatch.setattr(pipeline.objectives, "REGISTRY", {NAME: cls})
    with pytest.raises(AssertionError):
        tests[0](0.05)


def test_one_sample_has_no_negatives() -> None:
    features = Features(torch.ones(1, 4) / 2, torch.ones(1, 4) / 2)
    with pytest.raises(UserError, match="at least 2 samples"):
        build_objective(NAME, {})(features, torch.arange(1), torch.tensor([0.07]))


def train_on_a_rank() -> dict[str, Any]:
    """The contract suite's own run, in a process of its own."""
    register(pytest.MonkeyPatch())
    contract.CASES[NAME] = (NAME, {})
    return contract.train(NAME, 0, contract.STEPS, None)


def test_it_keeps_the_contract() -> None:
    (alone,) = run_ranks(1, train_on_a_rank)
    first, second = run_ranks(2, train_on_a_rank)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for step in range(contract.STEPS):
        contract.assert_same(first["steps"][step], alone["steps"][step])
        assert all(gradient.abs().max() > 1e-4 for gradient in alone["steps"][step]["gradients"])
    contract.assert_same(first["final"], alone["final"])


CONTRACT = [
    *(f"ObjectiveOutput.{name}" for name in ObjectiveOutput.__dataclass_fields__ if name != "loss"),
    *(name for name in vars(Objective) if not name.startswith("_")),
    *("config", "state_dict", "load_state_dict"),
]


@pytest.mark.parametrize("part", CONTRACT)
def test_every_part_of_the_contract_is_explained(part: str) -> None:
    assert f"`{part}`" in TEXT
