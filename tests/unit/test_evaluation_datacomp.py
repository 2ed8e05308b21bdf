"""DataComp's tasks in miniature: every kind equals an image-by-image reference in float64 that reads the files with
webdataset and pyarrow, `check` and evaluation name what is wrong with a file, and the other tasks finish.
"""

import io
import json
import shutil
import tarfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from click.testing import CliRunner
from evaluation_support import write_model
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score

from data_prep.fabricate.datacomp import fabricate_datacomp
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.evaluation.aggregate import aggregate
from pipeline.evaluation.check import check
from pipeline.evaluation.suite import evaluate
from pipeline.evaluation.tasks import datacomp_tasks, load_tasks, task_path
from pipeline.models.two_tower import load_exported

CPU = torch.device("cpu")
COCO = "retrieval/mscoco_2014_5k_test_image_text_retrieval"
CHOSEN = [
    *("cifar10", "wilds/camelyon17", "fairness/dollar_street", "wilds/iwildcam", "wilds/fmow"),
    *("fairness/utkface", COCO, "misc/winogavil"),
]


def fabricated(folder, **options):
    tasks = {name: task.model_dump() for name, task in datacomp_tasks().items()}
    return fabricate_datacomp(folder, tasks, images=24, processes=1, **options)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """All tasks in miniature, a model, and its results on one task of every kind; never changed."""
    root = tmp_path_factory.mktemp("datacomp")
    fabricated(root / "data")
    write_model(root / "model")
    evaluate(root / "model", root / "data", root / "out", CHOSEN, batch_size=16, workers=0, device=CPU)
    return root


@pytest.fixture
def work(shipped, tmp_path):
    """A copy to change."""
    shutil.copytree(shipped, tmp_path, dirs_exist_ok=True)
    return tmp_path


class Reference:
    """Features one image and one text at a time, in float64; samples by libraries of their own."""

    def __init__(self, root):
        self.root, self.exported = root, load_exported(root / "model", CPU)
        self.tasks = load_tasks(root / "data")

    def samples(self, name):
        folder = task_path(self.root / "data", name, self.tasks[name])
        if self.tasks[name].format == "parquet":
            return [row for file in sorted(folder.rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]
        shards = [str(folder / f"test/{n}.tar") for n in range(int((folder / "test/nshards.txt").read_text()))]
        return list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))

    def lines(self, name, file):
        return (task_path(self.root / "data", name, self.tasks[name]) / file).read_text().splitlines()

    @staticmethod
    def unit(vector):
        vector = vector.double().numpy().ravel()
        return vector / np.sqrt((vector**2).sum())

    def image(self, content):
        with torch.no_grad():
            picture = self.exported.preprocess(Image.open(io.BytesIO(content)).convert("RGB"))
            return self.unit(self.exported.model.encode_image(picture[None]))

    def image_of(self, sample):
        return self.image(next(sample[key] for key in ("jpg", "png", "webp") if key in sample))

    def text(self, text):
        with torch.no_grad():
            return self.unit(self.exported.model.encode_text(self.exported.tokenizer([text])))

    def classifier(self, names, templates):
        vectors = [np.mean([self.text(template.format(c=name)) for template in templates], axis=0) for name in names]
        return [vector / np.linalg.norm(vector) for vector in vectors]

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
def reference(shipped):
    return Reference(shipped)


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
def test_worst_group(shipped, reference, task, columns, group, hit, prefix):
    frame, metrics = reference.frame(task, columns), metrics_of(shipped, task)
    shares = frame.groupby(group)[hit].mean()
    assert metrics["acc1"] == near(frame["hit"].mean())
    assert metrics["acc5"] == (near(frame["hit5"].mean()) if prefix == "acc_top5" else None)
    assert metrics[f"{prefix}_avg"] == near(frame[hit].mean())
    assert metrics[f"{prefix}_wg"] == near(shares.min())
    for value in range(frame[group].max() + 1):  # of Camelyon17 the first twenty slides are no test slides
        assert metrics[f"{prefix}_{group}:{value}"] == (near(shares[value]) if value in shares else None)
    assert sum(count for name, count in metrics.items() if name.startswith("count_")) == len(frame)


def test_iwildcam(shipped, reference):
    frame, metrics = reference.frame("wilds/iwildcam", ()), metrics_of(shipped, "wilds/iwildcam")
    predicted, labels = [best[0] for best in frame["best"]], frame["label"]
    options = {"average": "macro", "labels": np.unique(labels), "zero_division": 0}
    assert metrics["F1-macro_all"] == near(f1_score(labels, predicted, **options))
    assert metrics["acc_avg"] == metrics["acc1"] == near(frame["hit"].mean())


