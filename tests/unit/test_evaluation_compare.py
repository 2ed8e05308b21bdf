"""Differences of two results: intervals equal those of other bootstraps (SciPy's, loops) and cover as often as they
say; results that are not of the same tasks, or not whole, are refused by name.
"""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from evaluation_support import write_model
from scipy.stats import bootstrap

from data_prep.fabricate.datacomp import fabricate_datacomp
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.evaluation.compare import compare
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.records import Record, read_record, samples_path, write_record
from pipeline.evaluation.suite import evaluate
from pipeline.evaluation.tasks import Task, datacomp_tasks, file_name
from pipeline.files import write_json

STAMP = {
    "task_hash": "t", "data_fingerprint": "d", "checkpoint_sha256": "c", "precision": "fp32",
    "model_config_sha256": "m",
}  # fmt: skip


def write_side(out, task, definition, rows, **stamp):
    """A result and its record, of made-up samples."""
    stamp = {**STAMP, "checkpoint_sha256": out.name, **stamp}
    score = KINDS[definition.kind].metrics(definition, rows)[definition.main_metric]
    said = {"task": task, "title": task, "main_metric": definition.main_metric, "score": score, "n": definition.size}
    said |= {"kind": definition.kind, "chance": definition.chance, "metrics": {definition.main_metric: score}}
    write_json(out / f"{file_name(task)}.json", {**said, "model": out.name, **stamp})
    facts = {"task": definition.model_dump(mode="json"), "model": out.name, "libraries": {}, "seconds": 1.0}
    write_record(samples_path(out, task), Record(rows, stamp, facts))


def answers(labels, accuracy, seed, classes):
    """Rows of a model that is right so often."""
    rng = np.random.default_rng(seed)
    best = np.where(rng.random(len(labels)) < accuracy, labels, rng.integers(classes, size=len(labels)))
    label, best = torch.tensor(labels, dtype=torch.int32), torch.tensor(best, dtype=torch.int32)
    return {"label": label, "best": best, "place": (best != label).to(torch.int8) * 5}


def definition(kind="classification", **keys):
    task = {"kind": kind, "title": "T", "size": 400, "classes": 6, "main_metric": "acc1", "chance": 0.1, **keys}
    return Task.model_validate(task)


def pair(tmp_path, task, seed=0):
    """Two models, of which the second agrees with the first on most samples; returns their rows."""
    labels = np.random.default_rng(seed).integers(6, size=task.size)
    first = answers(labels, 0.6, seed + 1, 6)
    second = {name: column.clone() for name, column in first.items()}
    some = torch.arange(task.size) % 4 == 0
    for name, column in answers(labels, 0.9, seed + 2, 6).items():
        second[name][some] = column[some]
    groups = torch.tensor(np.random.default_rng(seed + 3).choice(3, size=task.size, p=[0.8, 0.15, 0.05]))
    metadata = {"metadata": torch.stack([groups, groups], 1), "metadata_width": torch.full((task.size,), 2)}
    rows = [{**first, **metadata}, {**second, **metadata}]
    for out, of in zip("ab", rows, strict=True):
        write_side(tmp_path / out, "t", task, of)
    return rows


def only(comparison):
    (row,) = comparison["tasks"].values()
    return row


def test_an_interval_of_accuracy_is_scipys(tmp_path):
    a, b = ((rows["place"] == 0).double().numpy() for rows in pair(tmp_path, definition()))
    row = only(compare(tmp_path / "a", tmp_path / "b", resamples=20_000))
    assert (row["a"], row["b"], row["n"]) == (a.mean(), b.mean(), 400)
    assert row["difference"] == b.mean() - a.mean() > 0.02
    expected = bootstrap(
        (a, b), lambda a, b, axis: b.mean(axis) - a.mean(axis), paired=True, method="percentile", n_resamples=20_000
    ).confidence_interval
    assert row["low"] == pytest.approx(expected.low, abs=0.003)
    assert row["high"] == pytest.approx(expected.high, abs=0.003)
    assert row["high"] - row["low"] < 0.1  # unpaired it would be 0.13


def worst(rows, chosen):
    hits, groups = (rows["best"] == rows["label"]).numpy()[chosen], rows["metadata"][:, 0].numpy()[chosen]
    return min(hits[groups == group].mean() for group in set(groups))


def macro_f1(rows, chosen):
    label, best = rows["label"].numpy()[chosen], rows["best"].numpy()[chosen]
    of = [((label == c) & (best == c), (label == c) | (best == c)) for c in set(label)]
    return np.mean([2 * both.sum() / (both.sum() + either.sum()) for both, either in of])


@pytest.mark.parametrize(
    ("task", "score"),
    [
        (definition("worst_group", main_metric="acc_wg", columns=["g", "h"], group_by="g"), worst),
        (definition("iwildcam", main_metric="F1-macro_all"), macro_f1),
    ],
)
def test_what_is_no_mean_is_computed_again_on_what_is_drawn(tmp_path, task, score):
    a, b = pair(tmp_path, task)
    row = only(compare(tmp_path / "a", tmp_path / "b", resamples=1500))
    rng = np.random.default_rng(5)
    draws = [rng.integers(400, size=400) for _ in range(1500)]
    expected = np.quantile([score(b, chosen) - score(a, chosen) for chosen in draws], [0.025, 0.975])
    everything = np.arange(400)
    assert row["difference"] == pytest.approx(score(b, everything) - score(a, everything), abs=1e-12)
    width = expected[1] - expected[0]
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected), abs=0.12 * width)


