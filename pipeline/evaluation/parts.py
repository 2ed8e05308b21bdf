"""The work of an evaluation, cut into parts and dealt out to workers.

A task is cut along its shards, and always in the same way, however many workers there are: batches do not run across a
cut, so every number of workers computes the same bits, and finds what another number of them has done.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.task_folder import TaskFolder, open_task_folder
from pipeline.evaluation.tasks import Task

PART_COST = 64.0  # about, where the shards allow; all of DataComp's 40 tasks cost 5190


@dataclass(frozen=True)
class Part:
    """Part `number` of the `of` parts of a task. shards: its own, in order, of the task's from the first_shard-th on.

    cost: as in tasks.yaml. samples: how many it should have, going by the size of its shards.
    """

    task: str
    number: int
    of: int
    shards: tuple[Path, ...]
    cost: float
    samples: int
    first_shard: int = 0

    @property
    def label(self) -> str:
        """What people are told that it is."""
        return self.task if self.of == 1 else f"{self.task} {self.number + 1}/{self.of}"

    @property
    def identity(self) -> str:
        """Which piece of its task it is: with another `cost` the task is cut in another way, perhaps into as many."""
        return f"{self.label}: {len(self.shards)} shards from {self.first_shard} on"


def cut(name: str, task: Task, folder: TaskFolder) -> list[Part]:
    """The parts of a task: neighbouring shards, of about the same size together."""
    wanted = 1 if KINDS[task.kind].in_one_piece else math.ceil(task.expected_cost / PART_COST)
    sizes = [shard.stat().st_size for shard in folder.shards]
    total = max(1, sum(sizes))
    middles = (end - size / 2 for end, size in zip(itertools.accumulate(sizes), sizes, strict=True))
    owners = [int(middle * wanted / total) for middle in middles]
    pieces = [list(piece) for _, piece in itertools.groupby(range(len(sizes)), key=owners.__getitem__)]
    shares = [sum(sizes[shard] for shard in piece) / total for piece in pieces]
    return [
        Part(
            name,
            number,
            len(pieces),
            tuple(folder.shards[shard] for shard in piece),
            task.expected_cost * share,
            max(1, round(task.size * share)),
            piece[0],
        )
        for number, (piece, share) in enumerate(zip(pieces, shares, strict=True))
    ]


def cut_all(data: Path, tasks: Mapping[str, Task]) -> list[Part]:
    """The parts of all tasks, in their order; a task without its files is one part, for a worker to say so."""
    parts: list[Part] = []
    for name, task in tasks.items():
        try:
            parts += cut(name, task, open_task_folder(data, name, task))
        except UserError:
            parts.append(Part(name, 0, 1, (), task.expected_cost, task.size))
    return parts


def share(parts: Sequence[Part], rank: int, world_size: int) -> list[Part]:
    """The parts of one worker of `world_size`, in their order, so that all workers end at about the same time.

    The dearest part goes first, each to the worker that has the least to do (longest processing time first, Graham
    1969). Depends on nothing but the parts: workers need not know of each other.
    """
    loads = [0.0] * world_size
    mine: list[int] = []
    for index in sorted(range(len(parts)), key=lambda index: (-parts[index].cost, index)):
        worker = loads.index(min(loads))
        loads[worker] += parts[index].cost
        if worker == rank:
            mine.append(index)
    return [parts[index] for index in sorted(mine)]


def by_task(parts: Iterable[Part]) -> dict[str, list[Part]]:
    """Grouped by the name of the task, in their order."""
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.task, []).append(part)
    return groups
