"""SLURM's own commands, and what they answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import UserError

TIMEOUT_SECONDS = 120  # slurmctld may be busy
_FIELDS = ("%F", "%K", "%T", "%r", "%N", "%M", "%L", "%S", "%j")


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
    elapsed: str
    left: str
    start: str
    title: str

    @property
    def name(self) -> str:
        """What scancel and scontrol call it. An array's own id would mean all of its elements."""
        return self.job if self.index is None else f"{self.job}_{self.index}"


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
    return _run(["sbatch", "--parsable", *arguments], environment=environment).strip().partition(";")[0]


def test(arguments: Sequence[str]) -> str:
    """What SLURM says to these arguments of sbatch, without submitting: when and where, or why not."""
    result = subprocess.run(
        ["sbatch", "--test-only", *arguments], capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    return (result.stderr or result.stdout).strip().removeprefix("sbatch: ").removeprefix("error: ")


def queue() -> list[Queued]:
    """Everything of this user that is pending, running or ending, arrays by element."""
    form = "|".join(_FIELDS)
    text = _run(["squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--format={form}"])
    return [_queued(line) for line in text.splitlines() if line]


def cancel(names: Sequence[str]) -> None:
    """scancel; jobs that are over already do no harm."""
    for start in range(0, len(names), 500):  # the length of a command line is limited
        _run(["scancel", "--quiet", *names[start : start + 500]], status=(0, 1))


def requeue(name: str) -> None:
    """Have a running job end, and start again under the same id. Raises UserError with SLURM's reason."""
    _run(["scontrol", "requeue", name])


def state(name: str) -> str:
    """Of one job or element: PENDING, RUNNING, COMPLETING ...; '' when it is gone."""
    return _run(["squeue", "--noheader", "--format=%T", f"--jobs={name}"], status=(0, 1)).strip()


def max_array_size() -> int:
    """How large an array's indices may become; the largest is one less."""
    return int(_configured("MaxArraySize", "1001"))


def node_address(node: str) -> str:
    """The address at which SLURM itself reaches a node of this cluster."""
    found = re.search(r"\bNodeAddr=(\S+)", _run(["scontrol", "--oneliner", "show", "node", node]))
    return found[1] if found else node


def _configured(name: str, default: str) -> str:
    found = re.search(rf"^{name}\s*=\s*(\S+)", _run(["scontrol", "show", "config"]), re.MULTILINE)
    return found[1] if found else default


def _queued(line: str) -> Queued:
    job, index, *rest = line.split("|", len(_FIELDS) - 1)
    return Queued(job, int(index) if index.isdigit() else None, *rest)


def _run(command: Sequence[str], status: tuple[int, ...] = (0,), environment: Mapping[str, str] | None = None) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on PATH: run this where SLURM is") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not answer within {TIMEOUT_SECONDS} s: try again when SLURM does") from None
    if result.returncode not in status:
        raise UserError(f"{' '.join(command[:4])} ...: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout
