"""What was submitted for a run (RUN/slurm/jobs.jsonl), and what of it is in SLURM's queue now.

    {"event": "submitted", "time":, "stage":, "job":, "offset":, "elements": "0-3", "command": [...]}
    {"event": "cancelled", "time":, "stage":, "elements": "2-3", "reason":}

An element of an array is `offset` + its index in the array.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import append_line
from pipeline.launch.paths import RunPaths
from pipeline.launch.slurm import commands
from pipeline.launch.slurm.arrays import compressed, expanded
from pipeline.launch.slurm.commands import Queued
from pipeline.locks import taking_turns
from pipeline.run_files import SUBMITTED

Element = tuple[str, int]  # stage, number


def folder(paths: RunPaths) -> Path:
    """All that the SLURM backend keeps in a run directory."""
    return paths.root / "slurm"


def ledger(paths: RunPaths) -> Path:
    """`jobs.jsonl`: what was submitted and what was taken out of the queue, a line each."""
    return folder(paths) / "jobs.jsonl"


def title(paths: RunPaths, stage: str) -> str:
    """A job's name: what, and of which directory, since ids start over when a cluster is set up anew."""
    return f"{paths.config.name}-{stage}-{hashlib.sha256(str(paths.root).encode()).hexdigest()[:8]}"


def name_of(job: Mapping[str, Any]) -> str:
    """What scontrol calls this job or this element alone. An array's own id would mean all of its elements."""
    return f"{job['array_id']}_{job['array_index']}" if "array_id" in job else str(job.get("id", ""))


def note_submitted(
    paths: RunPaths, stage: str, job: str, offset: int, elements: Sequence[int], command: Sequence[str]
) -> None:
    """Note a call of sbatch. job: the id that it gave. offset: of index 0 of its array among the stage's elements."""
    _note(paths, "submitted", stage, elements, {"job": job, "offset": offset, "command": list(command)})


def in_queue(paths: RunPaths) -> dict[Element, Queued]:
    """The elements of this run that SLURM has: pending, running or ending. Asks it only if anything was submitted."""
    known = {line["job"]: line for line in SUBMITTED.lines(ledger(paths))}
    found: dict[Element, Queued] = {}
    for queued in commands.queue(ledger(paths).stat().st_uid) if known else ():  # also for a colleague who looks
        line = known.get(queued.job)
        if line is None or queued.title != title(paths, line["stage"]):
            continue
        number = expanded(line["elements"])[0] if queued.index is None else line["offset"] + queued.index
        found[line["stage"], number] = queued
    return found


def cancel(paths: RunPaths, chosen: dict[Element, Queued], reason: str) -> None:
    """Take elements out of the queue, and note why."""
    arrays: dict[str, list[int]] = {}
    stages: dict[str, list[int]] = {}
    names = []
    for (stage, number), queued in chosen.items():
        stages.setdefault(stage, []).append(number)
        if queued.index is None:
            names.append(queued.job)
        else:
            arrays.setdefault(queued.job, []).append(queued.index)
    names += [f"{job}_[{compressed(indices)}]" for job, indices in arrays.items()]
    for stage, numbers in stages.items():  # first the reason: whoever sees them gone can read it
        _note(paths, "cancelled", stage, numbers, {"reason": reason})
    if names:
        commands.cancel(names)


def _note(paths: RunPaths, event: str, stage: str, elements: Iterable[int], rest: dict[str, Any]) -> None:
    line = {"event": event, "time": time.time(), "stage": stage, "elements": compressed(elements), **rest}
    file = ledger(paths)
    with taking_turns(file.with_name(".jobs")):
        append_line(file, line)
