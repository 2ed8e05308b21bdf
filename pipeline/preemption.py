"""A request to stop: a signal, or a `STOP` file that a colleague without rights on the job can leave.

The handler only sets a flag; the trainer asks between steps, on all ranks at once, saves, and exits with
EXIT_PREEMPTED. A second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

import torch

from pipeline import collectives
from pipeline.distributed import World

STOP_FILE = "STOP"
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: run the same command again to go on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Listens for SIGNALS and for `run_dir/STOP`; `agreed` tells all ranks the same."""

    def __init__(self, run_dir: Path, world: World) -> None:
        self._file = run_dir / STOP_FILE
        self._world = world
        self._signal: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop; collective."""
        asked = self._signal is not None or (self._world.rank == 0 and self._file.exists())
        flag = torch.tensor([float(asked)], device=self._world.device)
        return bool(collectives.all_reduce(flag, "max").item())

    @property
    def reason(self) -> str:
        """What was seen on this rank, for the log."""
        if self._signal is not None:
            return signal.Signals(self._signal).name
        return f"{self._file} exists" if self._file.exists() else "another rank was asked to stop"

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
