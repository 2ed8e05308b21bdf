"""`neuclip evaluate --fabricated` and `neuclip aggregate`: 40 results, the average of 38 or none of that name."""

import json
import shutil
import statistics
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from evaluation_support import TASKS, change_weights, run

from pipeline import evaluation
from pipeline.cli import main
from pipeline.cli.evaluate import UNTRAINED_MODEL
from pipeline.errors import UserError
from pipeline.evaluation.aggregate import aggregate
from pipeline.evaluation.results import code_version, result_path
from pipeline.evaluation.tasks import datacomp_tasks, file_name
from pipeline.files import sha256_file
from pipeline.models.two_tower import WEIGHTS_FILE

# What the official aggregate_scores.py averages, by the titles in eval_results.jsonl.
GROUPS = {
    "imagenet_shifts": {"ImageNet Sketch", "ImageNet v2", "ImageNet-A", "ImageNet-O", "ImageNet-R", "ObjectNet"},
    "vtab": {
        *("Caltech-101", "CIFAR-100", "CLEVR Counts", "CLEVR Distance", "Describable Textures", "EuroSAT"),
        *("KITTI Vehicle Distance", "Oxford Flowers-102", "Oxford-IIIT Pet", "PatchCamelyon", "RESISC45"),
        *("SVHN", "SUN397"),
    },
    "retrieval": {"Flickr", "MSCOCO", "WinoGAViL"},
}
AVERAGES = ("aggregate.json", "eval_results.jsonl")


