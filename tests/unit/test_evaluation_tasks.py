"""tasks.yaml and task folders: what is wrong in them is said before anything is computed, and any change of
the data is seen in its fingerprint.
"""

import os
from collections import Counter
from pathlib import Path

import pytest
import yaml
from evaluation_support import open_folder, write_folder, write_tasks_file

from data_prep.fabricate.evaldata import EvalSample, EvalTask, write_tasks
from pipeline.errors import UserError
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.metadata import ParseMetadata
from pipeline.evaluation.samples import read_samples
from pipeline.evaluation.tasks import datacomp_tasks, load_tasks, select_tasks, task_path

CLASSIFICATION = {
    "kind": "classification",
    "title": "T",
    "size": 4,
    "classes": 3,
    "main_metric": "acc1",
    "chance": 0.25,
}
RETRIEVAL = {"kind": "retrieval", "title": "R", "size": 4, "main_metric": "mean_recall@1", "chance": 0.25}
GROUPS = {
    **CLASSIFICATION,
    "kind": "worst_group",
    "main_metric": "acc_wg",
    "columns": ["place", "y"],
    "group_by": "place",
    "group_names": ["a", "b"],
}


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


def test_tasks_keep_their_order(tmp_path):
    write_tasks_file(tmp_path, {"z": CLASSIFICATION, "vtab/r": RETRIEVAL, "a-b": GROUPS})
    tasks = load_tasks(tmp_path)
    assert list(tasks) == ["z", "vtab/r", "a-b"]
    assert tasks["a-b"].group_names == ("a", "b")
    assert list(select_tasks(tasks, "all")) == ["z", "vtab/r", "a-b"]
    assert list(select_tasks(tasks, ["a-b", "z", "a-b"])) == ["a-b", "z"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**CLASSIFICATION, "clases": 3}, "t: unknown key 'clases': did you mean 'classes'"),
        ({**CLASSIFICATION, "kind": "classify"}, "t: kind: Input should be 'classification'"),
        ({**CLASSIFICATION, "main_metric": "mean_recall@1"}, "main_metric of kind classification is acc1"),
        ({**CLASSIFICATION, "size": 0}, "t: size"),
        ({**CLASSIFICATION, "chance": 25}, "t: chance"),
        ({**CLASSIFICATION, "captions": 4}, "captions belongs to"),
        ({**CLASSIFICATION, "group_names": ["a"]}, "group_names belongs to kind worst_group, not to classification"),
        (without(CLASSIFICATION, "classes"), "kind classification needs classes"),
        (without(CLASSIFICATION, "main_metric"), "main_metric of kind classification is acc1 or .*, not None"),
        (without(CLASSIFICATION, "chance"), "in the average has a main_metric and a chance"),
        (without(CLASSIFICATION, "title"), "t: title: Field required"),
        ({**RETRIEVAL, "classes": 3}, "classes belongs to"),
        ({**RETRIEVAL, "templates": 3}, "templates belongs to"),
        (without(GROUPS, "group_by"), "kind worst_group needs group_by"),
        ({**GROUPS, "group_by": "time"}, "group_by 'time' is none of the columns place, y"),
        ({**GROUPS, "columns": ["place", "place"]}, "columns holds a name twice"),
        ({**GROUPS, "top": 5}, "goes with top: 5"),
        ({**GROUPS, "main_metric": "acc_top5_wg"}, "goes with top: 5"),
        ({**GROUPS, "main_metric": "acc_top5_wg", "top": 5}, "needs at least 5 classes, not 3"),
        ({**CLASSIFICATION, "folder": "../elsewhere"}, "should be a path below"),
        ({**CLASSIFICATION, "format": "parquet"}, "format parquet belongs to"),
        ({**RETRIEVAL, "kind": "winogavil", "main_metric": "avg_jaccard_score"}, "winogavil comes in format parquet"),
        ({**GROUPS, "group_names": ["a", "a"]}, "holds a name twice"),
        ("acc1", "t: should be a mapping"),
    ],
)
def test_a_wrong_definition_names_file_task_and_key(tmp_path, entry, message):
    write_tasks_file(tmp_path, {"good": CLASSIFICATION, "t": entry})
    with pytest.raises(UserError, match=message) as caught:
        load_tasks(tmp_path)
    assert "tasks.yaml" in str(caught.value)


@pytest.mark.parametrize("name", ["../t", "a b", "/t", "t/", "x.error", "", 7])
def test_a_name_that_would_leave_the_folder_is_refused(tmp_path, name):
    write_tasks_file(tmp_path, {name: CLASSIFICATION})
    with pytest.raises(UserError, match="is not a task name"):
        load_tasks(tmp_path)


def test_the_name_of_the_average_is_refused(tmp_path):
    write_tasks_file(tmp_path, {"aggregate": CLASSIFICATION})
    with pytest.raises(UserError, match="'aggregate' is no name for a task"):
        load_tasks(tmp_path)


