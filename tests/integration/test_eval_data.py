"""`neuclip eval-data download` from a local server that speaks the hub's protocol: commits, resumption, checksums."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hub_support import HubServer, running_hub

from data_prep.fabricate.datacomp import fabricate_datacomp
from pipeline.cli import main
from pipeline.evaluation import download as download_module
from pipeline.evaluation.tasks import datacomp_tasks
from pipeline.files import sha256_file
from pipeline.text import size

TASKS = datacomp_tasks()
COCO, FMOW = "retrieval/mscoco_2014_5k_test_image_text_retrieval", "wilds/fmow"
FIRST, SECOND = "1" * 40, "2" * 40
CHOSEN = f"stl10,{FMOW},{COCO}"
LARGE = os.urandom(2 << 20)


@pytest.fixture(scope="module")
def fabricated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fabricated")
    chosen = {name: TASKS[name].model_dump() for name in ("stl10", FMOW, COCO)}
    fabricate_datacomp(folder, chosen, images=16, processes=1)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(fabricated: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The three repositories, with files beside that no task needs."""
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        stl10 = files(fabricated / "wds_stl10_test")
        server.add("djghosh/wds_stl10_test", FIRST, {**stl10, "README.md": b"read me", "train/0.tar": LARGE})
        server.add("djghosh/wds_wilds-fmow_test", SECOND, {"README.md": b"all else is gone"})
        pinned = files(fabricated / "wds_wilds-fmow_test")
        server.add("djghosh/wds_wilds-fmow_test", TASKS[FMOW].revision, pinned, branch="other")
        parquet = files(fabricated / TASKS[COCO].folder)
        server.add(TASKS[COCO].repository, FIRST, {"script.py": b"", "images.zip": LARGE})
        server.add(TASKS[COCO].repository, SECOND, {**parquet, "TEST/test/index.duckdb": b""}, "refs/convert/parquet")
        yield server


@pytest.fixture
def data(fabricated: Path, tmp_path: Path) -> Path:
    """An empty folder that knows how small the tasks are here."""
    tasks = yaml.safe_load((fabricated / "tasks.yaml").read_text())
    for name in ("stl10", "cars"):  # two that follow a branch
        tasks[name] = {**tasks.get(name, {}), "revision": "main"}
    write_tasks(tmp_path / "data", tasks)
    return tmp_path / "data"


def write_tasks(data: Path, tasks: dict[str, Any]) -> None:
    data.mkdir(exist_ok=True)
    (data / "tasks.yaml").write_text(yaml.safe_dump(tasks, sort_keys=False))


def eval_data(command: str, data: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["eval-data", command, str(data), *options])


def test_what_a_task_needs_is_fetched_and_checks(hub: HubServer, fabricated: Path, data: Path) -> None:
    asked = eval_data("download", data, "--tasks", CHOSEN, "--dry-run")
    assert asked.exit_code == 0, asked.output
    assert f"djghosh/wds_wilds-fmow_test@{TASKS[FMOW].revision[:12]}" in asked.output
    assert hub.got == []
    assert [path.name for path in data.iterdir()] == ["tasks.yaml"]
    done = eval_data("download", data, "--tasks", CHOSEN)
    assert done.exit_code == 0, done.output
    there = files(data)
    for name in ("tasks.yaml", "download.json", ".download.lock"):
        there.pop(name)
    assert there == {name: content for name, content in files(fabricated).items() if name != "tasks.yaml"}
    assert f"\n{size(sum(map(len, there.values())))} to fetch; " in asked.output
    record = json.loads((data / "download.json").read_text())
    assert record["commits"][TASKS[COCO].repository] == SECOND
    assert record["commits"]["djghosh/wds_wilds-fmow_test"] == TASKS[FMOW].revision
    assert record["files"] == {
        name: {"size": len(content), "sha256": sha256_file(data / name)} for name, content in there.items()
    }
    checked = eval_data("check", data, "--tasks", CHOSEN, "--thorough", "--processes", "2")
    assert checked.exit_code == 0, checked.output
    assert "stl10: 16 samples, as they should be" in checked.output


def test_again_fetches_what_is_missing_at_the_commit_that_was_first(
    hub: HubServer, fabricated: Path, data: Path
) -> None:
    eval_data("download", data, "--tasks", "stl10")
    hub.add("djghosh/wds_stl10_test", SECOND, {"classnames.txt": b"other\n"})
    requests = len(hub.got)
    again = eval_data("download", data, "--tasks", "stl10")
    assert "0 bytes to fetch" in again.output
    assert "7 already here" in again.output
    assert len(hub.got) == requests
    (data / "wds_stl10_test/classnames.txt").unlink()
    assert "1 files fetched" in eval_data("download", data, "--tasks", "stl10").output
    expected = (fabricated / "wds_stl10_test/classnames.txt").read_bytes()
    assert (data / "wds_stl10_test/classnames.txt").read_bytes() == expected


def test_another_commit_than_was_downloaded_is_refused(hub: HubServer, data: Path) -> None:
    eval_data("download", data, "--tasks", "stl10")
    tasks = yaml.safe_load((data / "tasks.yaml").read_text())
    tasks["stl10"]["revision"] = SECOND
    write_tasks(data, tasks)
    requests = len(hub.got)
    again = eval_data("download", data, "--tasks", "stl10")
    assert again.exit_code == 2
    assert f"has djghosh/wds_stl10_test at commit {FIRST[:12]}, and tasks.yaml wants {SECOND[:12]}" in again.output
    assert len(hub.got) == requests
    tasks["stl10"]["revision"] = FIRST
    write_tasks(data, tasks)
    assert eval_data("download", data, "--tasks", "stl10").exit_code == 0


