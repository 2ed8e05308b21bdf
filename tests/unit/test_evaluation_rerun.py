"""A rerun does what is missing or stale and nothing else; stale is what was scored with something else that decides."""

import json

import pytest
import yaml
from evaluation_support import TASKS, change_weights, ran, run, write_tasks_file

from pipeline.errors import UserError
from pipeline.evaluation import measure, results
from pipeline.evaluation.aggregate import aggregate
from pipeline.evaluation.tasks import Task, load_tasks


def test_a_second_run_does_nothing_and_loads_no_model(work, monkeypatch):
    before = {path.name: path.stat().st_mtime_ns for path in (work / "out").iterdir()}
    monkeypatch.setattr(measure, "load_exported", None)
    calls = []
    again = run(work, progress=lambda *call: calls.append(call))
    assert [result["task"] for result in again] == TASKS
    assert calls == [(task, 29, 29, 0.0) for task in TASKS]
    assert {path.name: path.stat().st_mtime_ns for path in (work / "out").iterdir()} == before


def test_only_what_is_missing_or_torn_is_done_again(work):
    (work / "out/colours.json").unlink()
    (work / "out/captions.json").write_text('{"score": 0.5')
    assert ran(work) == ["captions", "colours"]
    assert ran(work, tasks=["captions"], force=True) == ["captions"]


def change_preprocessing(root):
    path = root / "model/open_clip_config.json"
    path.write_text(path.read_text().replace("bicubic", "bilinear"))


def change_template(root):
    (root / "data/wds_colours_test/zeroshot_classification_templates.txt").write_text("{c}!\n")


def change_definition(root):
    path = root / "data/tasks.yaml"
    path.write_text(path.read_text().replace("main_metric: acc1", "main_metric: mean_per_class_recall"))


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (change_weights, sorted(TASKS)),
        (change_preprocessing, sorted(TASKS)),
        (change_template, ["colours"]),
        (change_definition, ["colours"]),
    ],
)
def test_what_changed_is_done_again(work, change, stale):
    aggregate(work / "out", work / "data")
    change(work)
    assert ran(work) == stale
    assert not (work / "out/aggregate.json").exists()
    assert ran(work) == []


def test_other_precision_and_other_code_make_results_stale(work, monkeypatch):
    monkeypatch.setattr(results, "code_version", lambda: "0.1.0+another")
    assert ran(work) == sorted(TASKS)
    assert ran(work, precision="bf16") == sorted(TASKS)


@pytest.mark.parametrize("change", [change_template, change_definition])
def test_a_missing_or_stale_task_leaves_no_average(work, change):
    aggregate(work / "out", work / "data")
    change(work)
    (work / "out/captions.json").unlink()
    with pytest.raises(UserError, match="2 of 3 results") as caught:
        aggregate(work / "out", work / "data")
    assert "colours: stale" in str(caught.value)
    assert "captions: missing" in str(caught.value)
    assert "some/groups" not in str(caught.value)
    assert not (work / "out/aggregate.json").exists()
    assert aggregate(work / "out", work / "data", ["some/groups"])["tasks"] == 1


DECIDE = {
    "kind": "fmow",
    "size": 30,
    "main_metric": "acc1",
    "classes": 8,
    "templates": 3,
    "captions": 9,
    "top": 5,
    "columns": ("place", "x"),
    "group_by": "y",
    "group_names": ("north", "south"),
    "format": "parquet",
}
DESCRIBE = {
    "title": "Others",
    "chance": 0.5,
    "in_average": False,
    "groups": ["mine"],
    "cost": 1000,
    "folder": "elsewhere",
    "repository": "someone/else",
    "revision": "0" * 40,
}


def test_every_field_of_a_task_decides_its_score_or_does_not():
    assert {*DECIDE, *DESCRIBE} == set(Task.model_fields)
    assert not DECIDE.keys() & DESCRIBE


@pytest.mark.parametrize("field", DECIDE)
def test_a_field_that_decides_a_score_makes_it_stale(evaluated, field):
    task = load_tasks(evaluated / "data")["some/groups"]
    assert task.model_copy(update={field: DECIDE[field]}).decisive != task.decisive


@pytest.mark.parametrize("field", DESCRIBE)
def test_a_field_that_decides_no_score_makes_nothing_stale(work, field):
    before = json.loads((work / "out/some-groups.json").read_text())
    entries = yaml.safe_load((work / "data/tasks.yaml").read_text())
    entries["some/groups"][field] = DESCRIBE[field]
    write_tasks_file(work / "data", entries)
    if field == "folder":
        (work / "data/wds_some-groups_test").rename(work / "data/elsewhere")
    assert ran(work) == []
    told = {field: DESCRIBE[field]} if field in ("title", "chance") else {}
    summary = aggregate(work / "out", work / "data")
    after = json.loads((work / "out/some-groups.json").read_text())
    assert after == {**before, **told}
    assert summary["scores"].get("some/groups", told).items() >= told.items()
    (again,) = run(work, tasks=["some/groups"], force=True)
    assert (again["metrics"], again["task_hash"]) == (before["metrics"], before["task_hash"])