def test_tasks_that_share_a_folder_are_refused(tmp_path):
    write_tasks_file(tmp_path, {"a/b": CLASSIFICATION, "a-b": CLASSIFICATION})
    with pytest.raises(UserError, match=r"tasks 'a/b' and 'a-b' would share 'a-b\.json'"):
        load_tasks(tmp_path)
    write_tasks_file(tmp_path, {"a": CLASSIFICATION, "b": {**CLASSIFICATION, "folder": "wds_a_test"}})
    with pytest.raises(UserError, match="would share 'wds_a_test'"):
        load_tasks(tmp_path)


def test_no_tasks_and_unknown_tasks(tmp_path):
    with pytest.raises(UserError, match=r"no tasks\.yaml in"):
        load_tasks(tmp_path)
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({}))
    with pytest.raises(UserError, match="lists no tasks"):
        load_tasks(tmp_path)
    write_tasks_file(tmp_path, {"colours": CLASSIFICATION})
    with pytest.raises(UserError, match=r"no task 'colors'.*has colours"):
        select_tasks(load_tasks(tmp_path), ["colors"])
    with pytest.raises(UserError, match="no task chosen"):
        select_tasks(load_tasks(tmp_path), [])


def test_datacomp_is_forty_tasks_of_which_thirty_eight_count():
    tasks = datacomp_tasks()
    assert len(tasks) == 40
    assert {name for name, task in tasks.items() if not task.in_average} == {"fairness/fairface", "fairness/utkface"}
    members = Counter(group for task in tasks.values() for group in task.groups)
    assert members == {"imagenet": 1, "imagenet_shifts": 6, "vtab": 13, "retrieval": 3, "wilds": 3, "fairness": 4}
    assert {task.main_metric for task in tasks.values()} - {"acc1", "mean_per_class_recall", None} == {
        *("mean_recall@1", "jaccard_score_10-12", "F1-macro_all", "acc_worst_region", "acc_wg", "acc_top5_wg")
    }
    assert all(task.cost and task.repository for task in tasks.values())
    assert task_path(Path("d"), "vtab/cifar100", tasks["vtab/cifar100"]) == Path("d/wds_vtab-cifar100_test")
    assert task_path(Path("d"), "fairness/geode", tasks["fairness/geode"]) == Path("d/wds_geode_test")
    assert task_path(Path("d"), "misc/winogavil", tasks["misc/winogavil"]) == Path("d/nlphuji/winogavil")
    for task in tasks.values():  # the hub calls them as the evaluation does
        assert (task.repository or "").endswith(task.folder or "")


def test_a_folder_without_tasks_file_is_datacomps_and_one_can_be_laid_over_them(tmp_path):
    (tmp_path / "wds_cifar10_test").mkdir()
    assert load_tasks(tmp_path) == datacomp_tasks()
    entries = {"extends": "datacomp", "mine": CLASSIFICATION, "cifar10": {"size": 7}}
    write_tasks_file(tmp_path, entries)
    tasks = load_tasks(tmp_path)
    assert list(tasks) == [*datacomp_tasks(), "mine"]
    assert tasks["cifar10"] == datacomp_tasks()["cifar10"].model_copy(update={"size": 7, "cost": 18 * 7 / 10_000})
    assert tasks["stl10"] == datacomp_tasks()["stl10"]
    write_tasks_file(tmp_path, {"extends": "imagenet", "mine": CLASSIFICATION})
    with pytest.raises(UserError, match="only datacomp can be extended, not 'imagenet'"):
        load_tasks(tmp_path)


def test_what_is_added_to_datacomps_tasks_counts_in_no_mean_of_theirs(tmp_path):
    mine = {"mine": CLASSIFICATION, "other": {**CLASSIFICATION, "groups": ["shapes"]}}
    write_tasks_file(tmp_path, {"extends": "datacomp", **mine, "cifar10": {"groups": ["vtab"]}})
    tasks = load_tasks(tmp_path)
    assert [tasks[name].groups for name in ("mine", "other", "cifar10")] == [("own",), ("shapes", "own"), ("vtab",)]
    assert sum(task.in_the_average for task in tasks.values()) == 38
    write_tasks_file(tmp_path, mine)
    assert all(task.in_the_average and "own" not in task.groups for task in load_tasks(tmp_path).values())
    write_tasks_file(tmp_path, {"extends": "datacomp", "mine": {**CLASSIFICATION, "groups": ["wilds"]}})
    with pytest.raises(UserError, match=r"tasks\.yaml: mine: the group wilds is DataComp's"):
        load_tasks(tmp_path)


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda folder: os.rename(folder, f"{folder}_"), "no folder .*wds_a-b_test"),
        (lambda folder: (folder / "test/nshards.txt").unlink(), r"nshards\.txt is missing"),
        (lambda folder: (folder / "test/nshards.txt").write_text("two"), "should hold the number of shards"),
        (lambda folder: (folder / "test/nshards.txt").write_text("0"), "says 0 shards"),
        (lambda folder: (folder / "test/nshards.txt").write_text("4"), r"missing: 2\.tar, 3\.tar"),
        (lambda folder: (folder / "test/1.tar").unlink(), r"missing: 1\.tar"),
    ],
)
def test_an_incomplete_folder_is_named(tmp_path, breakage, message):
    folder = write_folder(tmp_path, "a/b", [{"cls": 0}] * 4, shards=2)
    open_folder(tmp_path, "a/b")
    breakage(folder)
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path, "a/b")


