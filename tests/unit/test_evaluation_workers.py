"""Evaluation by several workers: whatever their number and order, and whoever was killed, the results are those of one
worker, bit for bit; nobody's parts are mixed with another's.
"""

import json
import multiprocessing
import os
import shutil
import signal
import time
from contextlib import ExitStack

import pytest
import torch
import yaml
from click.testing import CliRunner
from evaluation_support import TASKS, write_model, write_suite, write_tasks_file

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.evaluation import measure, suite
from pipeline.evaluation.aggregate import aggregate
from pipeline.evaluation.merge import lock_path
from pipeline.evaluation.parts import cut_all, share
from pipeline.evaluation.suite import evaluate
from pipeline.evaluation.tasks import file_name, load_tasks
from pipeline.files import sha256_file, write_json
from pipeline.locks import exclusive
from pipeline.models.model_card import PROVENANCE_FILE
from pipeline.models.two_tower import WEIGHTS_FILE


def do(root, **options):
    return evaluate(root / "model", root / "data", root / "out", **{"workers": 0, "batch_size": 6, **options})


def read(path):
    return json.loads(path.read_text())


def metrics(out, tasks=TASKS):
    return {task: read(out / f"{file_name(task)}.json")["metrics"] for task in tasks}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Two models, two tasks that are cut in two and one that cannot be, and the results of one worker."""
    root = tmp_path_factory.mktemp("workers")
    write_model(root / "model")
    write_model(root / "other", seed=1)
    write_suite(root / "data")
    tasks = yaml.safe_load((root / "data/tasks.yaml").read_text())
    write_tasks_file(root / "data", {name: {**task, "cost": 1000} for name, task in tasks.items()})
    do(root)
    (root / "out").rename(root / "by-one")
    return root


@pytest.fixture
def work(shipped, tmp_path):
    """A copy without results to work in."""
    shutil.copytree(shipped, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_workers_in_any_order_leave_the_results_of_one_and_say_that_they_are_done(work, order):
    for done, rank in enumerate(order):
        assert sorted(path.name for path in (work / "out/workers").glob("*")) == sorted(
            f"{rank}-of-3.json" for rank in order[:done]
        )
        do(work, rank=rank, world_size=3)
    assert metrics(work / "out") == metrics(work / "by-one")
    assert aggregate(work / "out", work / "data") == aggregate(work / "by-one", work / "data")
    done = [read(work / f"out/workers/{rank}-of-3.json") for rank in range(3)]
    assert all((entry["rank"], entry["world_size"]) == (rank, 3) for rank, entry in enumerate(done))
    digests = [
        (task, *item) for entry in done for task, made in entry["tasks"].items() for item in made["parts"].items()
    ]
    results = {task: read(work / f"out/{file_name(task)}.json") for task in TASKS}
    expected = [(t, str(n), digest) for t, result in results.items() for n, digest in enumerate(result["parts"])]
    assert sorted(digests) == sorted(expected)
    for entry in done:
        for task, made in entry["tasks"].items():
            assert made["checkpoint_sha256"] == results[task]["checkpoint_sha256"]
            assert made["data_fingerprint"] == results[task]["data_fingerprint"]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (work / "out/workers").iterdir()}
    do(work, rank=1, world_size=3)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before


def test_another_number_of_workers_goes_on_with_what_is_done(work):
    do(work, rank=0, world_size=2)
    begun = {label for label, *_ in calls_of(work, rank=0, world_size=1)}
    kept = {path.stem for path in (work / "out/workers").iterdir()}
    assert kept == {"0-of-1", "0-of-2"}
    assert begun < {"colours 1/2", "colours 2/2", "some/groups 1/2", "some/groups 2/2", "captions"} | set(TASKS)
    assert metrics(work / "out") == metrics(work / "by-one")


def calls_of(root, **options):
    """What is begun and measured."""
    calls = []
    do(root, progress=lambda *call: calls.append(call), **options)
    return calls


def test_progress_goes_by_cost_and_ends_at_the_right_numbers(work):
    calls = calls_of(work)
    labels = list(dict.fromkeys(label for label, *_ in calls))
    assert labels == ["colours 1/2", "colours 2/2", "some/groups 1/2", "some/groups 2/2", "captions"]
    shares = [share for *_, share in calls]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, pytest.approx(1.0))
    for label in labels:
        own = [(done, total) for name, done, total, _ in calls if name == label]
        assert own[0][0] == 0
        assert own[-1][0] == own[-1][1]
        assert all(done < total for done, total in own[:-1])
    ends = {label: done for label, done, total, _ in calls if done == total}
    assert (ends["colours 1/2"], ends["colours 2/2"], ends["captions"]) == (14, 15, 29)
    halfway = next(share for label, done, _, share in calls if label == "captions" and done == 0)
    assert halfway == pytest.approx(2 / 3)


def start(target, *arguments):
    """A process that has imported already what this one has."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def stop_before_the_first_part_of_groups_is_written(root, reached):
    torch.set_num_threads(1)
    write = measure.write_record

    def write_or_wait(path, record):
        if "groups" in str(path):
            reached.set()
            time.sleep(600)
        write(path, record)

    measure.write_record = write_or_wait
    do(root)


