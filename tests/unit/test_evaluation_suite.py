"""The suite: scores equal an image-by-image reference in float64, and say what produced them."""

import json

import numpy as np
import pytest
import torch
from evaluation_reference import Reference
from evaluation_support import COLOURS, run, write_suite

from pipeline.evaluation.results import result_path
from pipeline.files import sha256_file
from pipeline.models.two_tower import WEIGHTS_FILE

TEMPLATES = ("a photo of a {c} thing.", "{c}", "all of it is {c}")


def test_classification_and_groups_equal_an_image_by_image_reference(evaluated, tmp_path):
    samples = write_suite(tmp_path)
    reference = Reference(evaluated / "model")
    classes = reference.classifier(COLOURS, TEMPLATES)
    ranked = [np.argsort([-reference.image_of(s) @ vector for vector in classes]) for s in samples["colours"]]
    labels = [sample["cls"] for sample in samples["colours"]]
    hit = [order[0] == label for order, label in zip(ranked, labels, strict=True)]
    assert len({order[0] for order in ranked}) >= 3
    recalls = [np.mean([h for h, x in zip(hit, labels, strict=True) if x == c]) for c in set(labels)]
    metrics = json.loads((evaluated / "out/colours.json").read_text())["metrics"]
    assert metrics == pytest.approx(
        {
            "acc1": np.mean(hit),
            "acc5": np.mean([label in order[:5] for order, label in zip(ranked, labels, strict=True)]),
            "mean_per_class_recall": np.mean(recalls),
        },
        abs=1e-9,
    )
    groups = [int(sample["npy"][0]) for sample in samples["some/groups"]]
    by_group = [[h for h, g in zip(hit, groups, strict=True) if g == index] for index in range(3)]
    result = json.loads((evaluated / "out/some-groups.json").read_text())
    expected = {**metrics, "acc_avg": np.mean(hit), "acc_wg": min(map(np.mean, by_group))}
    for name, members in zip(("north", "south", "alone"), by_group, strict=True):
        expected |= {f"acc_place:{name}": np.mean(members), f"count_place:{name}": len(members)}
    assert result["metrics"].pop("acc_place:nobody") is None
    assert result["metrics"].pop("count_place:nobody") == 0
    assert result["metrics"] == pytest.approx(expected, abs=1e-9)
    assert result["score"] == result["metrics"]["acc_wg"]


def test_retrieval_equals_an_image_by_image_reference(evaluated, tmp_path):
    samples = write_suite(tmp_path)
    reference = Reference(evaluated / "model")
    images = [reference.image_of(sample) for sample in samples["captions"]]
    captions = [(i, text) for i, s in enumerate(samples["captions"]) for text in s["txt"].split("\n")]
    assert len(captions) > len(images)
    texts = [reference.text(text) for _, text in captions]
    owner = [image for image, _ in captions]
    metrics = json.loads((evaluated / "out/captions.json").read_text())["metrics"]
    for k in (1, 5, 10):
        found = [owner[t] in np.argsort([-text @ i for i in images])[:k] for t, text in enumerate(texts)]
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(np.mean(found), abs=1e-9)
        best = [np.argsort([-image @ text for text in texts])[:k] for image in images]
        found = [any(owner[t] == i for t in order) for i, order in enumerate(best)]
        assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(np.mean(found), abs=1e-9)


def test_a_result_says_what_produced_it(evaluated):
    result = json.loads((evaluated / "out/captions.json").read_text())
    assert result["task"] == "captions"
    assert result["kind"] == "retrieval"
    assert (result["n"], result["chance"]) == (29, 1 / 29)
    assert result["score"] == result["metrics"][result["main_metric"]]
    assert result["model"] == "model"
    assert result["precision"] == "fp32"
    assert result["checkpoint_sha256"] == sha256_file(evaluated / "model" / WEIGHTS_FILE)
    assert result["libraries"]["torch"] == torch.__version__.split("+")[0]
    assert result["seconds"] > 0
    for stamp in ("task_hash", "data_fingerprint", "model_config_sha256", "code_version"):
        assert result[stamp]


def test_scores_do_not_depend_on_loader_processes(evaluated, tmp_path):
    again = run(evaluated, tmp_path, workers=2)
    for result in again:
        before = json.loads(result_path(evaluated / "out", result["task"]).read_text())
        assert result["metrics"] == before["metrics"]
