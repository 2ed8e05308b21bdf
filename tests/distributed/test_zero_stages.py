"""Ten steps under every DeepSpeed config on two ranks are ten of torch's AdamW on one process, for all objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.schema import RunConfig
from pipeline.engine.deepspeed_config import FOLDER
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import OBJECTIVES, config_of, plain_states, train

STEPS = 10
STAGES = [
    pytest.param(path.stem, marks=pytest.mark.long) if "offload" in path.stem else path.stem
    for path in sorted(FOLDER.glob("*.json"))
]


def settings_of(corpus: Path, objective: str, stage: str = "zero0") -> RunConfig:
    return config_of(
        corpus,
        f"objective={objective}",
        f"objectives={{{objective}: {OBJECTIVES[objective]}}}",
        f"temperature={{init: {0.1 if objective == 'siglip' else 0.07}, lr: 0.01}}",
        f"train={{steps: {STEPS}, epochs: null, global_batch_size: 24, deepspeed: {stage}}}",
    )


def all_objectives(corpus: Path, stage: str) -> dict[str, dict[str, Any]]:
    return {name: train(settings_of(corpus, name, stage)) for name in OBJECTIVES}


@pytest.fixture(scope="module")
def plain(noise_corpus: Path) -> dict[str, dict[str, Any]]:
    return {name: plain_states(settings_of(noise_corpus, name), STEPS) for name in OBJECTIVES}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_equals_a_plain_loop(noise_corpus: Path, stage: str, plain: dict[str, dict[str, Any]]) -> None:
    got = run_ranks(2, all_objectives, noise_corpus, stage)[0]
    for objective, expected in plain.items():
        tau = expected["weights"]["towers.logit_scale"].item()
        assert abs(tau + torch.tensor(0.07).log().item()) > 0.01  # it has moved
        metrics = got[objective]["metrics"]
        assert [step["train/grad_norm"] for step in metrics] == pytest.approx(expected["norms"], rel=1e-2)
        assert got[objective]["metrics_read_later"] == metrics, "the log reads them later: no step may write to them"
        assert len(expected["objective"]) >= 3 or objective not in ("neuclip", "amorlip")
        for kind in ("weights", "objective"):
            for name, tensor in expected[kind].items():
                where = f"{objective} {kind} {name}"
                torch.testing.assert_close(
                    got[objective][kind][name], tensor, rtol=2e-3, atol=2e-4, msg=lambda m, w=where: f"{w}: {m}"
                )