def test_retrieval_draws_images_with_their_captions(tmp_path):
    task = Task.model_validate(
        {"kind": "retrieval", "title": "R", "size": 200, "main_metric": "mean_recall@1", "chance": 0.005}
    )
    rng = np.random.default_rng(0)
    captions = rng.integers(1, 9, size=200)
    sides = []
    for out, ease in (("a", 0.4), ("b", 0.5)):
        luck = rng.random(200) < ease  # all captions of an image are found, or none: images are what varies
        rows = {
            "captions": torch.tensor(captions),
            "captions_answered": torch.tensor(np.outer(captions * luck, [1, 1, 1])),
            "answered": torch.tensor(np.outer(luck, [True] * 3)),
        }
        write_side(tmp_path / out, "t", task, rows)
        sides.append((luck, captions * luck))
    row = only(compare(tmp_path / "a", tmp_path / "b", resamples=3000))
    drawn = []
    for _ in range(3000):
        chosen = rng.integers(200, size=200)
        first, second = (
            (images[chosen].mean() + found[chosen].sum() / captions[chosen].sum()) / 2 for images, found in sides
        )
        drawn.append(second - first)
    expected = np.quantile(drawn, [0.025, 0.975])
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected), abs=0.015)


def test_the_interval_holds_the_true_difference_as_often_as_it_says(tmp_path):
    held = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        labels = rng.integers(6, size=400)
        common = rng.random(400)
        for out, accuracy in (("a", 0.5), ("b", 0.6)):  # right where the other is, and on a tenth more
            best = np.where(common < accuracy, labels, (labels + 1) % 6)
            label, best = torch.tensor(labels), torch.tensor(best)
            rows = {"label": label, "best": best, "place": (label != best).to(torch.int8)}
            write_side(tmp_path / out, "t", definition(), rows)
        row = only(compare(tmp_path / "a", tmp_path / "b", resamples=400, seed=seed))
        held += row["low"] <= 0.1 <= row["high"]
    assert 107 <= held <= 120  # of 120: 0.95 less, or more, than three standard errors


def test_the_same_seed_draws_the_same_whatever_else_is_compared(tmp_path):
    task = definition(main_metric="mean_per_class_recall")
    rows = pair(tmp_path, task)
    alone = compare(tmp_path / "a", tmp_path / "b", resamples=200)
    assert alone == compare(tmp_path / "a", tmp_path / "b", resamples=200)
    assert only(alone)["low"] != only(compare(tmp_path / "a", tmp_path / "b", resamples=200, seed=1))["low"]
    for out, of in zip("ab", rows, strict=True):
        write_side(tmp_path / out, "another", task, of)
    both = compare(tmp_path / "a", tmp_path / "b", resamples=200)
    assert both["tasks"]["t"] == only(alone)
    assert both["tasks"]["another"]["difference"] == only(alone)["difference"]
    mean = both["mean"]
    assert mean["tasks"] == 2
    assert mean["difference"] == pytest.approx(only(alone)["difference"])
    assert mean["high"] - mean["low"] < 0.9 * (only(alone)["high"] - only(alone)["low"])  # two are surer than one


def test_a_model_is_no_better_than_itself(tmp_path):
    pair(tmp_path, definition())
    row = only(compare(tmp_path / "b", tmp_path / "b", resamples=100))
    assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)


