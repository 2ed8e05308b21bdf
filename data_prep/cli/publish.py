"""The commands that prove what came and publish it: `data-prep verify`, `manifest` and `status`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from data_prep.cli.console import EXAMPLE, answer, find_corpus, json_option, name_argument, task_option
from pipeline.errors import UserError


@click.command(epilog=EXAMPLE + "data-prep verify demo --processes 2")
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


@click.command(epilog=EXAMPLE + "data-prep manifest demo")
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


@click.command(epilog=EXAMPLE + "data-prep status demo")
@name_argument
@json_option
@click.pass_obj
def status(root: Path, name: str, as_json: bool) -> None:
    """How far a corpus has come."""
    from data_prep.status import how_far

    corpus = find_corpus(name, root)
    result = how_far(corpus)
    answer(as_json, result, "\n".join(f"{key + ':':<12}{value:,}" for key, value in result.items()))