def test_every_repository_is_pinned_but_those_that_the_hub_converts() -> None:
    branches = {name for name, task in TASKS.items() if len(task.revision) != 40}
    assert branches == {name for name, task in TASKS.items() if task.format == "parquet"}


def test_what_changed_since_is_found_by_check(hub: HubServer, data: Path) -> None:
    eval_data("download", data, "--tasks", "stl10")
    tar = data / "wds_stl10_test/test/2.tar"
    content = tar.read_bytes()
    tar.write_bytes(content + bytes(512))
    assert "2.tar is not as it was downloaded" in eval_data("check", data, "--tasks", "stl10").output
    tar.write_bytes(content[:-1] + b"!")  # in the zeros that end a tar, where no sample sees it
    assert eval_data("check", data, "--tasks", "stl10").exit_code == 0
    assert "2.tar changed since it was downloaded" in eval_data("check", data, "--tasks", "stl10", "--thorough").output
    tar.unlink()
    assert "missing: 2.tar" in eval_data("check", data, "--tasks", "stl10").output


def test_a_download_that_was_killed_goes_on(hub: HubServer, data: Path) -> None:
    large = {"classnames.txt": b"a\nb\n", "zeroshot_classification_templates.txt": b"{c}\n", "test/nshards.txt": b"1\n"}
    hub.add("djghosh/wds_cars_test", FIRST, {**large, "test/0.tar": LARGE})
    hub.stall.set()
    code = "import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 2**16; from pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, "eval-data", "download", str(data), "--tasks", "cars"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size >= 1 << 20 for path in data.rglob(".0.tar.*.part")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    hub.stall.clear()
    assert not (data / "wds_cars_test/test/0.tar").exists()
    done = eval_data("download", data, "--tasks", "cars")
    assert done.exit_code == 0, done.output
    assert (data / "wds_cars_test/test/0.tar").read_bytes() == LARGE
    first, second = (wanted for name, wanted in hub.got if name == "test/0.tar")
    assert first is None
    assert int(second.removeprefix("bytes=").rstrip("-")) >= 1 << 20
    assert not list(data.rglob("*.part"))


def test_what_arrives_otherwise_than_the_hub_says_is_removed(hub: HubServer, data: Path) -> None:
    hub.corrupt = True
    done = eval_data("download", data, "--tasks", "stl10")
    assert done.exit_code == 2
    assert "of djghosh/wds_stl10_test did not arrive as the hub has it" in done.output
    assert not list(data.rglob("*.txt"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda hub, data: setattr(hub, "gated", True), "wants its terms to be accepted"),
        (lambda hub, data: hub.repositories.clear(), "the hub has no data set djghosh/wds_stl10_test"),
        (lambda hub, data: hub.heads["djghosh/wds_stl10_test"].clear(), "no such revision"),
        (lambda hub, data: hub.add("djghosh/wds_stl10_test", SECOND, {"x": b""}), "has no file like classnames.txt"),
        (lambda hub, data: os.environ.update(HF_ENDPOINT="http://127.0.0.1:9"), "the hub does not answer"),
        (
            lambda hub, data: (data / "tasks.yaml").write_text(
                yaml.safe_dump({"extends": "datacomp", "stl10": {"repository": None}})
            ),
            "stl10 names no repository to be downloaded from",
        ),
    ],
)
def test_what_cannot_be_had_is_said(hub: HubServer, data: Path, spoil, message: str) -> None:
    spoil(hub, data)
    done = eval_data("download", data, "--tasks", "stl10")
    assert done.exit_code == 2
    assert message in done.output


def test_a_task_that_cannot_be_had_does_not_stop_the_others(hub: HubServer, data: Path) -> None:
    del hub.repositories["djghosh/wds_wilds-fmow_test"]
    done = eval_data("download", data, "--tasks", CHOSEN)
    assert done.exit_code == 2
    assert f"1 of 3 tasks cannot be had, the others can:\n  {FMOW}: the hub has no data set" in done.output
    assert eval_data("check", data, "--tasks", f"stl10,{COCO}").exit_code == 0


def test_too_little_room_is_said_before_anything_is_fetched(
    hub: HubServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "free_bytes", lambda path: 1000)
    done = eval_data("download", data, "--tasks", "stl10")
    assert done.exit_code == 2
    assert "has room for 0.00 GB: choose --tasks" in done.output
    assert hub.got == []


def test_all_forty_are_listed(data: Path) -> None:
    listed = CliRunner().invoke(main, ["eval-data", "list"])
    assert all(name in listed.output for name in TASKS)
    assert "40 tasks, 38 of them in the average" in listed.output
    (data / "tasks.yaml").write_text(
        "mine: {kind: classification, title: T, size: 3, classes: 2, main_metric: acc1, chance: 0.5}\n"
    )
    listed = CliRunner().invoke(main, ["eval-data", "list", "--data", str(data)])
    assert "1 tasks, 1 of them in the average" in listed.output
