"""Notices that this rank hangs, shows where, and says which ranks the others wait for.

A thread of every rank looks whether the training loop moves: from waiting for data to the step, the callbacks, a
checkpoint, the next batch. It runs while the main thread is stuck in a collective, as those release the interpreter
lock. Should a C call keep the lock for ever, the thread stands still too: then the deadline of `last_resort`, which the
thread keeps putting off, writes the stacks and ends the process.

    RUN/train/stacks/00000.txt   the stacks of all threads of rank 0
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.config.schema import HealthConfig
from pipeline.distributed import World
from pipeline.errors import UserError
from pipeline.health.broken import connection_is_lost, worker_died
from pipeline.health.heartbeat import Heartbeat, read_heartbeats
from pipeline.health.last_resort import clear_deadline, set_deadline
from pipeline.health.suspects import Suspects, find_suspects
from pipeline.stopping import EXIT_LOST

log = logging.getLogger(__name__)
LONGEST_PERIOD_SECONDS = 3.0  # between two beats; torchrun leaves 30 s for last words


_AGAIN = "The same command goes on from the newest checkpoint"


class PeerLost(UserError):
    """This rank is well, but others are not there any more."""

    def __init__(self, step: int, suspects: Suspects) -> None:
        super().__init__(f"lost the other ranks after step {step}: {suspects.words}. {_AGAIN}")
        self.exit_status = suspects.exit_status


class Watchdog:
    """Watches this rank as long as its `with` block lasts; `heartbeat` is to be told what the rank does.

    A hang, `health.hang_seconds` without a move, is a warning, or where `health.stop_on` has `hang` the end of the
    process, with EXIT_LOST.
    """

    def __init__(self, config: HealthConfig, folder: Path, world: World) -> None:
        """folder: RUN/train."""
        self.heartbeat = Heartbeat(rank=world.rank)
        self._seconds, self._stops, self._size = config.hang_seconds, "hang" in config.stop_on, world.size
        self._period = min(LONGEST_PERIOD_SECONDS, config.hang_seconds / 10)
        self._heartbeats, self._stacks = folder / "heartbeats", folder / "stacks"
        self._request = self._stacks / "requested"  # touched by a rank that hangs: all are to show their stacks
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        for path in (self._heartbeats, self._stacks):
            path.mkdir(parents=True, exist_ok=True)
        for beat in self._heartbeats.glob("*.json"):  # of ranks that an earlier life had: they say why that one failed
            if int(beat.stem) >= self._size:
                beat.unlink(missing_ok=True)
        self._answered = self._requested()
        self._file = open(self._stacks / f"{self.heartbeat.rank:05d}.txt", "a")
        self._tick()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        clear_deadline("watchdog")
        self._file.close()

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Why the block failed is noted for the other ranks before their connections break.

        Raises UserError in place of the traceback of a loader worker that was killed, and PeerLost in place of that of
        a broken connection.
        """
        try:
            yield
        except RuntimeError as error:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or torch raises again for every loader worker that ends
            known = self._peer_lost() if connection_is_lost(error) else worker_died(error)
            self._fail(known or error)
            if known is None:
                raise
            raise known from error
        except BaseException as error:
            self._fail(error)
            raise

    def _watch(self) -> None:
        still, moves = 0.0, -1
        while not self._over.wait(self._period):
            self._tick()
            # Ticks of this thread, not the clock: a job that was suspended for a while does not hang.
            still = still + self._period if moves == self.heartbeat.moves else 0.0
            moves = self.heartbeat.moves
            if still < self._seconds:
                self.heartbeat.hung = False
            elif not self.heartbeat.hung:
                self._hang()
            if self._requested() != self._answered and not self.heartbeat.hung:
                self._show_stacks("another rank hangs")

    def _hang(self) -> None:
        self.heartbeat.hung = True
        self._show_stacks(f"no move for {self._seconds:g} s")
        self._request.touch()
        moves = self.heartbeat.moves
        suspects = self._observe()
        if self._over.is_set() or self.heartbeat.moves != moves:
            return
        hung = [beat.rank for beat in read_heartbeats(self._heartbeats, range(self._size)).values() if beat.hung]
        if self.heartbeat.rank == min(hung, default=self.heartbeat.rank):
            self._say(suspects)
        if self._stops:
            self.heartbeat.failed, self.heartbeat.exit_status = "a hang", EXIT_LOST
            self._beat()
            os._exit(EXIT_LOST)

    def _say(self, suspects: Suspects) -> None:
        complaint = (
            f"nothing has moved for {self._seconds:g} s (health.hang_seconds) after step {self.heartbeat.step}: "
            f"{suspects.words}. Stacks of every rank: {self._stacks}"
        )
        if self._stops:  # not by way of sys.stderr, whose lock the main thread may hold
            os.write(2, f"error: {complaint}. {_AGAIN}.\n".encode())
        else:
            log.warning("%s", complaint)

    def _observe(self) -> Suspects:
        """Look at the other ranks for a few beats, or until one says that it has failed."""
        ranks = range(self._size)
        before = read_heartbeats(self._heartbeats, ranks)
        for _ in range(3):
            self._over.wait(self._period)
            self._beat()
            suspects = find_suspects(before, read_heartbeats(self._heartbeats, ranks), self._size)
            if suspects.certain:
                break
        return suspects

    def _peer_lost(self) -> PeerLost:
        return PeerLost(self.heartbeat.step, self._observe())

    def _fail(self, error: BaseException) -> None:
        self.heartbeat.exit_status = error.exit_status if isinstance(error, UserError) else 1
        self.heartbeat.failed = f"{type(error).__name__}: {error}"[:400]
        self._beat()

    def _tick(self) -> None:
        self._beat()
        set_deadline("watchdog", 2 * self._seconds, self._stops, self._file)

    def _beat(self) -> None:
        self.heartbeat.write(self._heartbeats)

    def _show_stacks(self, why: str) -> None:
        self._answered = self._requested()
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.heartbeat}: {why}\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file, all_threads=True)

    def _requested(self) -> int | None:
        """When the last request was made."""
        with suppress(OSError):
            return self._request.stat().st_mtime_ns
        return None
