"""A task that cannot be scored fails by itself, with the reason and the file; the others finish."""

import json
import shutil
import tarfile

import pytest
from evaluation_support import change_weights, ran, run, write_folder, write_model, write_suite, write_tasks_file

from pipeline.errors import UserError
from pipeline.evaluation.aggregate import aggregate
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.suite import evaluate
from pipeline.files import sha256_file
from pipeline.launch.evaluation_progress import evaluation_progress
from pipeline.models.two_tower import WEIGHTS_FILE


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


def test_a_main_metric_that_counts_no_sample_fails_the_task(work, monkeypatch):
    nothing = dict.fromkeys(("mean_recall@1", "image_retrieval_recall@1"))
    monkeypatch.setitem(KINDS, "retrieval", KINDS["retrieval"]._replace(metrics=lambda task, rows: nothing))
    with pytest.raises(UserError, match=r"1 of 3 tasks failed(?s:.*)captions: .* no sample that counts for mean_rec"):
        run(work, force=True)
    with pytest.raises(UserError, match=r"captions: failed: .*no sample that counts"):
        aggregate(work / "out", work / "data")


def test_a_line_of_progress_is_one_line(capsys):
    name = "retrieval/mscoco_2014_5k_test_image_text_retrieval"
    with evaluation_progress() as report:
        for done in (0, 48):
            report(name, done, 48, done / 48)
        report("another/task_with_a_long_name_that_stands_already" * 2, 48, 48, 1.0)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{name}: 48 images")
    assert "100% of the work, 0:00:00 left, until" in first
    assert second.endswith(": stands")


def test_what_is_no_model_ends_at_once(work):
    (work / "model" / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match=r"is not an exported model.*neuclip export"):
        run(work)
    with pytest.raises(UserError, match="is not an exported model"):
        evaluate(work / "nowhere", work / "data", work / "out")
    with pytest.raises(UserError, match="no task 'colors'"):
        run(work, tasks=["colors"])
    assert not list((work / "out").glob("*.error.json"))