def test_class_names_and_templates_are_checked(tmp_path):
    path = write_folder(tmp_path, "t", [{"cls": 0}], ["cat", "", " dog "], ["a {c}.", "{c}"], shards=1)
    folder = open_folder(tmp_path, "t")
    assert folder.classnames(2) == ["cat", "dog"]
    assert folder.templates(2) == folder.templates(None) == ["a {c}.", "{c}"]
    with pytest.raises(UserError, match=r"classnames\.txt names 2 classes, the task has 3"):
        folder.classnames(3)
    with pytest.raises(UserError, match="holds 2 templates, the task has 5"):
        folder.templates(5)
    for bad in ("a photo", "a {class}", "{}", "{c", "{c.x}"):
        (path / "zeroshot_classification_templates.txt").write_text(f"{{c}}\n{bad}\n")
        with pytest.raises(UserError, match="should hold the class as"):
            folder.templates(None)
    (path / "classnames.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        folder.classnames(1)
    (path / "classnames.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        folder.classnames(1)
    (path / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"classnames\.txt is missing"):
        folder.classnames(1)


def test_the_fingerprint_sees_every_change_and_no_copy(tmp_path):
    def fingerprint(data, labels=(0, 1, 2), names=("a", "b"), templates=("{c}",), shards=2):
        write_folder(data, "t", [{"cls": label} for label in labels], names, templates, shards)
        return open_folder(data, "t").fingerprint()

    first = fingerprint(tmp_path / "0")
    path = tmp_path / "0/wds_t_test"
    os.utime(path / "classnames.txt", (1, 1))
    os.rename(tmp_path / "0", tmp_path / "moved")
    assert open_folder(tmp_path / "moved", "t").fingerprint() == first
    changed = [
        fingerprint(tmp_path / "1", labels=(0, 1, 1)),
        fingerprint(tmp_path / "2", names=("a", "c")),
        fingerprint(tmp_path / "3", templates=("{c}.",)),
        fingerprint(tmp_path / "4", shards=1),
    ]
    assert len({first, *changed}) == 5


@pytest.mark.parametrize("position", [0, 1 << 20, (3 << 20) - 1])
def test_the_fingerprint_of_a_large_shard_covers_both_ends(tmp_path, position):
    path = write_folder(tmp_path, "t", [{"cls": 0}], shards=1) / "test/0.tar"
    content = bytearray((1 << 21) - 1) if position == 1 << 20 else bytearray(3 << 20)
    path.write_bytes(content)
    before = open_folder(tmp_path, "t").fingerprint()
    content[position] = 1
    path.write_bytes(content)
    assert open_folder(tmp_path, "t").fingerprint() != before


def test_fabricated_data_is_read_as_it_was_meant(tmp_path):
    samples = [EvalSample(b"x", "png", label=i % 2, metadata=(i % 3, i % 2)) for i in range(5)]
    captioned = [EvalSample(b"x", "jpg", captions=("one", "two")) for _ in range(3)]
    write_tasks(
        tmp_path,
        [
            EvalTask("plain", "Plain", samples, ["a", "b"], ["{c}"]),
            EvalTask("groups", "Groups", samples, ["a", "b"], ["{c}"], ["place", "y"], ["u", "v", "w"]),
            EvalTask("captions", "Captions", captioned),
        ],
    )
    tasks = load_tasks(tmp_path)
    assert [task.kind for task in tasks.values()] == ["classification", "worst_group", "retrieval"]
    folder = open_folder(tmp_path, "groups")
    assert folder.classnames(tasks["groups"].class_count) == ["a", "b"]
    parse = ParseMetadata(tasks["groups"].columns, ("place",), 3)
    assert [parse(sample).values[0] for sample in read_samples(folder.shards)] == [0, 1, 2, 0, 1]
    assert tasks["captions"].captions == 6


def test_the_documented_task_entries_are_valid(tmp_path):
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    (tmp_path / "tasks.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    assert {task.kind for task in load_tasks(tmp_path).values()} == {"classification", "worst_group", "retrieval"}
    assert all(f"| `{kind}` |" in text for kind in KINDS)
