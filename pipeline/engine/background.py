"""One rank's part of a checkpoint on its way from memory to disk, while training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.engine.snapshot import Snapshot, write
from pipeline.engine.tags import is_sealed, publish, seal_part, temporary_folder
from pipeline.errors import UserError
from pipeline.files import free_bytes

POLL_SECONDS = 0.05


class Save:
    """Writes and seals this rank's files in a thread; rank 0's then publishes the tag once all ranks' are sealed.

    The ranks meet in the file system alone: a collective of this thread could cross one of the loop's.
    """

    def __init__(
        self, snapshot: Snapshot, folder: Path, tag: str, rank: int, ranks: int, after: Callable[[], None]
    ) -> None:
        """after: what rank 0 does when the tag is published."""
        self.tag = tag
        self.problem: str | None = None  # why this rank's work failed; final once `written` is set, or `ended`
        self.seconds = 0.0  # until all of it was done
        self._snapshot, self._folder, self._rank, self._ranks, self._after = snapshot, folder, rank, ranks, after
        self._written, self._abandoned = threading.Event(), threading.Event()
        self._bug: Exception | None = None
        # A daemon: a process that ends in an error must not wait for ranks that are gone.
        self._thread = threading.Thread(target=self._run, name=f"save {tag}", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def wait_until_written(self) -> None:
        """Return once this rank's own files are sealed, or have failed."""
        self._written.wait()
        self._raise_bug()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Return once nothing is left to do for this rank; rank 0 waits for the others' files."""
        self._thread.join(timeout_seconds)
        self._raise_bug()

    def abandon(self) -> None:
        """Do not publish: a rank has failed."""
        self._abandoned.set()

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            self._write()
            if self._rank == 0:
                self._publish()
        except (OSError, UserError) as error:
            self.problem = f"rank {self._rank}: {error}"
            with suppress(OSError):
                self.problem += f" ({free_bytes(self._folder) / 1e9:.3f} GB are free)"
        except Exception as error:
            self._bug = error
        finally:
            self.seconds = time.perf_counter() - started
            self._written.set()

    def _write(self) -> None:
        temporary = temporary_folder(self._folder, self.tag)
        write(self._snapshot, temporary)
        names = list(self._snapshot)
        self._snapshot.clear()  # its memory is needed for the next
        seal_part(temporary, self._rank, names)
        self._written.set()

    def _publish(self) -> None:
        temporary = temporary_folder(self._folder, self.tag)
        while not is_sealed(temporary, self._ranks):
            if self._abandoned.wait(POLL_SECONDS):
                return
        publish(self._folder, self.tag, self._ranks)
        self._after()

    def _raise_bug(self) -> None:
        if self._bug is not None:
            raise self._bug
