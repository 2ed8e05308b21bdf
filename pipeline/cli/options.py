"""Options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1),
    default=lambda: max(1, (os.cpu_count() or 1)),
    show_default="number of cores",
    help="Elements of one stage (work items of ingest) that run at once.",
)


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--from` and `--only`, as arguments `first` and `only`."""
    command = click.option("--only", metavar="STAGE", help="This stage and no other.")(command)
    return click.option("--from", "first", metavar="STAGE", help="This stage and those after it.")(command)


sweep_option = click.option(
    "--sweep",
    multiple=True,
    metavar="KEY=VALUE,VALUE,...",
    help="Train with each value; several --sweep give all combinations. Corpus and evaluation are shared.",
)
tasks_option = click.option("--tasks", default="all", show_default=True, help="Names separated by commas, or all.")
