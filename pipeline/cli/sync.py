"""The command `neuclip sync`: what is left to send to MLflow, once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.errors import UserError
from pipeline.locks import InUse

if TYPE_CHECKING:
    from pipeline.tracking.mirror import Sent


@click.command()
@click.argument(
    "run_dirs", nargs=-1, required=True, metavar="RUN...", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--to", "uri", metavar="URI", help="Another MLflow server than the one that RUN has been sent to so far.")
def sync(run_dirs: tuple[Path, ...], uri: str | None) -> None:
    """Send what MLflow lacks of each RUN, exactly once.

    For runs whose server was away, or that were killed: points, parameters, scores, files and states. The server is
    asked what it has, so the command may be given, broken off and given again at any time; a command on RUN that has
    just ended is given a minute to send the rest itself. With --to all of it goes to a second server as well.

    \b
    Ends with 0 when the server has everything, else with 2.
    \b
    Examples:
      neuclip sync runs/birds
      neuclip sync runs/* --to http://mlflow.example.org:5000
    """
    from rich.console import Console

    console = Console(stderr=True)
    problems = 0
    for run_dir in run_dirs:
        with console.status(f"{run_dir}: asking the server") as status:
            left = _sync(run_dir, uri, status.update)
        problems += bool(left)
        for line in left:
            click.echo(f"{run_dir}: {line}", err=True)
    sys.exit(2 if problems else 0)


def _sync(run_dir: Path, uri: str | None, show: Callable[[str], None]) -> list[str]:
    """Send one run directory and say what was sent; returns why something is left."""
    from pipeline.tracking.live import CLOSE_SECONDS, is_mirrored
    from pipeline.tracking.mirror import Mirror, Sent, only_mirror

    so_far = Sent()

    def keep(sent: Sent) -> None:
        nonlocal so_far
        so_far = sent
        show(f"{run_dir}: {_words(sent)}")

    if is_mirrored(run_dir):
        show(f"{run_dir}: waiting for the process that is sending it")
    try:
        # One that its command left behind takes CLOSE_SECONDS at most, and again for what another one left to it.
        with only_mirror(run_dir, patience_seconds=2 * CLOSE_SECONDS):
            mirror = Mirror(run_dir, uri, keep)
            sent = mirror.advance()
    except InUse as error:
        return [f"{error} (While a run goes on, it sends everything by itself.)"]
    except UserError as error:
        return [str(error)]
    except Exception as error:  # whatever mlflow and its databases raise
        return [f"not everything was sent (but {_words(so_far)}); give the same command again later: {error}"]
    click.echo(f"{run_dir}: {_words(sent)} sent to {mirror.uri}")
    return sent.problems


def _words(sent: Sent) -> str:
    counts = (sent.runs, "runs"), (sent.points, "points"), (sent.artifacts, "files"), (sent.models, "models")
    return ", ".join(f"{count:,} {what}" for count, what in counts if count) or "nothing new"
