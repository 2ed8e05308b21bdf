"""What the command lines `neuclip` and `data-prep` have in common."""

from __future__ import annotations

import io
import select
import sys
from typing import Any

import click

from pipeline.errors import UserError
from pipeline.stopping import end_interrupted


class Commands(click.Group):
    """A group whose commands end with a line and an exit status where the user can mend something, or pressed Ctrl-C.

    Help lists them in the order of a run, which is the order in which they are added.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a folder's name may be no text: it is shown as \udcff
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_status)
        except OSError as error:  # no space left, no permission
            if isinstance(error, BrokenPipeError) and _reader_left():
                raise  # `| head` has seen enough: click ends with 1 and says nothing
            said = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
            click.echo(f"error: {said}{self.advice(error)}", err=True)
            ctx.exit(UserError.exit_status)
        except KeyboardInterrupt:
            end_interrupted()

    def advice(self, error: OSError) -> str:
        """What else to tell of it."""
        return ""


def _reader_left() -> bool:
    """Whether nobody reads what is printed any more."""
    try:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in output.poll(0))
    except (OSError, ValueError, AttributeError):  # there is no output, or it is no file
        return False