def neuclip(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results of all 40 tasks, never changed."""
    out = tmp_path_factory.mktemp("fabricated")
    assert neuclip("eval-data", "fabricate", out / "evaldata", "--images", 16, "--processes", 1).exit_code == 0
    ended = neuclip("evaluate", "--fabricated", "--tasks", "all", "--out", out, "--workers", 0)
    assert ended.exit_code == 0, ended.output
    return out, ended.output


@pytest.fixture
def out(finished, tmp_path):
    """A copy of them to change; the data is shared."""
    for path in finished[0].glob("*.json*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "evaldata").symlink_to(finished[0] / "evaldata")
    return tmp_path


def test_all_40_tasks_have_a_result_that_says_of_which_model(finished):
    out, _ = finished
    expected = {f"{file_name(name)}.json" for name in datacomp_tasks()}
    assert {path.name for path in out.glob("*.json")} == expected | {"aggregate.json"}
    assert len(expected) == 40
    assert {read(out / name)["model"] for name in expected} == {"tiny-with-random-weights"}
    assert read(out / "aggregate.json")["model"] == "tiny-with-random-weights"


def test_the_average_is_of_38_and_groups_are_the_official_ones(finished):
    out, output = finished
    lines = [json.loads(line) for line in (out / "eval_results.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} == set(datacomp_tasks())
    scores = {line["dataset"]: line["metrics"]["main_metric"] for line in lines}
    averaged = {title: score for title, score in scores.items() if score is not None}
    assert set(scores) - set(averaged) == {"FairFace", "UTKFace"}
    summary = read(out / "aggregate.json")
    assert summary["tasks"] == len(averaged) == 38
    assert summary["average"] == pytest.approx(statistics.mean(averaged.values()), abs=1e-12)
    assert summary["groups"]["imagenet"]["mean"] == averaged["ImageNet 1k"]
    for group, titles in GROUPS.items():
        expected = {"tasks": len(titles), "mean": statistics.mean(averaged[title] for title in titles)}
        assert summary["groups"][group] == pytest.approx(expected, abs=1e-12)
    assert summary["groups"]["fairness"]["tasks"] == 2
    last = output.splitlines()[-1].split()
    assert last == ["average", "mean", "of", "38", f"{summary['average']:.4f}"]
    fmow = next(line["metrics"] for line in lines if line["key"] == "wilds/fmow")
    assert fmow == {**read(out / "wilds-fmow.json")["metrics"], "main_metric": fmow["acc_worst_region"]}


@pytest.mark.parametrize("task", ["vtab/pets", "fairness/utkface"])
def test_without_one_result_there_is_no_average_but_a_partial_mean(out, task):
    (out / f"{file_name(task)}.json").unlink()
    ended = neuclip("aggregate", out)
    assert ended.exit_code == 2
    assert f"{task}: missing" in ended.output
    assert not any((out / name).exists() for name in AVERAGES)
    ended = neuclip("aggregate", out, "--partial")
    assert ended.exit_code == 0, ended.output
    summary = read(out / "aggregate.json")
    counted = [read(path).get("score") for path in out.glob("*.json") if path.name != "aggregate.json"]
    scores = [score for score in counted if score is not None]
    assert "average" not in summary
    assert summary["partial_mean"] == pytest.approx(statistics.mean(scores), abs=1e-12)
    assert (summary["tasks"], summary["of"]) == (len(scores), 38)
    assert summary["left_out"] == {task: "missing"}
    assert ("vtab" in summary["groups"]) == (task != "vtab/pets")
    assert f"not counted: {task}: missing" in ended.output
    assert "partial mean, no average" in ended.output
    assert not (out / "eval_results.jsonl").exists()


def test_a_stale_result_leaves_no_average(out):
    path = out / "cifar10.json"
    path.write_text(json.dumps({**read(path), "code_version": "0.0.1+older"}))
    ended = neuclip("aggregate", out)
    assert ended.exit_code == 2
    assert "cifar10: stale" in ended.output
    assert "stl10" not in ended.output


def test_chosen_tasks_have_a_partial_mean(out):
    ended = neuclip("aggregate", out, "--tasks", "mnist,stl10")
    assert ended.exit_code == 0, ended.output
    summary = read(out / "aggregate.json")
    assert "average" not in summary
    assert list(summary["scores"]) == ["mnist", "stl10"]
    assert len(summary["left_out"]) == 36
    assert set(summary["left_out"].values()) == {"not chosen"}
    assert not (out / "eval_results.jsonl").exists()


def test_a_task_of_ones_own_leaves_datacomps_average_as_it_is(out, tmp_path):
    before = read(out / "aggregate.json")["average"]
    data = tmp_path / "data"
    data.mkdir()
    for path in (out / "evaldata").iterdir():
        (data / path.name).symlink_to(path)
    (data / "wds_mine_test").symlink_to(data / "wds_stl10_test")
    entries = yaml.safe_load((data / "tasks.yaml").read_text())
    mine = {"kind": "classification", "title": "Mine", "size": 16, "classes": 10, "main_metric": "acc1", "chance": 0.1}
    (data / "tasks.yaml").unlink()
    (data / "tasks.yaml").write_text(yaml.safe_dump({**entries, "mine": mine}, sort_keys=False))
    model = (out / "evaldata").resolve().parent / UNTRAINED_MODEL
    ended = neuclip("evaluate", model, "--data", data, "--out", out, "--workers", 0, "--tasks", "mine")
    assert ended.exit_code == 0, ended.output
    alone = read(out / "aggregate.json")
    assert (alone["tasks"], alone["partial_mean"]) == (0, None)
    assert alone["groups"] == {"own": {"tasks": 1, "mean": alone["scores"]["mine"]["score"]}}
    ended = neuclip("aggregate", out, "--data", data)
    assert ended.exit_code == 0, ended.output
    summary = read(out / "aggregate.json")
    assert (summary["tasks"], summary["average"]) == (38, before)
    assert summary["groups"]["own"]["mean"] == read(out / "stl10.json")["score"]
    assert summary["scores"]["mine"]["title"] == "Mine"
    (out / "stl10.json").unlink()
    partial = neuclip("aggregate", out, "--data", data, "--partial")
    assert partial.exit_code == 0, partial.output
    assert (read(out / "aggregate.json")["tasks"], read(out / "aggregate.json")["of"]) == (37, 38)


def test_where_nothing_is_named_it_says_what_to_name(tmp_path):
    assert "MODEL is missing" in neuclip("evaluate", "--data", tmp_path, "--out", tmp_path).output
    assert "--data is missing" in neuclip("evaluate", tmp_path, "--out", tmp_path).output
    assert "leave out --data" in neuclip("evaluate", "--fabricated", "--data", tmp_path, "--out", tmp_path).output
    assert "say with --data" in neuclip("aggregate", tmp_path).output


@pytest.mark.parametrize(
    "module",
    [
        "classification",
        "kinds/fmow",
        "reading",
        "tar_members",
        "encoder",
        "tasks",
        "suite",
        "check",
        "results",
        "of_checkpoint",
    ],
)
def test_code_that_decides_no_score_makes_no_result_stale(tmp_path, module):
    package = tmp_path / "evaluation"
    shutil.copytree(Path(evaluation.__file__).parent, package)
    before = code_version(package)
    assert before == code_version()
    with open(package / f"{module}.py", "a") as stream:
        stream.write("\n# another line\n")
    code_version.cache_clear()
    assert (code_version(package) == before) == (module in ("check", "results", "of_checkpoint"))


def test_the_average_is_of_all_expected_tasks(work):
    summary = aggregate(work / "out", work / "data")
    assert summary == json.loads((work / "out/aggregate.json").read_text())
    assert list(summary["scores"]) == TASKS
    scores = [json.loads(result_path(work / "out", task).read_text())["score"] for task in TASKS]
    assert summary["tasks"] == 3
    assert summary["average"] == pytest.approx(sum(scores) / 3, abs=1e-12)
    assert summary["scores"]["captions"] == {
        "title": "Captions",
        "score": scores[2],
        "chance": 1 / 29,
        "main_metric": "mean_recall@1",
    }
    assert summary["checkpoint_sha256"] == sha256_file(work / "model" / WEIGHTS_FILE)


def test_results_of_two_models_have_no_average(work):
    change_weights(work)
    run(work, tasks=["captions"])
    with pytest.raises(UserError, match="of 2 models") as caught:
        aggregate(work / "out", work / "data")
    assert "colours, some/groups" in str(caught.value)
