"""On two ranks and under every ZeRO stage: a resumed optimizer is the saved one, or the run is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import collectives
from pipeline.config.schema import RunConfig
from pipeline.engine import elastic
from pipeline.engine.engine import TrainEngine
from pipeline.engine.resume_evidence import refuse_changed, refuse_non_finite, updates_made
from pipeline.engine.tags import complete_tags
from pipeline.engine.train_module import build_train_module
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.tracking.base import NullTracker
from pipeline.trainer import Trainer
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import config_of, here, stage_file

STAGES = (0, 1, 2, 3)
STEPS = 3


def states(engine: TrainEngine) -> list[dict[str, torch.Tensor]]:
    return list(getattr(engine.optimizer, "optimizer", engine.optimizer).state.values())


def forget_moments(engine: TrainEngine) -> None:
    for state in states(engine):
        state["exp_avg"].zero_()


def forget_steps(engine: TrainEngine) -> None:
    for state in states(engine):
        state["step"] = torch.zeros_like(torch.as_tensor(state["step"]))


def forget_second_moments_of_one_rank(engine: TrainEngine) -> None:
    if engine.world.rank == 1:
        for state in states(engine):
            state["exp_avg_sq"].zero_()


def forget_nothing(engine: TrainEngine) -> None:
    pass


LAPSES = (forget_nothing, forget_moments, forget_steps, forget_second_moments_of_one_rank)


def resume(config: RunConfig, folder: Path, lapse: Callable[[TrainEngine], None]) -> str:
    """What was said when DeepSpeed's loading is followed by a lapse."""
    usual = TrainEngine.load

    def load(engine: TrainEngine, *args: Any) -> None:
        usual(engine, *args)
        lapse(engine)

    TrainEngine.load = load  # type: ignore[method-assign]
    try:
        Trainer(config, folder, here())
    except UserError as error:
        return str(error)
    finally:
        TrainEngine.load = usual  # type: ignore[method-assign]
    return ""


def resume_without_moments_elsewhere(config: RunConfig, folder: Path) -> str:
    usual = elastic.set_moment
    elastic.set_moment = lambda *args: None
    try:
        Trainer(config, folder, here())
    except UserError as error:
        return str(error)
    finally:
        elastic.set_moment = usual
    return ""


def plain_norm(engine: TrainEngine, moment: str) -> float:
    """Of all groups together. Under stage 0 each rank has everything; else parts, and the padding is 0."""
    square = sum(float(state[moment].double().square().sum()) for state in states(engine))
    if engine.zero_stage:
        square = float(collectives.all_reduce(torch.tensor([square], dtype=torch.float64), "sum"))
    return square**0.5


def lives(configs: dict[int, RunConfig], folder: Path) -> dict[str, Any]:
    norms, said, counts = {}, {}, set()
    for stage, config in configs.items():
        trainer = Trainer(config, folder / str(stage), here())
        trainer.fit(NullTracker())
        norms[stage] = plain_norm(trainer.engine, "exp_avg")
        counts.add(trainer.engine.parameter_count)
        said[stage] = {lapse.__name__: resume(config, folder / str(stage), lapse) for lapse in LAPSES}
    elsewhere = resume_without_moments_elsewhere(configs[1], folder / "2")
    return {"norms": norms, "said": said, "counts": counts, "elsewhere": elsewhere}


@pytest.fixture(scope="module")
def outcome(noise_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("evidence")
    configs = {
        stage: config_of(noise_corpus, f"train.deepspeed={stage_file(folder, stage)}", f"train.steps={STEPS}")
        for stage in STAGES
    }
    results = run_ranks(2, lives, configs, folder)
    assert results[0] == results[1]
    saved = {}
    for stage in STAGES:
        tag = complete_tags(folder / str(stage) / "checkpoints")[-1]
        saved[stage] = read_json(folder / str(stage) / "checkpoints" / tag / "trainer.json")["evidence"]
    return {**results[0], "saved": saved}


def test_what_is_saved_is_the_same_for_every_stage_and_true(outcome: dict[str, Any]) -> None:
    for stage, saved in outcome["saved"].items():
        assert saved == pytest.approx(outcome["saved"][0], rel=1e-4), stage
        assert all(saved[f"AdamW's step count of {group}"] == STEPS for group in ("decay", "no_decay", "temperature"))
        total = sum(value**2 for name, value in saved.items() if name.startswith("norm of exp_avg of")) ** 0.5
        assert total == pytest.approx(outcome["norms"][stage], rel=1e-9)
        assert total > 0


def test_parameters_are_counted_as_a_whole_under_every_stage(noise_corpus: Path, outcome: dict[str, Any]) -> None:
    module = build_train_module(config_of(noise_corpus))
    assert outcome["counts"] == {sum(parameter.numel() for parameter in module.parameters())}


@pytest.mark.parametrize("stage", STAGES)
def test_an_optimizer_that_is_not_the_saved_one_is_refused(outcome: dict[str, Any], stage: int) -> None:
    said = outcome["said"][stage]
    assert said["forget_nothing"] == ""
    for lapse, differs in (
        ("forget_moments", "norm of exp_avg of decay: "),
        ("forget_steps", f"AdamW's step count of decay: {STEPS:.1f} saved, 0.0 resumed"),
        ("forget_second_moments_of_one_rank", "norm of exp_avg_sq of decay: "),
    ):
        assert differs in said[lapse]
        assert "at step 3 was loaded, but training would not go on" in said[lapse]
        assert "norm of the weights" not in said[lapse]


def test_a_conversion_that_loses_the_moments_is_refused(outcome: dict[str, Any]) -> None:
    assert "norm of exp_avg of decay: " in outcome["elsewhere"]
    assert "saved, 0.0 resumed" in outcome["elsewhere"]


def test_what_differs_by_rounding_is_the_same_and_what_is_missing_is_not() -> None:
    refuse_changed({"tau": 0.05}, {"tau": 0.05 * (1 + 1e-8)}, "there")
    for resumed in ({"tau": 0.05 * (1 + 1e-5)}, {}, {"tau": float("nan")}):
        with pytest.raises(UserError, match=r"there was loaded.*\n  tau: 0\.05 saved"):
            refuse_changed({"tau": 0.05}, resumed, "there")


def test_what_is_not_finite_is_not_saved() -> None:
    refuse_non_finite({"tau": 1.0}, 7)
    with pytest.raises(UserError, match="step 7: the norm of the weights of decay is nan"):
        refuse_non_finite({"tau": 1.0, "norm of the weights of decay": float("nan")}, 7)


def test_updates_are_those_that_adamw_counted() -> None:
    """Under fp16 some steps are skipped; checkpoints of before have no evidence and no fp16."""
    assert updates_made({"step": 300, "evidence": {"tau": 0.1, "AdamW's step count of decay": 297.0}}) == 297
    assert updates_made({"step": 300}) == 300
