"""Ctrl-C ends both command lines with one line and status 130, from the first import on."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
TRAIN = ["train", "demo", "--run-dir", "RUN", "loader.manifest=corpora/demo"]
CASES = {
    "the command line": ("neuclip", "click", ["--help"]),
    "a command": ("neuclip", "torch", TRAIN),
    "data-prep": ("data-prep", "click", ["--help"]),
    "a command of data-prep": ("data-prep", "pyarrow", ["report", "demo"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("started", ["as a module", "as a script"])
def test_ctrl_c_during_imports(tmp_path: Path, case: str, started: str) -> None:
    script, slow, arguments = CASES[case]
    (tmp_path / f"{slow}.py").write_text("import os, time\nos.write(1, b'importing')\ntime.sleep(60)\n")
    module, function = SCRIPTS[script].split(":")
    as_script = f"import sys; from {module} import {function}; sys.exit({function}())"  # what pip writes
    how = ["-m", module.partition(".")[0]] if started == "as a module" else ["-c", as_script]
    with subprocess.Popen(
        [sys.executable, *how, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    ) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0]
        assert os.read(process.stdout.fileno(), 100) == b"importing"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1].decode()
    assert (process.returncode, said) == (130, "stopped: interrupted\n")
