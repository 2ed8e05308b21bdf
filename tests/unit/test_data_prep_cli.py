"""The command line `data-prep`: help that teaches and is instant, one clear message where something is wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import data_prep.plan
from data_prep.cli import main


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
    return found


@pytest.mark.parametrize("path", commands(main), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert "Commands:" in result.output or f"Example:\n    data-prep {' '.join(path)}" in result.output


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'pyarrow', 'numpy', 'pydantic', 'PIL', 'torch', 'img2dataset', 'rich'}"
    program = f"import sys, data_prep.cli; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "nothing"], "error: no corpus 'nothing': shipped are demo, emoji"),
        (["plan", "demo"], "error: no metadata at "),
        (["download", "demo"], "error: no plan at "),
        (["verify", "demo", "--json"], "error: no plan at "),
        (["manifest", "demo"], "error: no plan at "),
        (["status", "demo"], "error: no plan at "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_message_and_status_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["--root", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stdout == ""


def test_a_full_disk_is_a_message_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "plan.json")

    monkeypatch.setattr(data_prep.plan, "make_plan", full)
    result = CliRunner().invoke(main, ["--root", str(tmp_path), "plan", "demo"])
    assert result.exit_code == 2
    assert result.stderr == "error: [Errno 28] No space left on device: 'plan.json'\n"


def test_root_from_the_environment(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["plan", "demo"], env={"DATA_PREP_ROOT": str(tmp_path / "here")})
    assert str(tmp_path / "here" / "demo") in result.stderr