def test_results_of_other_data_or_another_definition_are_refused_by_name(tmp_path):
    rows = pair(tmp_path, definition())
    for name, stamp in (("same", {}), ("moved", {"data_fingerprint": "x"}), ("else", {"task_hash": "x"})):
        write_side(tmp_path / "a", name, definition(), rows[0])
        write_side(tmp_path / "b", name, definition(), rows[1], **stamp)
    with pytest.raises(UserError, match="not of the same tasks") as caught:
        compare(tmp_path / "a", tmp_path / "b")
    assert "moved: other data" in str(caught.value)
    assert "else: another definition" in str(caught.value)
    assert "same" not in str(caught.value).split("tasks:")[1]
    assert set(compare(tmp_path / "a", tmp_path / "b", ["same", "t"], 100)["tasks"]) == {"same", "t"}
    (tmp_path / "b/same.json").unlink()
    with pytest.raises(UserError, match=r"cannot compare:\n  same: no result in .*/b"):
        compare(tmp_path / "a", tmp_path / "b", ["same", "t"])
    with pytest.raises(UserError, match="holds no results"):
        compare(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("damage", ["missing", "flip", "another model's", "another score"])
def test_without_the_record_of_a_result_it_is_said_how_to_get_it(tmp_path, damage):
    pair(tmp_path, definition())
    path, result = samples_path(tmp_path / "b", "t"), tmp_path / "b/t.json"
    if damage == "missing":
        path.unlink()
    elif damage == "flip":
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    elif damage == "another model's":
        shutil.copy(samples_path(tmp_path / "a", "t"), path)
    else:
        write_json(result, {**json.loads(result.read_text()), "score": 0.5})
    with pytest.raises(UserError, match=r"neuclip evaluate --force --tasks t --out .*/b"):
        compare(tmp_path / "a", tmp_path / "b")


def test_a_damaged_result_is_left_out_by_name(tmp_path):
    rows = [answers([0, 1] * 200, accuracy, 1, 6) for accuracy in (0.5, 0.6)]
    for side, of in zip(("a", "b"), rows, strict=True):
        for task in ("good", "bad"):
            write_side(tmp_path / side, task, definition(), of)
    result = tmp_path / "b/bad.json"
    result.write_text(result.read_text().replace('"n": 400', '"n": "400"'))
    found = compare(tmp_path / "a", tmp_path / "b", resamples=100)
    assert set(found["tasks"]) == {"good"}
    assert found["left_out"]["bad"].startswith(f"{result}: n: expected `int`, got `str`, found '400'. Remove it")
    (tmp_path / "a/bad.json").unlink()
    assert compare(tmp_path / "a", tmp_path / "b", resamples=100)["left_out"].keys() == {"bad"}
    with pytest.raises(UserError, match=r"cannot compare:\n  bad: .*b/bad\.json: n: expected"):
        compare(tmp_path / "a", tmp_path / "b", ["bad"])
    done = CliRunner().invoke(main, ["evaluate", "--compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert (done.exit_code, "left out: bad: " in done.output) == (0, True)


@pytest.mark.parametrize(
    "changed",
    [
        lambda record: record._replace(rows={"label": record.rows["label"]}),
        lambda record: record._replace(rows={name: column[:-1] for name, column in record.rows.items()}),
        lambda record: record._replace(rows={name: column.double() / 0 for name, column in record.rows.items()}),
        lambda record: record._replace(rows={name: column[:, None] for name, column in record.rows.items()}),
        lambda record: record._replace(rows={}),
        lambda record: record._replace(stamp=["t"]),
        lambda record: record._replace(facts={}),
        lambda record: record._replace(facts={**record.facts, "task": "birds"}),
        lambda record: record._replace(facts={**record.facts, "task": {"kind": "none"}}),
    ],
    ids=range(9),
)
def test_a_record_of_anything_else_is_named(tmp_path, changed):
    """Whole by its digest, as of somebody who wrote it by hand."""
    for side in ("a", "b"):
        write_side(tmp_path / side, "t", definition(), answers([0, 1] * 200, 0.5, 1, 6))
    path = samples_path(tmp_path / "b", "t")
    write_record(path, changed(read_record(path)))
    with pytest.raises(UserError, match=re.escape(str(path))):
        compare(tmp_path / "a", tmp_path / "b")


def test_real_results_of_every_kind_are_compared(tmp_path):
    chosen = [
        *("cifar10", "vtab/pets", "wilds/camelyon17", "fairness/dollar_street", "wilds/iwildcam", "wilds/fmow"),
        *("fairness/utkface", "retrieval/flickr_1k_test_image_text_retrieval", "misc/winogavil"),
    ]
    tasks = {name: datacomp_tasks()[name].model_dump() for name in chosen}
    assert {task["kind"] for task in tasks.values()} == set(KINDS)
    fabricate_datacomp(tmp_path / "data", tasks, images=16, processes=1)
    for seed, out in enumerate("ab"):
        model = write_model(tmp_path / f"model-{out}", seed)
        evaluate(model, tmp_path / "data", tmp_path / out, chosen, workers=0)
    command = ["evaluate", "--compare", str(tmp_path / "a"), str(tmp_path / "b"), "--resamples", "100"]
    ended = CliRunner().invoke(main, [*command, "--json"])
    assert ended.exit_code == 0, ended.output
    comparison = json.loads(ended.output)
    assert comparison == compare(tmp_path / "a", tmp_path / "b", resamples=100)
    assert set(comparison["tasks"]) == set(chosen) - {"fairness/utkface"}
    assert comparison["left_out"] == {"fairness/utkface": "no main metric"}
    assert (comparison["a"]["model"], comparison["b"]["model"]) == ("model-a", "model-b")
    for name, row in comparison["tasks"].items():
        scores = [json.loads((tmp_path / out / f"{file_name(name)}.json").read_text())["score"] for out in "ab"]
        assert [row["a"], row["b"]] == scores
        assert row["low"] <= row["high"]
    ended = CliRunner().invoke(main, command)
    assert "left out: fairness/utkface: no main metric" in ended.output
    line = next(line for line in ended.output.splitlines() if line.split()[:1] == ["cifar10"])
    assert f"{comparison['tasks']['cifar10']['difference']:+.4f}" in line
    assert "takes two folders" in CliRunner().invoke(main, [*command, "--out", "x"]).output
