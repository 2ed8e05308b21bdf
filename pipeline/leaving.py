"""How a process of ours ends: with the exit status of its work, whatever its libraries' threads still do.

While the interpreter finalizes, a thread of Arrow that lets go of a Python object aborts the process (apache/arrow
issue 34314). Its work is done by then, and whoever reads exit statuses would call it a failure: so the interpreter is
not finalized.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def leave_with(work: Callable[[], int | None]) -> NoReturn:
    """Call `work`, which is all that this process does, and end with the exit status that it returns or exits with.

    Its threads are waited for, what is registered with atexit is called, and what was printed is written first.
    """
    status = 1  # of an exception that nobody catches

    def leave() -> None:
        written = [_flush(stream) for stream in (sys.stdout, sys.stderr)]
        os._exit(status if all(written) else status or 1)

    atexit.register(leave)  # before `work` imports anything: what is registered first is called last
    try:
        status = work() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    sys.exit(status)


def _flush(stream: object) -> bool:
    """Whether all that was printed is written. A reader that has seen enough (`| head`) needs no message."""
    try:
        if stream is not None:
            stream.flush()  # type: ignore[attr-defined]
    except BrokenPipeError:
        return False
    except (OSError, ValueError) as error:  # a full disk; a stream that was closed
        os.write(2, f"error: the output could not be written: {error}\n".encode())
        return False
    return True
