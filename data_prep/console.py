"""What the commands of `data-prep` share: options, how they find a corpus, how they answer and fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import UserError

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


class Commands(click.Group):
    """A group whose commands end with `error: ...` and status 2 where the user can mend something.

    Help lists them in the order of a run, which is the order in which they are added.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (
            UserError,
            OSError,
        ) as error:  # OSError: no space left, no permission; its text names the file
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)


def find_corpus(name: str, root: Path) -> Corpus:
    """The corpus that the user named (imported late, so that help is instant)."""
    from data_prep.corpus import open_corpus

    return open_corpus(name, root)


def answer(as_json: bool, result: dict[str, Any], text: str) -> None:
    """Print a command's result, for a program or for a person."""
    click.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else text)
