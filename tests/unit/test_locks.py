"""A lock is refused while its holder lives, and goes with it, though what it forked lives a little longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.locks import exclusive

HOLD = """
import os, sys, time
from pathlib import Path
from pipeline.locks import exclusive
with exclusive(Path(sys.argv[1]), "it"):
    if os.fork() == 0:
        os.close(1)
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print("held", flush=True)
    if sys.argv[3] == "stay":
        time.sleep(60)
    os._exit(0)
"""


def hold(lock: Path, child_seconds: float, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(lock), str(child_seconds), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_living_holder_is_named_and_respected(tmp_path: Path) -> None:
    holder = hold(tmp_path / "lock", 0, "stay")
    try:
        with (
            pytest.raises(UserError, match=f"it is in use by process {holder.pid} on"),
            exclusive(tmp_path / "lock", "it"),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_a_dead_holders_children_are_waited_for(tmp_path: Path) -> None:
    """As with a trainer that was killed: its loader workers hold the inherited lock until they notice."""
    hold(tmp_path / "lock", 1.5, "die").wait()
    with exclusive(tmp_path / "lock", "it"):
        pass


def test_a_lock_has_one_holder_and_ends_with_it(tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match=f"it is in use by process {os.getpid()} on")
    with exclusive(tmp_path / "lock", "it"), refused, exclusive(tmp_path / "lock", "it"):
        pytest.fail("two holders")
    with exclusive(tmp_path / "lock", "it"):
        pass