def test_fmow(shipped, reference):
    frame, metrics = reference.frame("wilds/fmow", ("region", "year")), metrics_of(shipped, "wilds/fmow")
    assert metrics["acc_worst_region"] == near(frame.groupby("region")["hit"].mean().min())
    assert metrics["acc_worst_year"] == near(frame.groupby("year")["hit"].mean().min())
    assert metrics["count_region:5"] == 1
    assert metrics["count_year:13"] == 0


def test_faces(shipped, reference):
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
    frame, metrics = pd.DataFrame(rows), metrics_of(shipped, name)
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
    assert json.loads((shipped / "out/fairness-utkface.json").read_text())["score"] is None


def test_retrieval_of_parquet(shipped, reference):
    rows, metrics = reference.samples(COCO), metrics_of(shipped, COCO)
    images = [reference.image(row["image"]["bytes"]) for row in rows]
    texts = [(owner, reference.text(text)) for owner, row in enumerate(rows) for text in row["caption"]]
    assert len(texts) == 24 * 16 // 3
    for k in (1, 5, 10):
        found = [owner in np.argsort([-text @ image for image in images])[:k] for owner, text in texts]
        assert metrics[f"image_retrieval_recall@{k}"] == near(np.mean(found))
        best = [np.argsort([-image @ text for _, text in texts])[:k] for image in images]
        found = [any(texts[t][0] == i for t in order) for i, order in enumerate(best)]
        assert metrics[f"text_retrieval_recall@{k}"] == near(np.mean(found))


def test_winogavil(shipped, reference):
    scores, sizes = [], []
    for row in reference.samples("misc/winogavil"):
        cue = reference.text(("An " if row["cue"][0] in "aeiou" else "A ") + row["cue"])
        similarity = [cue @ reference.image(image["bytes"]) for image in row["candidate_images"]]
        nearest = set(np.argsort(similarity)[-row["num_associations"] :])
        expected = [name in row["associations"] for name in row["candidates"]]
        scores.append(jaccard_score(expected, [i in nearest for i in range(len(expected))]))
        sizes.append(len(expected))
    scores, sizes = np.array(scores), np.array(sizes)
    metrics = metrics_of(shipped, "misc/winogavil")
    assert metrics["avg_jaccard_score"] == near(scores.mean())
    assert metrics["jaccard_score_10-12"] == near(scores[sizes >= 10].mean())
    assert metrics["jaccard_score_5"] == near(scores[sizes == 5].mean())


def test_tasks_without_a_main_metric_have_results_and_do_not_count(shipped):
    summary = aggregate(shipped / "out", shipped / "data", CHOSEN)
    assert summary["tasks"] == len(CHOSEN) - 1
    assert "fairness/utkface" not in summary["scores"]
    with pytest.raises(UserError, match="fairness/utkface count in none"):
        aggregate(shipped / "out", shipped / "data", ["fairness/utkface"])


def test_what_is_fabricated_is_as_it_should_be(shipped):
    tasks = load_tasks(shipped / "data")
    assert list(tasks) == list(datacomp_tasks())
    assert dict(check(shipped / "data", tasks, thorough=True)) == dict.fromkeys(tasks)


def rewrite(tar, change):
    """Write the tar again; change: name and content of a member -> its new content, or None to leave it out."""
    with tarfile.open(tar) as old:
        members = [(member.name, old.extractfile(member).read()) for member in old]
    with tarfile.open(tar, "w") as new:
        for name, content in members:
            if (content := change(name, content)) is not None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))


def member(which, content):
    """A breakage of the first shard: the member gets other content."""
    return lambda folder: rewrite(folder / "test/0.tar", lambda name, old: content if name == which else old)


def npy(values):
    stream = io.BytesIO()
    np.save(stream, np.array(values))
    return stream.getvalue()


def image_of(which, content):
    def breakage(folder):
        kinds = [f"{which}.{kind}" for kind in ("jpg", "png", "webp")]
        rewrite(folder / "test/0.tar", lambda name, old: content if name in kinds else old)

    return breakage


def parquet(change):
    """A breakage of the first Parquet file: `change` spoils its list of rows."""

    def breakage(folder):
        path = folder / "TEST/test/0000.parquet"
        rows = pq.read_table(path).to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows), path)

    return breakage


def torn(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:9000])


def text(name, change):
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


