"""Files that are either whole or absent, whoever else writes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import atomic_open, remove_torn


def test_two_hosts_whose_processes_have_one_number_write_whole_files(tmp_path: Path) -> None:
    """Both write through this process, so whatever they know of themselves is the same."""
    with atomic_open(tmp_path / "file", "w") as first:
        first.write("first, ")
        with atomic_open(tmp_path / "file", "w") as second:
            second.write("second")
        assert (tmp_path / "file").read_text() == "second"
        first.write("whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "first, whole")]


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(TypeError), atomic_open(tmp_path / "file", "w") as stream:
        stream.writelines(["half", 2])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "before")]


KILLED = """
import os, signal, sys
from pipeline.files import atomic_open
with atomic_open(sys.argv[1], "w") as stream:
    stream.write("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    for name in ("file", "other"):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)])
    assert len(list(tmp_path.iterdir())) == 3
    remove_torn(tmp_path, "file")
    (left,) = tmp_path.glob(".*")
    assert left.name.startswith(".other.")
    remove_torn(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    remove_torn(tmp_path / "not there")
