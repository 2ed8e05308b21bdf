"""What the commands of `data-prep` share: options, how they find a corpus, how they answer and fail."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands import Commands

if TYPE_CHECKING:
    from data_prep.corpus import Corpus

EXAMPLE = "\b\nExample:\n  "

name_argument = click.argument("name")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
task_option = click.option(
    "--task",
    "tasks",
    type=click.IntRange(0),
    multiple=True,
    help="Only this work item (may be repeated).  [default: all]",
)
_FETCH_OPTIONS = (
    click.option("--processes", type=click.IntRange(1), help="Download processes.  [default: the corpus's]"),
    click.option("--threads", type=click.IntRange(1), help="Connections per process.  [default: the corpus's]"),
    click.option(
        "--timeout",
        "timeout_seconds",
        type=click.FloatRange(0, min_open=True),
        help="Seconds to connect, and for each read.  [default: the corpus's]",
    ),
    click.option("--retries", type=click.IntRange(0), help="Attempts after the first.  [default: the corpus's]"),
    click.option("--contact", help="URL or e-mail address for the user agent.  [default: the corpus's]"),
    click.option(
        "--allow-private",
        is_flag=True,
        default=None,
        show_default=False,
        envvar="DATA_PREP_ALLOW_PRIVATE",
        help="Also ask servers at loopback and private addresses.  [default: the corpus's]",
    ),
)


def fetch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options named as the keys of a definition's `fetch`, None where the user says nothing."""
    for option in reversed(_FETCH_OPTIONS):
        command = option(command)
    return command


class DataPrep(Commands):
    """The group of all commands."""

    def advice(self, error: OSError) -> str:
        """Where a corpus cannot be written, what to do."""
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return ". Corpora are written into: make that folder yours, or name another folder (--root)."
        return ""


def find_corpus(name: str, root: Path) -> Corpus:
    """The corpus that the user named (imported late, so that help is instant)."""
    from data_prep.corpus import open_corpus

    return open_corpus(name, root)


def answer(as_json: bool, result: dict[str, Any], text: str) -> None:
    """Print a command's result, for a program or for a person."""
    click.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else text)
