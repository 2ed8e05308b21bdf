"""The command line `data-prep`. Commands import what they need when they run, so that `--help` is instant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from data_prep.cli_download import download, retry
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
    context.obj = root


main.add_command(fabricate)
main.add_command(serve)


@main.command(epilog=EXAMPLE + "data-prep plan demo --tasks 4 --samples-per-shard 1000")
@name_argument
@click.option("--tasks", type=click.IntRange(1, 100_000), default=1, help="Work items to cut the rows into.")
@click.option("--samples-per-shard", type=click.IntRange(1), default=10_000, help="Samples of a full shard.")
@click.option("--image-size", type=click.IntRange(1), help="Longest side kept, pixels.  [default: the corpus's]")
@click.option("--dry-run", is_flag=True, help="Say what would be planned; write nothing.")
@json_option
@click.pass_obj
def plan(
    root: Path,
    name: str,
    tasks: int,
    samples_per_shard: int,
    image_size: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Freeze which rows are downloaded, and cut them into work items.

    Reads the metadata (Parquet with URLs and captions), drops unusable and repeated rows with a reason, and
    gives each row a stable uid. The same again does nothing; other rows or settings are refused, with the
    difference.
    """
    from data_prep.outcomes import describe
    from data_prep.plan import make_plan
    from data_prep.progress import progress

    corpus = find_corpus(name, root)
    if image_size:
        corpus = corpus.with_image_size(image_size)
    described = corpus.described_differently()
    with progress("planning rows") as report:
        made, new = make_plan(corpus, tasks=tasks, samples_per_shard=samples_per_shard, dry_run=dry_run, report=report)
    if dry_run:
        verb = "would plan" if new else "already planned, nothing to do:"
    else:
        verb = "planned" if new else "already planned, nothing done:"
    result = {
        "new": new,
        "dry_run": dry_run,
        "fingerprint": made.fingerprint,
        "tasks": made.tasks,
        "rows_read": made.rows_read,
        "rows_planned": made.rows_planned,
        "dropped": made.dropped,
        "described_differently": described,
    }
    text = (
        f"{verb} {made.rows_planned:,} of {made.rows_read:,} rows in {made.tasks} work items at "
        f"{corpus.folder} (dropped: {describe(made.dropped)})"
    )
    if described:
        verb = "would change" if dry_run else f"changed; `data-prep manifest {made.corpus}` publishes it"
        text += f"\ncorpus.yaml {verb}:\n  " + "\n  ".join(described)
    answer(as_json, result, text)


main.add_command(download)


@main.command(epilog=EXAMPLE + "data-prep verify demo --processes 2")
@name_argument
@task_option
@click.option("--processes", type=click.IntRange(1), default=1, help="Work items at once.")
@click.option("--again", is_flag=True, help="Also read the shards of verified items: are they what was written?")
@json_option
@click.pass_obj
def verify(root: Path, name: str, tasks: Sequence[int], processes: int, again: bool, as_json: bool) -> None:
    """Decode every downloaded image, and write the proven samples as canonical shards.

    A torn or changed tar goes to quarantine/ and its item has to be downloaded again (status 2). Items that
    are verified already are left alone. With --again their shards are read too: a changed one goes to quarantine/
    (status 2), and the next verify makes it again.
    """
    from data_prep.outcomes import describe, tally
    from data_prep.progress import progress
    from data_prep.verify import verify as run

    corpus = find_corpus(name, root)
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
@json_option
@click.pass_obj
def manifest(root: Path, name: str, as_json: bool) -> None:
    """Publish the shards, once every work item is verified: manifest.parquet and manifest.json."""
    from data_prep.outcomes import describe
    from data_prep.publish import publish

    corpus = find_corpus(name, root)
    summary, new = publish(corpus)
    verb = "published" if new else "already published, nothing done:"
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
