"""Tasks beside DataComp's are in no average: neither in the one of a run, nor in that of a comparison."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import yaml
from compare_support import fabricate_member

from pipeline.files import read_json, write_json
from pipeline.report.compare.comparison import compare
from pipeline.report.compare.find import find_runs

TASK = {"kind": "classification", "title": "T", "size": 4, "classes": 2, "main_metric": "acc1", "chance": 0.5}


@pytest.fixture
def averages(tmp_path: Path) -> dict[str, float]:
    """By the name of the run, of two of its three tasks; the third is the user's own."""
    found = {}
    for name in ("neuclip", "openclip"):
        run = fabricate_member(tmp_path / name, name)
        (run / "evaldata").mkdir()
        tasks = {f"task{i}": {**TASK, "groups": ["own"] if i == 2 else []} for i in range(3)}
        (run / "evaldata" / "tasks.yaml").write_text(yaml.safe_dump(tasks))
        file = run / "results" / "aggregate.json"
        summary = read_json(file)
        found[name] = statistics.fmean(summary["scores"][f"task{i}"]["score"] for i in range(2))
        write_json(file, {**summary, "tasks": 2, "average": found[name]})
    return found


def test_a_comparison_is_of_the_runs_own_averages(tmp_path: Path, averages: dict[str, float]) -> None:
    table = compare(find_runs([tmp_path])).scores
    assert table.overall is not None
    assert table.overall.title == "Average of 2 tasks"
    assert table.overall.by_run == pytest.approx(averages, abs=1e-12)
    assert len(table.tasks) == 3


def test_where_nobody_knows_which_tasks_count_it_is_no_average(tmp_path: Path, averages: dict[str, float]) -> None:
    for name in averages:
        (tmp_path / name / "evaldata" / "tasks.yaml").unlink()
    overall = compare(find_runs([tmp_path])).scores.overall
    assert overall is not None
    assert overall.title == "Mean of the 3 tasks that all have"
