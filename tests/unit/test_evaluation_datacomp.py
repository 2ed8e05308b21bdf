"""DataComp's tasks in miniature: every kind equals an image-by-image reference in float64 that reads the files with
webdataset and pyarrow.
"""

import io
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import webdataset
from evaluation_reference import Reference
from evaluation_support import COCO, OF_EVERY_KIND
from sklearn.metrics import f1_score, jaccard_score

from pipeline.errors import UserError
from pipeline.evaluation.aggregate import aggregate
from pipeline.evaluation.tasks import load_tasks, task_path


class OnFiles(Reference):
    """Reads the files of tasks with libraries of their own."""

    def __init__(self, root):
        super().__init__(root / "model")
        self.root, self.tasks = root, load_tasks(root / "data")

    def samples(self, name):
        folder = task_path(self.root / "data", name, self.tasks[name])
        if self.tasks[name].format == "parquet":
            return [row for file in sorted(folder.rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]
        shards = [str(folder / f"test/{n}.tar") for n in range(int((folder / "test/nshards.txt").read_text()))]
        return list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))

    def lines(self, name, file):
        return (task_path(self.root / "data", name, self.tasks[name]) / file).read_text().splitlines()

    def frame(self, name, columns):
        """A row per image: label, the five best classes, the named columns of its metadata."""
        names = self.lines(name, "classnames.txt")
        classifier = self.classifier(names, self.lines(name, "zeroshot_classification_templates.txt"))
        rows = []
        for sample in self.samples(name):
            feature = self.image_of(sample)
            best = np.argsort([-feature @ vector for vector in classifier])[:5]
            metadata = np.load(io.BytesIO(sample["npy"]))[: len(columns)]
            rows.append({"label": int(sample["cls"]), "best": best, **dict(zip(columns, metadata, strict=True))})
        frame = pd.DataFrame(rows)
        frame["hit"] = [row["best"][0] == row["label"] for row in rows]
        frame["hit5"] = [row["label"] in row["best"] for row in rows]
        return frame


@pytest.fixture(scope="module")
def reference(miniature):
    return OnFiles(miniature)


def metrics_of(root, name):
    return json.loads((root / "out" / f"{name.replace('/', '-')}.json").read_text())["metrics"]


def near(expected):
    return pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("task", "columns", "group", "hit", "prefix"),
    [
        ("wilds/camelyon17", ("hospital", "slide", "y"), "slide", "hit", "acc"),
        ("fairness/dollar_street", ("income_ds", "income_meta", "region"), "income_ds", "hit5", "acc_top5"),
    ],
)
def test_worst_group(miniature, reference, task, columns, group, hit, prefix):
    frame, metrics = reference.frame(task, columns), metrics_of(miniature, task)
    shares = frame.groupby(group)[hit].mean()
    assert metrics["acc1"] == near(frame["hit"].mean())
    assert metrics["acc5"] == (near(frame["hit5"].mean()) if prefix == "acc_top5" else None)
    assert metrics[f"{prefix}_avg"] == near(frame[hit].mean())
    assert metrics[f"{prefix}_wg"] == near(shares.min())
    for value in range(frame[group].max() + 1):  # of Camelyon17 the first twenty slides are no test slides
        assert metrics[f"{prefix}_{group}:{value}"] == (near(shares[value]) if value in shares else None)
    assert sum(count for name, count in metrics.items() if name.startswith("count_")) == len(frame)


def test_iwildcam(miniature, reference):
    frame, metrics = reference.frame("wilds/iwildcam", ()), metrics_of(miniature, "wilds/iwildcam")
    predicted, labels = [best[0] for best in frame["best"]], frame["label"]
    options = {"average": "macro", "labels": np.unique(labels), "zero_division": 0}
    assert metrics["F1-macro_all"] == near(f1_score(labels, predicted, **options))
    assert metrics["acc_avg"] == metrics["acc1"] == near(frame["hit"].mean())


def test_fmow(miniature, reference):
    frame, metrics = reference.frame("wilds/fmow", ("region", "year")), metrics_of(miniature, "wilds/fmow")
    assert metrics["acc_worst_region"] == near(frame.groupby("region")["hit"].mean().min())
    assert metrics["acc_worst_year"] == near(frame.groupby("year")["hit"].mean().min())
    assert metrics["count_region:5"] == 1
    assert metrics["count_year:13"] == 0


