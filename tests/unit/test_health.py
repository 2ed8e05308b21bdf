"""Every warning has a run that deserves it and one that does not; each is said once per episode, in one line."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.config.loader import load_recipe
from pipeline.config.schema import HealthConfig, TemperatureConfig
from pipeline.data.loader import Batch
from pipeline.engine.engine import StepOutput
from pipeline.errors import UserError
from pipeline.health import DecodeFailures, Health
from pipeline.health.checks import FrozenGroup, NormalizerErrorGrows
from pipeline.objectives import Features, ObjectiveOutput
from pipeline.tracking.jsonl import JsonlTracker
from pipeline.tracking.metrics import MetricBuffer

WELL = {
    "train/loss": 1.0,
    "train/grad_norm": 1.0,
    "train/tau": 0.05,
    "train/tau_grad": 3.0,
    "train/skipped_steps": 0.0,
    "train/lr": 1e-3,
    "train/lr_temperature": 1e-4,
}
GROUPS, WARMUP_STEPS = ["decay", "no_decay", "temperature"], 2
BATCH = Batch(torch.empty(0), torch.empty(0), torch.arange(4), Counter())
EMPTY = Features(torch.empty(0), torch.empty(0))


class FakeRun:
    """A Health callback under a trainer without a model."""

    def __init__(self, *overrides: str, rho: float | None = 5.0, rank: int = 0) -> None:
        config = load_recipe("demo", ["train.log_every_steps=1", *overrides])
        self.health = Health(config, GROUPS, WARMUP_STEPS, rho, hosts=["n1", "n2", "n3"])
        self.trainer: Any = SimpleNamespace(
            progress=SimpleNamespace(step=0), metrics=MetricBuffer(), world=SimpleNamespace(rank=rank), total_steps=100
        )

    def step(self, **metrics: float) -> None:
        """One step, well but for `metrics`; names with `__` for `/`."""
        changed = {name.replace("__", "/"): value for name, value in metrics.items()}
        self.trainer.progress.step += 1
        output = StepOutput(EMPTY, torch.tensor([0.05]), ObjectiveOutput(torch.tensor(1.0)), {**WELL, **changed})
        self.health.before_step(self.trainer)
        self.health.after_step(self.trainer, BATCH, output)

    def warnings(self) -> float:
        return self.trainer.metrics.flush()["health/warnings"]


def times(slowest: int, own: float, share: float = 0.5) -> dict[str, float]:
    return {
        "ranks__slowest": float(slowest),
        "ranks__own_seconds_slowest": own,
        "ranks__own_seconds_median": 1.0,
        "ranks__waiting_share": share,
    }


# symptom: (overrides, steps without it, steps of which the last one complains, what the line says)
ILLNESSES: dict[str, tuple[list[str], list[dict[str, float]], list[dict[str, float]], list[str]]] = {
    "tau_at_bound": (
        ["health.tau_at_bound_steps=3", "temperature.minimum=0.02"],
        [{"train__tau": 0.02}, {"train__tau": 0.02}, {"train__tau": 0.03}, {"train__tau": 0.02}, {"train__tau": 0.02}],
        [{"train__tau": 0.02 * (1 + 1e-7)}],
        ["temperature.minimum=0.02", "tau_at_bound_steps=3", "objectives.neuclip.rho=5 is too large", "lower it"],
    ),
    "skipped_steps": (
        ["health.skipped_steps=3", "train.precision=fp16"],
        [{"train__skipped_steps": 1.0, "train__grad_norm": math.inf}] * 2 + [{}],
        [{"train__skipped_steps": 1.0, "train__grad_norm": math.inf}] * 3,
        ["3 updates in a row", "health.skipped_steps=3", "train.precision=bf16"],
    ),
    "frozen_group": (
        [],
        [{"train__parameter_norm_no_decay": 2.0}, {}, {"train__parameter_norm_no_decay": 2.0 + 1e-12}],
        [{}, {"train__parameter_norm_no_decay": 2.0 + 1e-12}],
        ["'no_decay' is frozen", "learning rate of 0.001", "detach"],
    ),
    "normalizer_error": (
        ["health.normalizer_error_factor=5", "health.normalizer_error_floor=2"],
        # 1.9 is 19 times the lowest and below the floor; a single outlier is not the median
        [{"npn__log_normalizer_mse": value} for value in (9.0, 0.1, 0.1, 1.9, 1.9, 50.0, 1.9)],
        [{"npn__log_normalizer_mse": 3.0}],
        ["npn/log_normalizer_mse 3 ", "normalizer_error_factor=5", "lowest so far, 0.1", "inner steps"],
    ),
    "feature_collapse": (
        ["health.uniformity_maximum=-0.01"],
        [
            {"train__uniformity_image": 0.0, "train__uniformity_text": 0.0},  # fresh towers, in the warm-up
            {"train__uniformity_image": 0.0, "train__uniformity_text": -0.02},
            {"train__uniformity_image": -0.02, "train__uniformity_text": -2.0},
        ],
        [{"train__uniformity_image": -2.0, "train__uniformity_text": -0.001}],
        ["train/uniformity_text -0.001", "uniformity_maximum=-0.01", "collapsed"],
    ),
    "prototype_collapse": (
        ["health.spread_ratio_minimum=0.2"],
        [{"npn__spread_ratio": 0.2}, {}],
        [{"npn__spread_ratio": 0.1}],
        ["npn/spread_ratio 0.1", "spread_ratio_minimum=0.2", "restart_every"],
    ),
    "loss_flat": (
        ["health.loss_flat_steps=8"],
        [{"train__loss": 1.0}] * 9,
        [{"train__loss": 1.0}],
        ["train/loss 1 has changed by 0 in 8 steps", "health.loss_flat_noise", "captions", "optimizer.lr"],
    ),
    "straggler": (
        ["health.straggler_windows=2", "health.straggler_factor=2", "health.loss_flat_steps=1000"],
        # another rank, not twice as slow, too little of a step
        [times(1, 2.1), times(2, 2.1), times(2, 1.9), times(2, 2.1, share=0.01), times(2, 2.1)],
        [times(2, 2.1)],
        ["rank 2 (host n3) takes 2.1 s", "median rank 1 s", "straggler_factor=2", "2 times in a row", "50% of each"],
    ),
}


@pytest.mark.parametrize("symptom", ILLNESSES)
def test_a_symptom_is_warned_of_once_per_episode(symptom: str, caplog: pytest.LogCaptureFixture) -> None:
    overrides, well, ill, parts = ILLNESSES[symptom]
    run = FakeRun(*overrides, "health.stop_on=[]")
    with caplog.at_level(logging.WARNING, logger="pipeline.health"):
        for metrics in [*well, *ill[:-1]]:
            run.step(**metrics)
        assert caplog.records == []
        assert run.warnings() == 0
        for _ in range(4):  # it goes on
            run.step(**ill[-1])
        assert run.warnings() == 1
        (record,) = caplog.records
        message = record.getMessage()
        assert message.startswith(f"step {len(well) + len(ill)}: ")
        assert "\n" not in message
        for part in parts:
            assert part in message


@pytest.mark.parametrize("symptom", ILLNESSES)
def test_a_symptom_stops_the_run_by_choice(symptom: str) -> None:
    overrides, well, ill, parts = ILLNESSES[symptom]
    run = FakeRun(*overrides, f"health.stop_on=[{symptom}]", rank=1)
    for metrics in [*well, *ill[:-1]]:
        run.step(**metrics)
    with pytest.raises(UserError, match=f"health.stop_on has {symptom}") as caught:
        run.step(**ill[-1])
    assert parts[0] in str(caught.value)


def test_a_second_episode_is_warned_of_again(caplog: pytest.LogCaptureFixture) -> None:
    run = FakeRun()
    for ratio in (0.01, 0.01, 0.5, 0.01):
        run.step(npn__spread_ratio=ratio)
        run.step()  # not measured: neither the end of an episode nor a new one
    assert run.warnings() == 2
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["step 1", "step 7"]


def test_one_lucky_error_is_not_the_lowest(caplog: pytest.LogCaptureFixture) -> None:
    run = FakeRun("health.normalizer_error_factor=5", "health.normalizer_error_floor=2")
    for error in (0.5, 0.5, 0.01, 2.4, 2.4):  # 5 times the lowest median is 2.5
        run.step(npn__log_normalizer_mse=error)
    assert caplog.records == []


def test_only_the_first_rank_speaks_and_all_count(caplog: pytest.LogCaptureFixture) -> None:
    run = FakeRun(rank=1)
    run.step(npn__spread_ratio=0.01)
    assert caplog.records == []
    assert run.warnings() == 1


@pytest.mark.parametrize(
    ("tau", "rho", "advice"),
    [
        (
            1.0,
            5.0,
            "temperature.maximum=1 .*rho=5 is too small for this corpus: raise it, or raise temperature.maximum",
        ),
        (0.01, None, "temperature.minimum=0.01 .*: lower temperature.minimum, or lower temperature.lr"),
    ],
)
def test_the_advice_fits_the_bound_and_the_objective(tau: float, rho: float | None, advice: str) -> None:
    run = FakeRun("health.tau_at_bound_steps=1", "health.stop_on=[tau_at_bound]", rho=rho)
    with pytest.raises(UserError, match=advice):
        run.step(train__tau=tau)


def test_a_tau_that_the_objective_leaves_alone_may_stay_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    run = FakeRun("health.tau_at_bound_steps=1", "temperature.init=0.01")
    for tau in (0.01, 0.01, 0.05, 0.05):
        run.step(train__tau=tau, train__tau_grad=0.0, train__parameter_norm_temperature=1 / tau)
    assert caplog.records == []


def test_a_group_may_rest_where_it_is_held(caplog: pytest.LogCaptureFixture) -> None:
    run = FakeRun("temperature.minimum=0.02")
    for _ in range(3):
        run.step(train__tau=0.02, train__parameter_norm_temperature=3.9)  # by the bound
        run.step(train__lr=0.0, train__parameter_norm_decay=7.0)  # by its learning rate
    assert caplog.records == []
    for _ in range(2):
        run.step(train__parameter_norm_temperature=2.0)
    assert "'temperature' is frozen" in caplog.text


@pytest.mark.parametrize("name", ["train__loss", "train__grad_norm", "train__tau", "train__parameter_norm_decay"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_not_finite_stops_the_run(name: str, value: float, precision: str) -> None:
    run = FakeRun(f"train.precision={precision}")
    with pytest.raises(UserError, match=f"{name.replace('__', '/')} is {value}"):
        run.step(**{name: value})


def test_outside_fp16_a_skipped_step_is_no_excuse() -> None:
    with pytest.raises(UserError, match="grad_norm is inf"):
        FakeRun("train.precision=bf16").step(train__grad_norm=math.inf, train__skipped_steps=1.0)


def test_a_step_below_what_fp32_resolves_is_no_frozen_group() -> None:
    """At the end of a cosine a bias near -10 stands still; a group that stands still at a full rate does not train."""
    check = FrozenGroup("no_decay", TemperatureConfig())
    rates = (1e-3, 1e-3, 2e-7, 2e-7)
    norms = (10.0, 9.9, 9.8, 9.8)
    for rate, norm in zip(rates, norms, strict=True):
        assert check.update({"train/lr": rate, "train/parameter_norm_no_decay": norm}) is None
    assert "is frozen" in (check.update({"train/lr": 1e-3, "train/parameter_norm_no_decay": 9.8}) or "")


@pytest.mark.parametrize(("objective", "named"), [("neuclip", True), ("openclip", False)])
def test_the_advice_on_a_growing_error_fits_the_objective(objective: str, named: bool) -> None:
    check = NormalizerErrorGrows(HealthConfig(), objective)
    said = [check.update({"npn/log_normalizer_mse": error}) for error in (0.1, 0.1, 0.1, 50.0, 50.0)]
    assert said[:-1] == [None] * 4
    assert ("objectives.neuclip.npn" in (said[-1] or "")) == named
    assert "global_batch_size" in (said[-1] or "")


def test_a_step_that_is_not_logged_is_judged_with_the_next_or_before_a_save() -> None:
    run = FakeRun("train.log_every_steps=4")
    run.step(train__loss=math.nan)
    with pytest.raises(UserError, match="step 1: train/loss is nan"):
        run.step()
    run = FakeRun("train.log_every_steps=4")
    run.step(train__loss=math.nan)
    with pytest.raises(UserError, match="step 1: train/loss is nan"):
        run.health.settle(run.trainer)
    run.health.settle(run.trainer)  # once
    run = FakeRun("train.log_every_steps=2")
    run.step()
    with pytest.raises(UserError, match="step 2: train/loss is nan"):
        run.step(train__loss=math.nan)


def test_what_is_judged_is_the_value_of_its_step_whatever_becomes_of_the_tensor() -> None:
    run = FakeRun("train.log_every_steps=4")
    loss = torch.tensor(1.0)
    run.step(train__loss=loss)  # type: ignore[arg-type]
    loss.fill_(math.nan)
    run.step()


def test_a_resumed_run_remembers_its_lowest_error_and_that_its_loss_has_moved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", 0)
    for step in range(1, 21):
        tracker.log({"npn/log_normalizer_mse": 0.01, "train/loss": 10.0 - step / 2}, step, step)
    tracker.log({"npn/log_normalizer_mse": 1e-9}, 99, 99)  # of a life that was not saved
    tracker.close("preempted")
    overrides = ("health.normalizer_error_floor=2", "health.loss_flat_steps=8")
    for recalled, expected in ((False, ["train/loss 1 has"]), (True, ["npn/log_normalizer_mse 3 "])):
        caplog.clear()
        run = FakeRun(*overrides)
        if recalled:
            run.health.recall(tmp_path / "metrics.jsonl", 20)
            run.trainer.progress.step = 20
        for _ in range(12):
            run.step(npn__log_normalizer_mse=3.0)
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == len(expected)
        assert all(part in line for part, line in zip(expected, said, strict=True))


def test_undecodable_samples_are_counted_until_they_are_too_many() -> None:
    config = load_recipe("demo", ["train.log_every_steps=2", "train.global_batch_size=4"])
    failures = DecodeFailures(config, first_step=10)
    trainer: Any = SimpleNamespace(
        progress=SimpleNamespace(step=10), total_steps=100, world=SimpleNamespace(device=torch.device("cpu"))
    )

    def step(count: int) -> dict[str, Any]:
        trainer.progress.step += 1
        output = StepOutput(EMPTY, torch.tensor([0.05]), ObjectiveOutput(torch.tensor(1.0)), {})
        failures.after_step(trainer, BATCH._replace(failures=Counter({"OSError": count})), output)
        return dict(output.metrics)

    assert [step(count) for count in (3, 0, 0, 7)] == [{}, {"data/failures": 3.0}, {}, {"data/failures": 7.0}]
    assert step(1) == {}
    with pytest.raises(UserError, match=r"11 of 24 samples .*\{'OSError': 11\}.*loader.max_failure_rate=0.01 allows"):
        step(0)
