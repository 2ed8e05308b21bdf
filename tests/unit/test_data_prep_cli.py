"""The command line `data-prep`: help that teaches and is instant, one clear message where something is wrong."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import data_prep.cli.plan
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


@pytest.mark.parametrize("path", [(), *commands(main)], ids=" ".join)
def test_the_examples_are_commands_that_parse(path: tuple[str, ...], tmp_path: Path) -> None:
    """As printed: unknown and missing options, and the folders and files that an example assumes."""
    text = CliRunner().invoke(main, [*path, "--help"]).output
    examples = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    data-prep ")]
    with CliRunner().isolated_filesystem(tmp_path):
        for folder in ("DIR", "pictures"):
            Path(folder).mkdir()
        for file in ("birds.csv", "dfn.npy"):
            Path(file).touch()
        for arguments in examples:
            command: click.Command = main
            while isinstance(command, click.Group):
                command = command.commands[arguments.pop(0)]
            command.make_context("example", arguments)


def test_help_lists_the_commands_in_the_order_of_a_run() -> None:
    listed = CliRunner().invoke(main, ["--help"]).output.split("Commands:")[1]
    order = [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "]
    run = ["new", "metadata", "plan", "download", "verify", "retry", "manifest", "report", "upload"]
    assert [name for name in order if name in run] == run


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'pyarrow', 'numpy', 'pydantic', 'PIL', 'torch', 'img2dataset', 'rich'}"
    program = f"import sys, data_prep.cli; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "nothing"], "error: no corpus 'nothing': shipped are cc12m, cc3m"),
        (["plan", "demo"], "error: no metadata at "),
        (["download", "demo"], "error: no plan at "),
        (["retry", "demo"], "error: no plan at "),
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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_file_and_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder = tmp_path / "demo"
    (folder / "metadata").mkdir(parents=True)
    table = {"uid": [f"{n:032x}" for n in range(9)], "url": ["http://h/1"] * 9, "caption": ["c"] * 9}
    pq.write_table(pa.table(table), folder / "metadata/rows.parquet")

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))  # as the kernel says it: without a name

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = CliRunner().invoke(main, ["--root", str(tmp_path), "plan", "demo"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: no space left to write {folder}/plan/00000.parquet: ")
    assert re.search(r"\d+\.\d\d GB are free", result.stderr)
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "plan.json").exists()
    assert CliRunner().invoke(main, ["--root", str(tmp_path), "plan", "demo"]).exit_code == 0


def test_work_items_that_are_large_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo/metadata").mkdir(parents=True)
    table = {"uid": [f"{n:032x}" for n in range(9)], "url": [f"http://h/{n}" for n in range(9)], "caption": ["c"] * 9}
    pq.write_table(pa.table(table), tmp_path / "demo/metadata/rows.parquet")
    monkeypatch.setattr(data_prep.cli.plan, "LARGE_ITEM_ROWS", 3)
    monkeypatch.setattr(data_prep.cli.plan, "VERIFY_BYTES_PER_ROW", 2**30)
    plan = ["--root", str(tmp_path), "plan", "demo", "--dry-run"]
    assert "up to 5 rows; `verify` takes about 5.0 GiB" in CliRunner().invoke(main, [*plan, "--tasks", "2"]).output
    assert "note" not in CliRunner().invoke(main, [*plan, "--tasks", "3"]).output


def test_corpora_are_made_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["--root", "s3://bucket/corpora", "plan", "demo"])
    assert result.exit_code == 2
    assert "not at s3:/bucket/corpora: `data-prep upload` copies a finished one" in result.stderr
    assert not list(tmp_path.iterdir())


def test_root_from_the_environment(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["plan", "demo"], env={"DATA_PREP_ROOT": str(tmp_path / "here")})
    assert str(tmp_path / "here" / "demo") in result.stderr
