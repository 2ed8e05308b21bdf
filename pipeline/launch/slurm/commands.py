"""SLURM's own commands, and what they answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.errors import UserError

TIMEOUT_SECONDS = 120  # slurmctld may be busy
# Accounts may say others of jobs that are over: for seconds, or for ever where a controller was lost.
_FINAL = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
}  # fmt: skip
# Neither quotes: a title, in which anything may stand, comes last.
_SACCT = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,JobName")
_SQUEUE_ALL = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%j")
_FIELDS = ("%F", "%K", "%T", "%r", "%N", "%j")


@dataclass(frozen=True)
class Queued:
    """One job, or one element of an array, in the queue.

    job: the array's id, or the job's. index: in the array, None outside of arrays. The rest is as squeue writes it.
    """

    job: str
    index: int | None
    state: str
    reason: str
    nodes: str
    title: str

    @property
    def name(self) -> str:
        """What scancel and scontrol call it. An array's own id would mean all of its elements."""
        return self.job if self.index is None else f"{self.job}_{self.index}"


class Told(NamedTuple):
    """What SLURM says of a job. restarts: how often it was brought back so far, the one under way included."""

    state: str
    reason: str
    restarts: int


class Ended(NamedTuple):
    """What became of a job. name: as scontrol calls it. state: TIMEOUT, OUT_OF_MEMORY, CANCELLED by 1000 ..."""

    name: str
    state: str
    title: str


def require() -> None:
    """Raises UserError where SLURM's commands are not installed."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not on PATH: run this where SLURM is. `neuclip run` needs none; slurm/dev-cluster/up starts one."
        )


def sbatch(arguments: Sequence[str]) -> str:
    """Submit; the id of the job. Raises UserError with SLURM's reason."""
    # Within a job, its variables would become options of the new one.
    environment = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith("SLURM_")}
    said = _run(["sbatch", "--parsable", *arguments], environment=environment)
    ids = re.findall(r"^(\d+)(?:;.*)?$", said, re.MULTILINE)  # behind what a site's wrapper may have to say
    if not ids:
        raise UserError(
            f"sbatch was given a job, but told no id of it: {said.strip()!r}. Look for it with squeue, and cancel it "
            "before you submit again"
        )
    return str(ids[-1])


def test(arguments: Sequence[str]) -> str:
    """What SLURM says to these arguments of sbatch, without submitting: when and where, or why not."""
    try:
        result = _answer(["sbatch", "--test-only", *arguments])
    except UserError as error:
        return str(error)
    return (result.stderr or result.stdout).strip().removeprefix("sbatch: ").removeprefix("error: ")


def queue(user: int) -> list[Queued]:
    """Everything of a user, by number, that is pending, running or ending, arrays by element."""
    form = "|".join(_FIELDS)
    text = _run(["squeue", "--noheader", "--array", f"--user={user}", f"--format={form}"])
    lines = (line.split("|", len(_FIELDS) - 1) for line in text.splitlines())
    return [_queued(fields) for fields in lines if len(fields) == len(_FIELDS) and fields[0].isdigit()]


def cancel(names: Sequence[str]) -> None:
    """scancel; jobs that are over already do no harm."""
    for start in range(0, len(names), 500):  # the length of a command line is limited
        _run(["scancel", "--quiet", *names[start : start + 500]], status=(0, 1))


def requeue(name: str) -> None:
    """Have a running job end, and start again under the same id. Raises UserError with SLURM's reason."""
    _run(["scontrol", "requeue", name])


def told(name: str) -> Told | None:
    """Of one job or element, as long as SLURM remembers it: some minutes beyond its end.

    Raises UserError where it does not answer.
    """
    try:
        text = _run(["scontrol", "--oneliner", "show", "job", name])
    except UserError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    found = re.search(r"\bJobState=(\S+) Reason=(\S+) .*\bRestarts=(\d+)", text)
    return Told(found[1], found[2], int(found[3])) if found else None


def ended(jobs: Collection[str]) -> list[Ended]:
    """How jobs and all elements of arrays ended, of those that SLURM remembers or keeps accounts of.

    Where it does both, the accounts come later: they know by whom a job was cancelled. Of a job that was requeued,
    its last life.
    """
    asked = f"--jobs={','.join(jobs)}"
    known = _run([*_SQUEUE_ALL, asked], status=(0, 1))  # 1: none of them is known any more
    kept = _run([*_SACCT, asked], status=(0, 1)) if shutil.which("sacct") else ""  # 1: no accounts, or no answer
    lines = (line.split("|", 2) for text in (known, kept) for line in text.splitlines())
    return [Ended(*fields) for fields in lines if len(fields) == 3 and fields[1].partition(" ")[0] in _FINAL]


def max_array_size() -> int:
    """How large an array's indices may become; the largest is one less."""
    size = _configured("MaxArraySize", "1001")
    if not size.isdigit() or int(size) == 0:
        raise UserError(f"this SLURM takes no job arrays (MaxArraySize = {size}), which a run here is made of")
    return int(size)


def node_address(node: str) -> str:
    """The address at which SLURM itself reaches a node of this cluster."""
    found = re.search(r"\bNodeAddr=(\S+)", _run(["scontrol", "--oneliner", "show", "node", node]))
    return found[1] if found else node


def _configured(name: str, default: str) -> str:
    found = re.search(rf"^{name}\s*=\s*(\S+)", _run(["scontrol", "show", "config"]), re.MULTILINE)
    return found[1] if found else default


def _queued(fields: list[str]) -> Queued:
    job, index, *rest = fields
    return Queued(job, int(index) if index.isdigit() else None, *rest)


def _run(command: Sequence[str], status: tuple[int, ...] = (0,), environment: Mapping[str, str] | None = None) -> str:
    result = _answer(command, environment)
    if result.returncode not in status:
        reason = result.stderr.strip() or result.stdout.strip() or f"exit status {result.returncode}"
        raise UserError(f"{' '.join(command[:4])} ...: {reason}")
    return result.stdout


def _answer(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS, env=environment
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on PATH: run this where SLURM is") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not answer within {TIMEOUT_SECONDS} s: try again when SLURM does") from None
