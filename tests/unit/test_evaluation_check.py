"""`neuclip eval-data check` and evaluation both name what is wrong with a file, and the other tasks finish."""

import io
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from evaluation_support import COCO, run

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.evaluation.check import check
from pipeline.evaluation.tasks import datacomp_tasks, load_tasks, task_path


@pytest.fixture
def work(miniature, tmp_path):
    """A copy to change."""
    return shutil.copytree(miniature, tmp_path / "work")


def test_what_is_fabricated_is_as_it_should_be(miniature):
    tasks = load_tasks(miniature / "data")
    assert list(tasks) == list(datacomp_tasks())
    assert dict(check(miniature / "data", tasks, thorough=True)) == dict.fromkeys(tasks)


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
        run(work, work / "new", tasks=[task, other])
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
