"""The suite: scores equal an image-by-image reference in float64, a rerun does only what is missing
or stale, a broken task fails alone, and an average is of all expected tasks or not given.
"""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_support import COLOURS, write_folder, write_model, write_suite, write_tasks_file
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.evaluation import measure, results
from pipeline.evaluation.aggregate import aggregate
from pipeline.evaluation.encoder import Encoder
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.suite import evaluate
from pipeline.evaluation.tasks import load_tasks
from pipeline.files import sha256_file
from pipeline.models.two_tower import WEIGHTS_FILE, load_exported

CPU = torch.device("cpu")
TASKS = ["colours", "some/groups", "captions"]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A model, a suite and its results, never changed; and the samples of the suite."""
    root = tmp_path_factory.mktemp("evaluation")
    write_model(root / "model")
    samples = write_suite(root / "data")
    evaluate(root / "model", root / "data", root / "out", batch_size=8, workers=0, device=CPU)
    return root, samples


@pytest.fixture
def work(shipped, tmp_path):
    """A copy of it to change."""
    shutil.copytree(shipped[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(root, **options):
    return evaluate(
        root / "model",
        root / "data",
        root / "out",
        **{"workers": 0, "device": CPU, "batch_size": 8, **options},
    )


def ran(root, **options):
    """The tasks that are evaluated again, by whether their progress came in batches."""
    calls = []
    run(root, progress=lambda task, *_: calls.append(task), **options)
    return sorted(task for task in set(calls) if calls.count(task) > 1)


class Reference:
    """Features one image and one text at a time, in float64."""

    def __init__(self, model):
        self.exported = load_exported(model, CPU)

    @staticmethod
    def unit(vector):
        vector = vector.double().numpy().ravel()
        return vector / np.sqrt((vector**2).sum())

    def image(self, sample):
        (content,) = (value for key, value in sample.items() if key in ("png", "jpg", "webp", "jpeg"))
        picture = self.exported.preprocess(Image.open(io.BytesIO(content)).convert("RGB"))
        with torch.no_grad():
            return self.unit(self.exported.model.encode_image(picture[None]))

    def text(self, text):
        with torch.no_grad():
            return self.unit(self.exported.model.encode_text(self.exported.tokenizer([text])))

    def predictions(self, samples):
        """Classes by falling score, per sample."""
        templates = ("a photo of a {c} thing.", "{c}", "all of it is {c}")
        classes = [
            sum(self.text(template.format(c=name)) for template in templates) / len(templates) for name in COLOURS
        ]
        classes = [vector / np.linalg.norm(vector) for vector in classes]
        return [np.argsort([-self.image(sample) @ vector for vector in classes]) for sample in samples]


def test_classification_and_groups_equal_an_image_by_image_reference(shipped):
    root, samples = shipped
    ranked = Reference(root / "model").predictions(samples["colours"])
    labels = [sample["cls"] for sample in samples["colours"]]
    hit = [order[0] == label for order, label in zip(ranked, labels, strict=True)]
    assert len({order[0] for order in ranked}) >= 3
    recalls = [np.mean([h for h, x in zip(hit, labels, strict=True) if x == c]) for c in set(labels)]
    metrics = json.loads((root / "out/colours.json").read_text())["metrics"]
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
    result = json.loads((root / "out/some-groups.json").read_text())
    expected = {**metrics, "acc_avg": np.mean(hit), "acc_wg": min(map(np.mean, by_group))}
    for name, members in zip(("north", "south", "alone"), by_group, strict=True):
        expected |= {f"acc_place:{name}": np.mean(members), f"count_place:{name}": len(members)}
    assert result["metrics"].pop("acc_place:nobody") is None
    assert result["metrics"].pop("count_place:nobody") == 0
    assert result["metrics"] == pytest.approx(expected, abs=1e-9)
    assert result["score"] == result["metrics"]["acc_wg"]


def test_retrieval_equals_an_image_by_image_reference(shipped):
    root, samples = shipped
    reference = Reference(root / "model")
    images = [reference.image(sample) for sample in samples["captions"]]
    captions = [(i, text) for i, s in enumerate(samples["captions"]) for text in s["txt"].split("\n")]
    assert len(captions) > len(images)
    texts = [reference.text(text) for _, text in captions]
    owner = [image for image, _ in captions]
    metrics = json.loads((root / "out/captions.json").read_text())["metrics"]
    for k in (1, 5, 10):
        found = [owner[t] in np.argsort([-text @ i for i in images])[:k] for t, text in enumerate(texts)]
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(np.mean(found), abs=1e-9)
        best = [np.argsort([-image @ text for text in texts])[:k] for image in images]
        found = [any(owner[t] == i for t in order) for i, order in enumerate(best)]
        assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(np.mean(found), abs=1e-9)


def test_a_result_says_what_produced_it(shipped):
    root, _ = shipped
    result = json.loads((root / "out/captions.json").read_text())
    assert result["task"] == "captions"
    assert result["kind"] == "retrieval"
    assert (result["n"], result["chance"]) == (29, 1 / 29)
    assert result["score"] == result["metrics"][result["main_metric"]]
    assert result["model"] == "model"
    assert result["precision"] == "fp32"
    assert result["checkpoint_sha256"] == sha256_file(root / "model" / WEIGHTS_FILE)
    assert result["libraries"]["torch"] == torch.__version__.split("+")[0]
    assert result["seconds"] > 0
    for stamp in ("task_hash", "data_fingerprint", "model_config_sha256", "code_version"):
        assert result[stamp]


def test_scores_do_not_depend_on_loader_processes(shipped, tmp_path):
    root, _ = shipped
    again = evaluate(root / "model", root / "data", tmp_path, batch_size=8, workers=2, device=CPU)
    for result in again:
        before = json.loads(results.result_path(root / "out", result["task"]).read_text())
        assert result["metrics"] == before["metrics"]


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


def change_weights(root):
    weights = load_file(root / "model" / WEIGHTS_FILE)
    weights["text_projection"] = weights["text_projection"].flip(0).contiguous()
    save_file(weights, root / "model" / WEIGHTS_FILE)


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


def test_bf16_features_are_near_the_fp32_ones_but_not_equal(shipped):
    exported = load_exported(shipped[0] / "model", CPU)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact, rounded = (
        Encoder(exported, CPU, precision).encode_images(images, ["a"] * 4) for precision in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32
    difference = (exact - rounded).abs().max()
    assert 1e-5 < difference < 5e-2


def test_tasks_with_the_same_classes_and_templates_share_a_classifier(shipped):
    encoder = Encoder(load_exported(shipped[0] / "model", CPU), CPU)
    first = encoder.classifier(["a", "b"], ["{c}", "no {c}"])
    assert encoder.classifier(("a", "b"), ("{c}", "no {c}")) is first
    assert not torch.equal(encoder.classifier(["b", "a"], ["{c}", "no {c}"]), first)
    assert not torch.equal(encoder.classifier(["a", "b"], ["{c}"]), first)


def test_a_classifier_made_in_passes_equals_one_made_class_by_class(shipped):
    encoder = Encoder(load_exported(shipped[0] / "model", CPU), CPU)
    names, templates = [f"thing {n}" for n in range(150)], ["a {c}", "{c}", "the {c} {c}"]
    together = encoder.classifier(names, templates)
    for column, name in list(enumerate(names))[::29]:
        assert torch.allclose(together[:, column], encoder.classifier([name], templates)[:, 0], atol=1e-6)


def cut_shard(folder):
    shard = folder / "test/1.tar"
    shard.write_bytes(shard.read_bytes()[:9000])


def cut_shard_between_members(folder):
    shard = folder / "test/1.tar"
    with tarfile.open(shard) as tar:
        cut = next(member for member in tar if member.name.startswith("s0000020")).offset
    shard.write_bytes(shard.read_bytes()[:cut])


def drop_a_class(folder):
    path = folder / "classnames.txt"
    path.write_text("\n".join(path.read_text().split()[1:]))


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (shutil.rmtree, "no folder"),
        (cut_shard, "test/1.tar cannot be read"),
        (cut_shard_between_members, "ends after 20 of 29 samples"),
        (drop_a_class, "names 6 classes, the task has 7"),
        (lambda folder: (folder / "test/nshards.txt").write_text("1"), "ends after 14 of 29 samples"),
        (lambda folder: shutil.copy(folder / "test/0.tar", folder / "test/1.tar"), "ends after 28 of 29"),
    ],
)
def test_a_broken_task_fails_alone(work, breakage, message):
    breakage(work / "data/wds_colours_test")
    change_weights(work)  # so that the others have something to do
    with pytest.raises(UserError, match=message) as caught:
        run(work)
    assert str(caught.value).startswith("1 of 3 tasks failed")
    assert "colours: " in str(caught.value)
    assert not (work / "out/colours.json").exists()
    error = json.loads((work / "out/colours.error.json").read_text())
    assert message in error["error"]
    checkpoint = sha256_file(work / "model" / WEIGHTS_FILE)
    for name in ("captions", "some-groups"):
        assert json.loads((work / f"out/{name}.json").read_text())["checkpoint_sha256"] == checkpoint
    with pytest.raises(UserError, match="colours: failed: .*" + message):
        aggregate(work / "out", work / "data")


def test_a_mended_task_leaves_no_error_behind(work):
    folder = work / "data/wds_colours_test"
    content = (folder / "classnames.txt").read_bytes()
    drop_a_class(folder)
    with pytest.raises(UserError):
        run(work)
    (folder / "classnames.txt").write_bytes(content)
    assert ran(work) == ["colours"]
    assert not (work / "out/colours.error.json").exists()
    assert aggregate(work / "out", work / "data")["tasks"] == 3


@pytest.mark.parametrize("change", [-1, 1])
def test_more_or_fewer_samples_than_defined_fail(work, change):
    text = (work / "data/tasks.yaml").read_text()
    (work / "data/tasks.yaml").write_text(text.replace("size: 29", f"size: {29 + change}"))
    with pytest.raises(UserError, match="3 of 3 tasks failed") as caught:
        run(work)
    assert str(caught.value).count("holds more than" if change < 0 else "ends after 29 of 30") == 3


def test_captions_are_counted_and_required(work):
    write_tasks_file(
        work / "data",
        {
            "captions": {
                "kind": "retrieval",
                "title": "C",
                "size": 29,
                "captions": 99,
                "main_metric": "mean_recall@1",
                "chance": 0.1,
            }
        },
    )
    with pytest.raises(UserError, match="holds 57 captions, the task has 99"):
        run(work)
    samples = write_suite(work / "other")["captions"]
    samples[3]["txt"] = ""
    write_folder(work / "data", "captions", samples, shards=3)
    with pytest.raises(UserError, match=r"s0000003: no caption"):
        run(work)


@pytest.mark.parametrize("parameter", ["visual.proj", "text_projection"])
def test_features_that_are_not_finite_fail_the_task(work, parameter):
    write_model(work / "model", poison=parameter)
    with pytest.raises(UserError, match="3 of 3 tasks failed") as caught:
        run(work)
    what = "image" if parameter == "visual.proj" else "text"
    assert str(caught.value).count(f"non-finite {what} features") == 3
    if what == "image":
        assert "test/0.tar: sample s0000000" in str(caught.value)


def test_an_unforeseen_failure_keeps_its_traceback_in_the_error_file(work, monkeypatch):
    def broken(run):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(KINDS, "retrieval", KINDS["retrieval"]._replace(rows=broken))
    with pytest.raises(UserError, match="captions: RuntimeError: out of memory") as caught:
        run(work, force=True)
    assert "Traceback" not in str(caught.value)
    assert "in broken" in json.loads((work / "out/captions.error.json").read_text())["traceback"]


def test_what_is_no_model_ends_at_once(work):
    (work / "model" / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match=r"is not an exported model.*neuclip export"):
        run(work)
    with pytest.raises(UserError, match="is not an exported model"):
        evaluate(work / "nowhere", work / "data", work / "out")
    with pytest.raises(UserError, match="no task 'colors'"):
        run(work, tasks=["colors"])
    assert not list((work / "out").glob("*.error.json"))


def test_the_average_is_of_all_expected_tasks(work):
    summary = aggregate(work / "out", work / "data")
    assert summary == json.loads((work / "out/aggregate.json").read_text())
    assert list(summary["scores"]) == TASKS
    scores = [json.loads(results.result_path(work / "out", task).read_text())["score"] for task in TASKS]
    assert summary["tasks"] == 3
    assert summary["average"] == pytest.approx(sum(scores) / 3, abs=1e-12)
    assert summary["scores"]["captions"] == {
        "title": "Captions",
        "score": scores[2],
        "chance": 1 / 29,
        "main_metric": "mean_recall@1",
    }
    assert summary["checkpoint_sha256"] == sha256_file(work / "model" / WEIGHTS_FILE)


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


def test_results_of_two_models_have_no_average(work):
    change_weights(work)
    run(work, tasks=["captions"])
    with pytest.raises(UserError, match="of 2 models") as caught:
        aggregate(work / "out", work / "data")
    assert "colours, some/groups" in str(caught.value)


def test_the_documented_task_entries_are_valid(tmp_path):
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    (tmp_path / "tasks.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    assert {task.kind for task in load_tasks(tmp_path).values()} == {"classification", "worst_group", "retrieval"}
    assert all(f"| `{kind}` |" in text for kind in KINDS)