def test_faces(miniature, reference):
    name = "fairness/utkface"
    names, templates = (reference.lines(name, f) for f in ("classnames.txt", "zeroshot_classification_templates.txt"))
    classifiers = {
        question: reference.classifier(
            [line[len(question) + 1 :] for line in names if line.startswith(f"{question}:")],
            [line[len(question) + 1 :] for line in templates if line.startswith(f"{question}:")],
        )
        for question in ("race", "gender", "age", "toxic")
    }
    rows = []
    for sample in reference.samples(name):
        feature, row = reference.image_of(sample), dict(zip("agrb", np.load(io.BytesIO(sample["npy"])), strict=True))
        answer = {q: int(np.argmax([feature @ v for v in vectors])) for q, vectors in classifiers.items()}
        rows.append({**row, **answer})
    frame, metrics = pd.DataFrame(rows), metrics_of(miniature, name)
    assert metrics["acc_race_avg"] == near(((frame["race"] == 1) == (frame["r"] == 1)).mean())
    assert metrics["acc_age_avg"] == near((frame["age"] == frame["a"]).mean())
    hits = (frame["gender"] == frame["g"]).groupby([frame["r"], frame["g"]]).mean()
    assert {f"acc_gender_x_race:{r}_gender:{g}" for r, g in hits.index} == {
        key for key in metrics if key.startswith("acc_gender_x_race")
    }
    for (race, gender), share in hits.items():
        assert metrics[f"acc_gender_x_race:{race}_gender:{gender}"] == near(share)
    crime = (frame["toxic"] >= 18).groupby(frame["r"]).mean()
    assert [metrics[f"toxicity_crime_race:{race}"] for race in range(5)] == [near(crime[race]) for race in range(5)]
    assert json.loads((miniature / "out/fairness-utkface.json").read_text())["score"] is None


def test_retrieval_of_parquet(miniature, reference):
    rows, metrics = reference.samples(COCO), metrics_of(miniature, COCO)
    images = [reference.image(row["image"]["bytes"]) for row in rows]
    texts = [(owner, reference.text(text)) for owner, row in enumerate(rows) for text in row["caption"]]
    assert len(texts) == 24 * 16 // 3
    for k in (1, 5, 10):
        found = [owner in np.argsort([-text @ image for image in images])[:k] for owner, text in texts]
        assert metrics[f"image_retrieval_recall@{k}"] == near(np.mean(found))
        best = [np.argsort([-image @ text for _, text in texts])[:k] for image in images]
        found = [any(texts[t][0] == i for t in order) for i, order in enumerate(best)]
        assert metrics[f"text_retrieval_recall@{k}"] == near(np.mean(found))


def test_winogavil(miniature, reference):
    scores, sizes = [], []
    for row in reference.samples("misc/winogavil"):
        cue = reference.text(("An " if row["cue"][0] in "aeiou" else "A ") + row["cue"])
        similarity = [cue @ reference.image(image["bytes"]) for image in row["candidate_images"]]
        nearest = set(np.argsort(similarity)[-row["num_associations"] :])
        expected = [name in row["associations"] for name in row["candidates"]]
        scores.append(jaccard_score(expected, [i in nearest for i in range(len(expected))]))
        sizes.append(len(expected))
    scores, sizes = np.array(scores), np.array(sizes)
    metrics = metrics_of(miniature, "misc/winogavil")
    assert metrics["avg_jaccard_score"] == near(scores.mean())
    assert metrics["jaccard_score_10-12"] == near(scores[sizes >= 10].mean())
    assert metrics["jaccard_score_5"] == near(scores[sizes == 5].mean())


def test_tasks_without_a_main_metric_have_results_and_do_not_count(miniature):
    summary = aggregate(miniature / "out", miniature / "data", OF_EVERY_KIND)
    assert summary["tasks"] == len(OF_EVERY_KIND) - 1
    assert "fairness/utkface" not in summary["scores"]
    with pytest.raises(UserError, match="fairness/utkface count in none"):
        aggregate(miniature / "out", miniature / "data", ["fairness/utkface"])
