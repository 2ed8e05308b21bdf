"""Scores of a checkpoint come late, at its step: they change nothing of what is told of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.report.compare.run import Run
from pipeline.report.compare.step_time import shares, throughput
from pipeline.tracking.jsonl import JsonlTracker, Point, of_steps, read_points
from pipeline.training_summary import summarise

RATE = {"train/samples_per_second": 10.0, "ranks/gpus": 2.0, "ranks/count": 2.0, "train/epoch": 0.5, "npn/share": 0.2}


class Corpus:
    fingerprint = ""

    def __len__(self) -> int:
        return 4000


def logged(folder: Path, late: Sequence[tuple[int, int]]) -> Path:
    """A run of 40 steps of 100 samples. late: (after which step it is logged, of which step it is)."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text("train: {global_batch_size: 100, epochs: 1}\n")
    tracker = JsonlTracker(folder / "train" / "metrics.jsonl")
    for step in (10, 20, 30, 40):
        tracker.log({**RATE, "train/loss": 1 / step, "train/epoch": step / 40}, step, step * 100)
        for _, of in [entry for entry in late if entry[0] == step]:
            tracker.log({"eval/birds": 0.5}, of, of * 100)
    tracker.close("finished")
    return folder


def told(folder: Path) -> dict[str, Any]:
    run = Run(folder, "run")
    return {
        "samples": run.samples_seen,
        "total": run.total_samples,
        "spent": run.spent,
        "throughput": throughput(run),
        "shares": shares(run),
        "points": len(run.points),
    }


@pytest.mark.parametrize("late", [[(30, 10)], [(20, 10), (30, 20), (40, 30)], [(40, 40)], [(40, 20)]], ids=str)
def test_a_run_is_told_of_as_without_them(tmp_path: Path, late: list[tuple[int, int]]) -> None:
    expected = told(logged(tmp_path / "without", []))
    assert expected["samples"] == expected["total"] == 4000
    assert expected["spent"][:2] == (400.0, pytest.approx(800 / 3600))
    assert told(logged(tmp_path / "with", late)) == expected


def test_nor_do_they_change_the_summary_of_training(tmp_path: Path) -> None:
    def summary(folder: Path) -> dict[str, Any]:
        trainer: Any = SimpleNamespace(
            folder=folder / "train",
            progress=SimpleNamespace(step=40, samples_seen=4000, order_digest=""),
            corpus=Corpus(),
            config=SimpleNamespace(objective="openclip"),
            world=SimpleNamespace(size=2),
        )
        return summarise(trainer)

    expected = summary(logged(tmp_path / "without", []))
    assert expected["train_seconds"] == 400
    assert summary(logged(tmp_path / "with", [(30, 10), (40, 20)])) == expected


def test_they_are_left_out_by_their_name(tmp_path: Path) -> None:
    points = read_points(logged(tmp_path / "run", [(30, 10)]) / "train" / "metrics.jsonl")
    assert [point.step for point in points] == [10, 20, 30, 10, 40]
    assert [point.step for point in of_steps(points)] == [10, 20, 30, 40]
    assert of_steps([Point(1, 1, 0.0, {})]) == [Point(1, 1, 0.0, {})]
