"""The command line `data-prep`. Commands import what they need when they run, so that `--help` is instant."""

from __future__ import annotations

from pathlib import Path

import click

from data_prep.cli import define, derive, download, plan, publish, report, sources
from data_prep.cli.console import DataPrep
from pipeline.errors import UserError


@click.group(
    cls=DataPrep,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
    epilog="\b\nExample:\n  data-prep plan mine.yaml --tasks 4\n  data-prep download mine\n"
    "  data-prep verify mine\n  data-prep manifest mine",
)
@click.version_option(package_name="neuclip-pipeline")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default="corpora",
    envvar="DATA_PREP_ROOT",
    show_envvar=True,
    help="Folder that holds the corpora.",
)
@click.pass_context
def main(context: click.Context, root: Path) -> None:
    """A list of image URLs and captions to verified WebDataset shards.

    plan cuts the rows into work items, download fetches them, verify proves what came, manifest publishes it.
    Every command can be killed and run again: it does what is missing and nothing else.

    NAME is a shipped corpus (cc3m, datacomp-1b, ...; a name that is none is answered with all), a YAML definition, a
    folder in the root or elsewhere.
    """
    if ":/" in str(root):  # as a path, `s3://` has one slash
        raise UserError(
            f"corpora are made on a disk of this machine, not at {root}: `data-prep upload` copies a finished one"
        )
    context.obj = root


for command in (
    define.new,
    define.metadata,
    sources.fabricate,
    sources.serve,
    plan.plan,
    download.download,
    publish.verify,
    download.retry,
    publish.manifest,
    publish.status,
    report.report,
    derive.subset,
    derive.merge,
    derive.reshard,
    derive.upload,
):
    main.add_command(command)