def test_after_kill_9_a_rerun_does_what_is_missing(work):
    reached = multiprocessing.get_context("fork").Event()
    process = start(stop_before_the_first_part_of_groups_is_written, work, reached)
    assert reached.wait(120)
    with pytest.raises(UserError, match=f"(?s)some/groups 1/2 in .* in use by process {process.pid} on"):
        do(work, tasks=["some/groups"])
    assert not (work / "out/some-groups.error.json").exists()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (work / "out/workers").exists()
    measured = {label for label, done, *_ in calls_of(work) if done == 0}
    assert measured == {"some/groups 1/2", "some/groups 2/2", "captions"}
    assert metrics(work / "out") == metrics(work / "by-one")
    assert not list((work / "out/parts").iterdir())


def test_what_another_process_is_at_fails_alone_and_leaves_no_trace(work):
    message = r"(?s)1 of 3 tasks failed.*colours: colours 2/2 in .* is in use by process"
    with exclusive(lock_path(work / "out", "colours", "1-of-2"), "it"), pytest.raises(UserError, match=message):
        do(work)
    assert {path.name for path in (work / "out").glob("*.json")} == {"some-groups.json", "captions.json"}
    assert not (work / "out/workers").exists()
    do(work)
    assert metrics(work / "out") == metrics(work / "by-one")


def test_what_another_process_is_at_is_tried_again_when_all_else_is_done(work):
    with ExitStack() as stack:
        stack.enter_context(exclusive(lock_path(work / "out", "colours", "0-of-2"), "it"))
        do(work, progress=lambda what, done, total, _: stack.close() if (what, done) == ("captions", total) else None)
    assert metrics(work / "out") == metrics(work / "by-one")


def work_and_say(root, said):
    torch.set_num_threads(1)
    try:
        do(root)
    except UserError as error:
        said.put(str(error))
    else:
        said.put("done")


def test_two_processes_with_the_same_work_leave_whole_results(work):
    said = multiprocessing.get_context("fork").SimpleQueue()
    both = [start(work_and_say, work, said) for _ in range(2)]
    for process in both:
        process.join()
    words = {said.get(), said.get()}
    assert "done" in words
    assert all("in use by process" in word for word in words - {"done"})
    assert metrics(work / "out") == metrics(work / "by-one")


def test_parts_of_another_model_are_never_merged(work):
    do(work, rank=0, world_size=2)
    evaluate(work / "other", work / "data", work / "out", rank=1, world_size=2, workers=0, batch_size=6)
    cut_in_two = {"colours", "some/groups"}
    shares = [
        {part.task for part in share(cut_all(work / "data", load_tasks(work / "data")), rank, 2)} for rank in (0, 1)
    ]
    shared = cut_in_two & shares[0] & shares[1]
    assert shared
    assert not any((work / f"out/{file_name(task)}.json").exists() for task in shared)
    with pytest.raises(UserError) as caught:
        aggregate(work / "out", work / "data")
    assert all(f"{task}: missing" in str(caught.value) for task in shared)
    do(work, rank=1, world_size=2)
    assert {task: metrics(work / "out")[task] for task in shared} == {
        task: metrics(work / "by-one")[task] for task in shared
    }


