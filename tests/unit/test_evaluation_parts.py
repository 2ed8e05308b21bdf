"""The work of an evaluation is cut along shards and dealt out evenly, each piece once; what is merged was never cut."""

import itertools
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from evaluation_support import OF_EVERY_KIND, run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.evaluation import parts
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.parts import Part, cut, cut_all, share
from pipeline.evaluation.records import read_record, samples_path
from pipeline.evaluation.results import result_path
from pipeline.evaluation.task_folder import TaskFolder, open_task_folder
from pipeline.evaluation.tasks import datacomp_tasks, file_name, load_tasks

costs = st.lists(st.floats(0.1, 100), min_size=1, max_size=7)


def part(cost, number=0):
    return Part("t", number, 1, (), cost, 1)


def read(path):
    return json.loads(path.read_text())


@given(costs, st.integers(1, 3))
def test_every_part_is_one_workers_and_none_has_much_more_to_do_than_at_best(costs, world_size):
    work = [part(cost, number) for number, cost in enumerate(costs)]
    shares = [share(work, rank, world_size) for rank in range(world_size)]
    assert sorted(itertools.chain(*shares), key=lambda part: part.number) == work
    best = min(
        max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == w) for w in range(world_size))
        for owners in itertools.product(range(world_size), repeat=len(costs))
    )
    longest = max(sum(part.cost for part in share) for share in shares)
    assert longest <= (4 / 3 - 1 / (3 * world_size)) * best + 1e-9  # Graham's bound for longest processing time first


@pytest.mark.parametrize("world_size", [2, 8, 16])
def test_workers_on_datacomps_tasks_end_together(tmp_path, world_size):
    tasks = datacomp_tasks()
    for name, task in tasks.items():
        folder = tmp_path / (task.folder or f"wds_{file_name(name)}_test")
        shards = 1 + task.size // 2000
        for number in range(shards):
            shard = folder / (f"test/{number}.tar" if task.format == "webdataset" else f"test/{number:04d}.parquet")
            shard.parent.mkdir(parents=True, exist_ok=True)
            shard.write_bytes(bytes(100))
        (folder / "test/nshards.txt").write_text(str(shards))
    pieces = cut_all(tmp_path, tasks)
    assert max(part.cost for part in pieces if part.task != "misc/winogavil") < 2 * parts.PART_COST * 2.2
    loads = [sum(part.cost for part in share(pieces, rank, world_size)) for rank in range(world_size)]
    assert sum(loads) == pytest.approx(sum(task.cost for task in tasks.values()))
    assert max(loads) < 1.1 * max(sum(loads) / world_size, max(part.cost for part in pieces))


def test_a_task_is_cut_along_its_shards_in_order(evaluated):
    tasks = {n: task.model_copy(update={"cost": 1000}) for n, task in load_tasks(evaluated / "data").items()}
    for name, count in (("colours", 2), ("some/groups", 2), ("captions", 1)):
        folder = open_task_folder(evaluated / "data", name, tasks[name])
        pieces = cut(name, tasks[name], folder)
        assert [part.number for part in pieces] == list(range(count))
        assert {part.of for part in pieces} == {count}
        assert tuple(itertools.chain(*(part.shards for part in pieces))) == folder.shards
        assert sum(part.cost for part in pieces) == pytest.approx(1000)
        assert sum(part.samples for part in pieces) == pytest.approx(29, abs=count - 1)


class Shard(NamedTuple):
    """In place of a file."""

    number: int
    st_size: int

    def stat(self):
        return self


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.tuples(st.floats(1, 900), st.floats(1, 900)))
@example([1, 1, 1, 3], (190, 250))  # both into three
@settings(max_examples=50)
def test_parts_of_two_cuts_are_taken_for_each_other_only_if_they_are_the_same_shards(sizes, costs):
    folder = TaskFolder(Path("t"), tuple(itertools.starmap(Shard, enumerate(sizes))), {})
    task = datacomp_tasks()["cifar10"]
    first, second = (cut("t", task.model_copy(update={"cost": cost}), folder) for cost in costs)
    for one, other in itertools.product(first, second):
        assert (one.identity == other.identity) == ((one.of, one.shards) == (other.of, other.shards))


def test_of_every_kind_what_is_merged_equals_what_was_never_cut(miniature, tmp_path, monkeypatch):
    tasks = load_tasks(miniature / "data")
    assert {tasks[name].kind for name in OF_EVERY_KIND} == set(KINDS)
    monkeypatch.setattr(parts, "PART_COST", 1e9)
    whole, cut_up = tmp_path / "whole", tmp_path / "cut-up"
    run(miniature, whole, tasks=OF_EVERY_KIND)
    assert {len(read(path)["parts"]) for path in whole.glob("*.json")} == {1}
    monkeypatch.setattr(parts, "PART_COST", 1e-9)
    for rank in (2, 0, 1):
        run(miniature, cut_up, tasks=OF_EVERY_KIND, rank=rank, world_size=3)
    cuts = {name: len(read(result_path(cut_up, name))["parts"]) for name in OF_EVERY_KIND}
    assert {cuts.pop(name) for name in OF_EVERY_KIND if tasks[name].kind == "retrieval"} == {1}
    assert min(cuts.values()) >= 2
    for name in OF_EVERY_KIND:
        assert read(result_path(cut_up, name))["metrics"] == read(result_path(whole, name))["metrics"]
        before, after = (read_record(samples_path(out, name)) for out in (whole, cut_up))
        assert before.rows.keys() == after.rows.keys()
        assert all(torch.equal(before.rows[column], after.rows[column]) for column in before.rows)
