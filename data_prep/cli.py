"""The command line `data-prep`. Commands import what they need when they run, so that `--help` is instant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from data_prep.cli_define import metadata, new
from data_prep.cli_derive import merge, reshard, subset, upload
from data_prep.cli_download import download, retry
from data_prep.cli_plan import plan
from data_prep.cli_report import report as report_command
from data_prep.cli_sources import fabricate, serve
from data_prep.console import EXAMPLE, Commands, answer, find_corpus, json_option, name_argument, task_option
from pipeline.errors import UserError


@click.group(
    cls=Commands,
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

    NAME is a shipped corpus (demo, emoji), a YAML definition, a folder in the root or elsewhere.
    """
    if ":/" in str(root):  # as a path, `s3://` has one slash
        raise UserError(
            f"corpora are made on a disk of this machine, not at {root}: `data-prep upload` copies a finished one"
        )
    context.obj = root


main.add_command(new)
main.add_command(metadata)
main.add_command(fabricate)
main.add_command(serve)
main.add_command(plan)


main.add_command(download)


@main.command(epilog=EXAMPLE + "data-prep verify demo --processes 2")
@name_argument
@task_option
@click.option("--processes", type=click.IntRange(1), default=1, help="Work items at once.")
@click.option("--again", is_flag=True, help="Also read the shards of verified items: are they what was written?")
@click.option("--dry-run", is_flag=True, help="Say which items would be verified; write nothing.")
@json_option
@click.pass_obj
def verify(
    root: Path, name: str, tasks: Sequence[int], processes: int, again: bool, dry_run: bool, as_json: bool
) -> None:
    """Decode every downloaded image, and write the proven samples as canonical shards.

    A torn or changed tar goes to quarantine/ and its item has to be downloaded again (status 2). Items that
    are verified already are left alone. With --again their shards are read too: a changed one goes to quarantine/
    (status 2), and the next verify makes it again.
    """
    from data_prep.outcomes import describe, tally
    from data_prep.progress import progress
    from data_prep.verify import outlook
    from data_prep.verify import verify as run

    corpus = find_corpus(name, root)
    if dry_run:
        plans = outlook(corpus, list(tasks) or None)
        text = f"would verify {len(plans['to_verify'])} work items of {plans['rows']:,} rows; "
        answer(as_json, plans, text + f"{len(plans['already_verified'])} are verified already")
        return
    with progress("verifying rows") as report:
        verdicts = run(corpus, list(tasks) or None, processes, report, again=again)
    damage = [line for verdict in verdicts for line in verdict.damage]
    if damage:
        fetch = [f"--task {verdict.item}" for verdict in verdicts if verdict.mended_by == "download"]
        first = f"`data-prep download {name} {' '.join(fetch)}` (only what was damaged is fetched), then "
        raise UserError(
            "damaged files were moved to quarantine:\n  "
            + "\n  ".join(damage)
            + f"\nRun {first if fetch else ''}`data-prep verify {name}`: it makes their shards again."
        )
    new = [verdict.record for verdict in verdicts if verdict.new and verdict.record]
    outcomes = tally(*(record.outcomes for record in new))
    result = {
        "verified": [record.item for record in new],
        "already_verified": [verdict.item for verdict in verdicts if not verdict.new],
        "shards": sum(len(record.shards) for record in new),
        "outcomes": outcomes,
    }
    if new:
        text = f"verified {len(new)} work items, {result['shards']} shards: {describe(outcomes)}"
    else:
        proof = "verified, and read again just now" if again else "already verified"
        text = f"{proof}, nothing done: {len(verdicts)} work items at {corpus.folder}"
    answer(as_json, result, text)


main.add_command(retry)


@main.command(epilog=EXAMPLE + "data-prep manifest demo")
@name_argument
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be published; write nothing.")
@json_option
@click.pass_obj
def manifest(root: Path, name: str, dry_run: bool, as_json: bool) -> None:
    """Publish the shards, once every work item is verified: manifest.parquet and manifest.json."""
    from data_prep.outcomes import describe
    from data_prep.progress import progress
    from data_prep.publish import publish

    corpus = find_corpus(name, root)
    with progress("checking work items") as report:
        summary, new = publish(corpus, report, dry_run=dry_run)
    verb = "already published, nothing done:" if not new else "would publish" if dry_run else "published"
    text = (
        f"{verb} {summary['samples']:,} samples in {summary['shards']} shards at {corpus.folder}\n"
        f"  outcomes: {describe(summary['outcomes'])}\n"
        f"  dropped before: {describe(summary['dropped'])}\n"
        f"  fingerprint: {summary['fingerprint']}"
    )
    answer(as_json, {"new": new, **summary}, text)


@main.command(epilog=EXAMPLE + "data-prep status demo")
@name_argument
@json_option
@click.pass_obj
def status(root: Path, name: str, as_json: bool) -> None:
    """How far a corpus has come."""
    from data_prep.status import how_far

    corpus = find_corpus(name, root)
    result = how_far(corpus)
    answer(as_json, result, "\n".join(f"{key + ':':<12}{value:,}" for key, value in result.items()))


for command in (report_command, subset, merge, reshard, upload):
    main.add_command(command)