def test_a_part_made_with_another_library_is_made_again(work, monkeypatch):
    do(work, rank=0, world_size=2)
    versions = measure.library_versions()
    monkeypatch.setattr("pipeline.evaluation.records.library_versions", lambda: {**versions, "torch": "0.1"})
    monkeypatch.setattr(measure, "library_versions", lambda: {**versions, "torch": "0.1"})
    do(work)
    assert {
        read(work / f"out/{file_name(task)}.json")["libraries"]["torch"] for task in ("colours", "some/groups")
    } == {"0.1"}


def test_aggregate_makes_the_results_of_a_worker_that_died_before_it_could(work, monkeypatch):
    monkeypatch.setattr(suite, "merge", lambda *_: None)
    do(work)
    assert not list((work / "out").glob("*.json"))
    assert aggregate(work / "out", work / "data")["tasks"] == 3
    assert metrics(work / "out") == metrics(work / "by-one")
    shutil.rmtree(work / "out")
    do(work, rank=0, world_size=2)
    with pytest.raises(UserError, match="missing"):
        aggregate(work / "out", work / "data")


@pytest.mark.parametrize("damage", ["flip", "cut", "swap"])
def test_a_damaged_or_misplaced_part_is_made_again(work, monkeypatch, damage):
    with monkeypatch.context() as patch:
        patch.setattr(suite, "merge", lambda *_: None)
        do(work)
    first, second = (work / f"out/parts/colours/{number}-of-2.safetensors" for number in (0, 1))
    content = bytearray(first.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    first.write_bytes({"flip": content, "cut": content[:-1], "swap": second.read_bytes()}[damage])
    measured = {label for label, done, *_ in calls_of(work) if done == 0}
    assert measured == {"colours 1/2"}
    assert metrics(work / "out") == metrics(work / "by-one")


def test_no_worker_is_done_whose_share_failed(work):
    do(work)
    assert (work / "out/workers/0-of-1.json").is_file()
    shutil.rmtree(work / "data/wds_captions_test")
    with pytest.raises(UserError, match="captions: no folder"):
        do(work)
    assert not (work / "out/workers/0-of-1.json").exists()
    shares = [share(cut_all(work / "data", load_tasks(work / "data")), rank, 3) for rank in range(3)]
    (owner,) = [rank for rank in range(3) if "captions" in {part.task for part in shares[rank]}]
    for rank in range(3):
        if rank != owner:
            do(work, rank=rank, world_size=3)
    with pytest.raises(UserError, match="captions: no folder"):
        do(work, rank=owner, world_size=3)


def test_the_command_says_what_is_left_to_do(work):
    command = ["evaluate", work / "model", "--data", work / "data", "--out", work / "out", "--workers", 0]

    def neuclip(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    ended = neuclip(*command, "--rank", 1, "--world-size", 2)
    assert ended.exit_code == 0, ended.output
    then = f"neuclip aggregate {work / 'out'} --data {work / 'data'} --model {work / 'model'}"
    assert f"worker 1 of 2 is done. Once all are: {then}" in ended.output
    assert "100% of the work" in ended.output
    assert neuclip("aggregate", work / "out", "--data", work / "data").exit_code == 2
    assert neuclip(*command, "--rank", 0, "--world-size", 2).exit_code == 0
    weights = sha256_file(work / "model" / WEIGHTS_FILE)
    provenance = {"model": "tiny", "recipe": "none", "objective": "none", "weights_sha256": weights}
    write_json(work / "model" / PROVENANCE_FILE, provenance)
    ended = neuclip(*then.split()[1:])
    assert ended.exit_code == 0, ended.output
    assert "average" in ended.output
    assert "## Scores" in (work / "model/README.md").read_text()
    ended = neuclip(*command, "--rank", 2, "--world-size", 2)
    assert ended.exit_code == 2
    assert "--rank 2 is none of 2 workers" in ended.output
    ended = neuclip(*command, "--device", "gpu")
    assert ended.exit_code == 2
    assert "device: " in ended.output
