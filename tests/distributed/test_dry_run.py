"""A dry run says what the run itself then does: bytes sent, state kept, checkpoint written, steps taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.collectives import count_bytes
from pipeline.config.loader import load_recipe
from pipeline.distributed import rank
from pipeline.engine import cost
from pipeline.objectives import REGISTRY, Features, build_objective
from tests.distributed.launch import run_ranks

TOWERS = "model.config={embed_dim: 24, vision_cfg: {}, text_cfg: {}}"


def sent_by_real_ranks(options: dict[str, dict[str, object]], batch_size: int, dim: int) -> dict[str, int]:
    found = {}
    for name in REGISTRY:
        objective = build_objective(name, options.get(name, {}))
        objective.prepare(torch.device("cpu"), dim, 1000, seed=0)
        generator = torch.Generator().manual_seed(rank())
        features = Features(*(F.normalize(torch.randn(batch_size, dim, generator=generator), dim=-1) for _ in "it"))
        bias = None if objective.default_logit_bias is None else torch.tensor([objective.default_logit_bias])
        with count_bytes() as sent:
            objective(features, torch.arange(batch_size), torch.tensor([objective.default_tau]), bias)
        found[name] = sum(sent.values())
    return found


def test_bytes_are_those_of_real_ranks() -> None:
    """amorlip may stop its inner steps early, which depends on the features: one inner step here."""
    options = {"neuclip": {"npn": {"prototypes": 12}}, "amorlip": {"network": {"inner_steps": 1}}}
    (real, *_) = run_ranks(2, sent_by_real_ranks, options, 8, 24)
    config = load_recipe("demo", [TOWERS, "train.global_batch_size=16", f"objectives={options}"])
    assert real == {name: cost.objective_sent_bytes(name, config, 2) for name in REGISTRY}
    assert real["neuclip"] > real["openclip"] > 0


def test_state_shrinks_with_the_ranks_where_it_is_sharded() -> None:
    config = load_recipe("demo", [TOWERS, "objectives={neuclip: {npn: {prototypes: 64}}}"])
    kept = {
        (name, ranks): cost.objective_state_bytes(name, config, ranks, 8000) for name in REGISTRY for ranks in (1, 4)
    }
    assert [kept["fastclip", ranks] for ranks in (1, 4)] == [8 * 8000, 8 * 2000]
    ring, prototypes, log_mass = 2 * 64 * 24 * 4, 2 * 64 * 24 * 4 * 2, 4
    assert kept["neuclip", 4] == ring + prototypes / 4 + log_mass
    assert kept["amorlip", 1] == kept["amorlip", 4] > 0
    assert kept["openclip", 1] == kept["siglip", 1] == 0


@pytest.mark.parametrize(
    ("stage", "floats_per_parameter"),
    [(0, 1 + 1 + 2), (1, 1 + 1 + 3 / 8), (2, 1 + 1 / 8 + 3 / 8), (3, 5 / 8)],
)
def test_model_state_of_eight_ranks(stage: int, floats_per_parameter: float) -> None:
    assert cost.model_state_bytes(8000, stage, ranks=8) == 4 * 8000 * floats_per_parameter


@pytest.mark.parametrize("recipe", ["cc3m", "cc12m", "dfn14m", "dfn192m", "dfn1b", "demo"])
def test_shipped_recipes(recipe: str) -> None:
    shown = CliRunner().invoke(main, ["train", recipe, "--dry-run", "--ranks", "16"])
    assert shown.exit_code == 0, shown.output
    for expected in ("M parameters", "samples per epoch", "> neuclip", "checkpoint", "ranks        16"):
        assert expected in shown.output


def test_a_corpus_of_unknown_size_is_asked_for() -> None:
    shown = CliRunner().invoke(main, ["train", "emoji", "--dry-run"])
    assert shown.exit_code == 2
    assert "corpus.expected_samples=NUMBER" in shown.output


def test_without_a_dry_run_there_must_be_a_run_directory() -> None:
    shown = CliRunner().invoke(main, ["train", "demo"])
    assert shown.exit_code == 2
    assert "--run-dir is missing" in shown.output


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.weights=/nowhere"], "'/nowhere' is neither a folder"),
        (["model.name=RN50", "train.micro_batch_size_per_gpu=64"], "is a batch normalisation"),
    ],
)
def test_what_the_run_would_refuse(overrides: list[str], said: str) -> None:
    shown = CliRunner().invoke(main, ["train", "cc3m", "--dry-run", "--ranks", "4", *overrides])
    assert shown.exit_code == 2
    assert said in shown.output


def test_the_number_of_ranks_is_the_launchers_to_say() -> None:
    shown = CliRunner().invoke(main, ["train", "demo", "--ranks", "4", "--run-dir", "somewhere"])
    assert shown.exit_code == 2
    assert "--ranks 4 is for --dry-run" in shown.output
