"""Objectives are found by name, their options are checked, mistakes are answered with the nearest name."""

from typing import get_type_hints

import pytest
import torch

from pipeline.config.objectives import OPTIONS
from pipeline.errors import UserError
from pipeline.objectives import REGISTRY, Features, build_objective


def test_options_reach_the_objective():
    objective = build_objective("neuclip", {"rho": 8.5, "npn": {"prototypes": 128}})
    assert isinstance(objective, REGISTRY["neuclip"])
    assert (objective.config.rho, objective.config.npn.prototypes) == (8.5, 128)
    published = build_objective("neuclip", {}).config.npn
    assert (published.prototypes, published.restart_every, published.inner_steps) == (4096, 500, 10)


def test_every_objective_has_its_options():
    assert {name: get_type_hints(cls)["config"] for name, cls in REGISTRY.items()} == OPTIONS


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("neuclp", {}, r"unknown objective 'neuclp': did you mean 'neuclip'\?"),
        ("zzz", {}, r"unknown objective 'zzz': Known are neuclip, openclip"),
        ("neuclip", {"rhoo": 1}, r"objectives.neuclip: unknown key 'rhoo': did you mean 'rho'"),
        ("neuclip", {"npn": {"prototype": 1}}, r"unknown key 'npn.prototype': did you mean 'npn.prototypes'"),
        (
            "neuclip",
            {"npn": {"inner_steps": -1}},
            r"objectives.neuclip: npn.inner_steps: .*greater than or equal",
        ),
        ("neuclip", {"eps": 0}, r"objectives.neuclip: eps: .*greater than 0"),
        ("openclip", {"npn": {}}, r"objectives.openclip: unknown key 'npn'"),
    ],
)
def test_mistakes_are_explained(name, options, message):
    with pytest.raises(UserError, match=message):
        build_objective(name, options)


@pytest.mark.parametrize("name", REGISTRY)
def test_one_sample_has_no_negatives(name):
    objective = build_objective(name, {})
    objective.prepare(torch.device("cpu"), 4, 1, seed=0)
    features = Features(torch.ones(1, 4) / 2, torch.ones(1, 4) / 2)
    with pytest.raises(UserError, match="at least 2 samples"):
        objective(features, torch.arange(1), torch.tensor([0.07]), torch.tensor([-10.0]))
