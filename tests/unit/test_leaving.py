"""A process of ours ends with the status of its work, and with nothing lost, whatever threads of libraries do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUFFERED = {**os.environ, "PYTHONUNBUFFERED": ""}

# One of Arrow's threads is inside a Python file's `read` when the interpreter would finalize.
ARROW_READS = """
import io, threading, time
import pyarrow as pa, pyarrow.parquet as pq
class Slow(io.BytesIO):
    slow = False
    def read(self, size=-1):
        if self.slow:
            reading.set()
            time.sleep(1)
        return super().read(size)
reading, stream = threading.Event(), Slow()
pq.write_table(pa.table({"a": list(range(1000))}), stream)
table = pq.ParquetFile(pa.PythonFile(stream, "r"), pre_buffer=True)
stream.slow = True
threading.Thread(target=table.read, daemon=True).start()
assert reading.wait(30)
"""
THREADS = """
import atexit, threading, time
atexit.register(print, "registered")
def late():
    time.sleep(0.3)
    print("a thread")
threading.Thread(target=late).start()
"""
ENDS = {
    "falls off its end": ("", 0, "", ""),
    "returns a status": ("return 3", 3, "", ""),
    "exits": ("sys.exit(75)", 75, "", ""),
    "exits with nothing": ("sys.exit()", 0, "", ""),
    "exits with words": ("sys.exit('words')", 1, "", "words\n"),
    "raises": ("raise KeyError('here')", 1, "", "KeyError: 'here'\n"),
    "prints": ("print('no end of line', end='')", 0, "no end of line", ""),
    "waits": (THREADS, 0, "a thread\nregistered\n", ""),
    "Arrow reads": (ARROW_READS, 0, "", ""),
    "its output is closed": ("sys.stdout.close()", 1, "", "error: the output could not be written: "),
    "its output was closed by who started it": ("sys.stdout = None", 0, "", ""),
}


def run(work: str, stdout: int = subprocess.PIPE, left: bool = True) -> subprocess.CompletedProcess[str]:
    body = "".join(f"    {line}\n" for line in (work or "pass").splitlines())
    call = "leave_with(work)" if left else "sys.exit(work())"
    script = f"import sys\nfrom pipeline.leaving import leave_with\ndef work():\n{body}{call}\n"
    return subprocess.run(
        [sys.executable, "-c", script], stdout=stdout, stderr=subprocess.PIPE, env=BUFFERED, text=True, timeout=60
    )


@pytest.mark.parametrize("end", ENDS)
def test_ends(end: str) -> None:
    work, status, printed, complained = ENDS[end]
    ended = run(work)
    assert (ended.returncode, ended.stdout) == (status, printed), ended.stderr
    assert complained in ended.stderr
    assert bool(complained) == bool(ended.stderr)


def test_the_interpreters_own_end_aborts() -> None:
    """If it no longer does, there is no need of `leave_with`."""
    assert run(ARROW_READS, left=False).returncode < 0


def test_output_that_cannot_be_written() -> None:
    with Path("/dev/full").open("w") as full:
        ended = run("print('lost')", stdout=full.fileno())
    assert (ended.returncode, "No space left" in ended.stderr) == (1, True), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_reader_that_has_seen_enough() -> None:
    ours, its = os.pipe()
    os.close(ours)
    ended = run("print('unread')", stdout=its)
    os.close(its)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize("answers", ["--help", "train demo --dry-run"])
def test_a_reader_of_a_command_that_has_seen_enough(answers: str) -> None:
    ours, its = os.pipe()
    os.close(ours)
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", *answers.split()], stdout=its, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(its)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize(
    "module", ["pipeline", "data_prep", "pipeline.tracking.shipper", "pipeline.evaluation.of_checkpoint"]
)
def test_every_process_of_ours_leaves_so(tmp_path: Path, module: str) -> None:
    """What was registered before it imports anything would be called after all that `leave_with` lets be called."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, os\natexit.register(os.write, 2, b'finalizes')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def said(*command: str) -> str:
        ended = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=60)
        return ended.stderr

    assert "finalizes" not in said("-m", module, "--help")
    assert "finalizes" in said("-c", "pass")