BROKEN = [
    ("cifar10", shutil.rmtree, r"no folder .*wds_cifar10_test"),
    ("cifar10", torn("test/0.tar"), r"wds_cifar10_test/test/0\.tar cannot be read"),
    ("cifar10", lambda folder: (folder / "test/1.tar").unlink(), r"says 4 shards; missing: 1\.tar"),
    ("cifar10", text("test/nshards.txt", lambda _: "1"), r"wds_cifar10_test (holds 6 samples|ends after 6)"),
    ("cifar10", text("classnames.txt", lambda old: old + "one more\n"), r"classnames\.txt names 11 classes, .* has 10"),
    ("cifar10", text("zeroshot_classification_templates.txt", lambda old: "{c}"), "holds 1 templates, the task has 4"),
    ("cifar10", member("s0000003.cls", b"10"), r"0\.tar: sample s0000003: label 10 is not in \[0, 10\)"),
    ("cifar10", member("s0000003.cls", None), r"0\.tar: sample s0000003: no cls"),
    ("cifar10", image_of("s0000005", b"GIF"), r"0\.tar: sample s0000005: cannot identify"),
    ("wilds/fmow", member("s0000003.npy", npy([1, 15])), "s0000003: metadata has 2 columns, .* region, year, y"),
    ("wilds/fmow", member("s0000003.npy", npy([1, 15, 2, 0, 0])), "metadata.* has 5 columns"),
    ("wilds/iwildcam", member("s0000003.npy", npy([-1] + [0] * 9)), "s0000003: location -1 is not in"),
    ("fairness/utkface", member("s0000003.npy", npy([1, 1])), "s0000003: metadata has 2 columns, .* race_binary"),
    (
        "fairness/utkface",
        text("classnames.txt", lambda old: old + "red star\n"),
        "'red star' should begin with a question and a colon",
    ),
    ("fairness/utkface", text("classnames.txt", lambda old: old.replace("age:", "race:")), "has nothing for age"),
    (COCO, torn("TEST/test/0001.parquet"), r"0001\.parquet cannot be read"),
    (COCO, lambda folder: (folder / "TEST/test/0001.parquet").unlink(), "(holds 12 samples|ends after 12 of 24)"),
    (COCO, parquet(lambda rows: rows[3].update(caption=[])), r"0000\.parquet: sample in row 3: caption should be"),
    (COCO, parquet(lambda rows: rows[3]["caption"].pop()), "holds 127 captions, the task has 128"),
    ("misc/winogavil", parquet(lambda rows: rows[1]["candidates"].pop()), "in row 1: 6 candidate_images for 5"),
    (
        "misc/winogavil",
        parquet(lambda rows: rows[1]["candidate_images"][2].update(bytes=b"?")),
        "row 1: cannot identify",
    ),
]


@pytest.mark.parametrize(("task", "breakage", "message"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_wrong_is_named_by_check_and_by_evaluation_and_others_finish(work, task, breakage, message):
    tasks = load_tasks(work / "data")
    breakage(task_path(work / "data", task, tasks[task]))
    other = next(name for name in ("vtab/pcam", "wilds/camelyon17") if name != task)
    problems = dict(check(work / "data", {name: tasks[name] for name in (task, other)}))
    assert problems[other] is None
    with pytest.raises(UserError, match=message):
        raise UserError(problems[task])
    with pytest.raises(UserError, match=f"(?s)1 of 2 tasks failed.*{task}: .*{message}"):
        evaluate(work / "model", work / "data", work / "new", [task, other], batch_size=16, workers=0, device=CPU)
    left = {path.name for path in (work / "new").glob("*.json")}
    assert left == {f"{task.replace('/', '-')}.error.json", f"{other.replace('/', '-')}.json"}


def test_check_decodes_every_image_when_it_is_to_be_thorough(work):
    tasks = load_tasks(work / "data")
    folder = task_path(work / "data", "stl10", tasks["stl10"])
    with tarfile.open(folder / "test/0.tar") as tar:
        kind = next(name for name in tar.getnames() if name.endswith(("jpg", "png")))
        content = tar.extractfile(kind).read()
    member(kind, content[: len(content) // 2])(folder)
    chosen = {"stl10": tasks["stl10"]}
    assert dict(check(work / "data", chosen)) == {"stl10": None}  # the header is whole
    assert "truncated" in dict(check(work / "data", chosen, thorough=True))["stl10"]


def test_the_command_ends_with_2_and_names_the_task(work):
    (work / "data/wds_stl10_test/classnames.txt").unlink()
    done = CliRunner().invoke(main, ["eval-data", "check", str(work / "data"), "--tasks", "stl10,cars"])
    assert done.exit_code == 2
    assert "classnames.txt is missing" in done.output
    assert "cars: 24 samples, as they should be" in done.output
    assert "1 of 2 tasks are not as they should be" in done.output
    assert CliRunner().invoke(main, ["eval-data", "check", str(work / "data"), "--tasks", "cars"]).exit_code == 0
