"""What a newcomer gets wrong ends with one clear message and a non-zero status, and leaves nothing half done."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_prep.cli import main as data_prep
from pipeline.cli import main as neuclip
from pipeline.preflight import problems

COMMANDS = [(group, name) for group in (neuclip, data_prep) for name in group.commands]


def said(*arguments: object) -> str:
    """The error message of a `neuclip` call that must fail."""
    result = CliRunner().invoke(neuclip, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output
    assert result.output.count("error: ") == 1
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize(("group", "name"), COMMANDS, ids=[name for _, name in COMMANDS])
def test_every_command_explains_itself(group: object, name: str) -> None:
    result = CliRunner().invoke(group, [name, "--help"])  # type: ignore[arg-type]
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 6


def test_an_unknown_key(tmp_path: Path) -> None:
    assert "did you mean 'corpus.scenes'" in said("demo", "--workdir", tmp_path / "d", "corpus.scene=5")
    assert not (tmp_path / "d").exists()


def test_an_unknown_objective(tmp_path: Path) -> None:
    assert "did you mean 'neuclip'" in said("demo", "--workdir", tmp_path / "d", "objective=neuclop")
    message = said("demo", "--workdir", tmp_path / "d", "objectives.neuclip.npn.prototype=5")
    assert "did you mean 'npn.prototypes'" in message
    assert not (tmp_path / "d").exists()


def test_a_missing_recipe(tmp_path: Path) -> None:
    assert "no recipe 'nowhere.yaml'" in said("run", "nowhere.yaml", "--workdir", tmp_path / "d")


def test_a_directory_with_other_things_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert "is not empty and holds no run" in said("demo", "--workdir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_somebody_stopped_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    assert "somebody wants this run to stop" in said("train", "demo", "--run-dir", tmp_path)


def test_a_foreign_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"corpus": "birds"}')
    told = f"{tmp_path / 'plan.json'}: recipe is missing. A plan is frozen: put back what was there, or"
    assert told in said("demo", "--workdir", tmp_path)
    assert told in said("status", tmp_path)


def test_a_recipe_that_needs_a_folder(tmp_path: Path) -> None:
    assert "no folder nowhere: give one with data=PATH" in said(
        "run", "emoji", "--workdir", tmp_path / "d", "data=nowhere"
    )
    assert "give it with data=PATH" in said("run", "emoji", "--workdir", tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_missing_manifest(tmp_path: Path) -> None:
    message = said("train", "demo", "--run-dir", tmp_path, f"loader.manifest={tmp_path / 'no'}")
    assert "manifest.json is missing" in message
    message = said("train", "demo", "--run-dir", tmp_path)
    assert "loader.manifest is not set" in message


def test_a_missing_model(tmp_path: Path) -> None:
    for name in ("model", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "data/tasks.yaml").write_text("{}\n")
    said("evaluate", tmp_path / "model", "--data", tmp_path / "data", "--out", tmp_path / "out")
    said("export", tmp_path / "model", tmp_path / "out")
    said("status", tmp_path)


def run_demo(workdir: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    small = ["corpus.scenes=16", "corpus.evaluation_scenes=64", "tracking.mlflow=false"]
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "demo",
        "--quick",
        "--workdir",
        str(workdir),
        *small,
        *overrides,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_demo(tmp_path / "d", f"corpus.port={port}")
    assert result.returncode == 2
    assert f"port {port}" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "d/stages").glob("download.*.json"))


def test_ranks_that_do_not_divide_the_batch(tmp_path: Path) -> None:
    message = said("demo", "--workdir", tmp_path / "d", "train.processes=2", "train.global_batch_size=15")
    assert "global_batch_size=15 cannot be split over processes=2" in message
    assert not (tmp_path / "d").exists()


def test_preflight_speaks_before_anything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(install=False) == []
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**30})())
    assert "only 1.0 GiB are free" in problems(install=True)[0]
    monkeypatch.setattr("sys.version_info", (3, 8, 0))
    assert "this is Python 3.8" in problems(install=True)[0]


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_just_as_a_child_is_forked(tmp_path: Path, asked: signal.Signals) -> None:
    """The log appears just before the fork, while which Python drops exceptions."""
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "pipeline", "demo", "--workdir", str(folder), "tracking.mlflow=false"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None and not (folder / "logs/fabricate.0.log").exists():
            time.sleep(0.001)
        process.send_signal(asked)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"stopped by {asked.name}" in output
    assert "Traceback" not in output
    assert not list((folder / "stages").glob("*.json"))
