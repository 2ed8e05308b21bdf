"""The command `data-prep plan`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_prep.cli.console import EXAMPLE, answer, find_corpus, json_option, name_argument

if TYPE_CHECKING:
    from data_prep.corpus import Corpus
    from data_prep.plan import Plan


LARGE_ITEM_ROWS = 1_000_000
VERIFY_BYTES_PER_ROW = 2_500  # measured, see docs/corpora.md


def _part(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    part, _slash, parts = value.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise click.BadParameter(f"{value!r} is not I/N with I from 0 to N-1")
    return int(part), int(parts)


@click.command(
    epilog=EXAMPLE + "data-prep plan demo --tasks 4 --samples-per-shard 1000\n  data-prep plan demo --explain 17\n"
    "  data-prep plan demo --estimate --nodes 4"
)
@name_argument
@click.option("--tasks", type=click.IntRange(1, 100_000), default=1, help="Work items to cut the rows into.")
@click.option("--samples-per-shard", type=click.IntRange(1), default=10_000, help="Samples of a full shard.")
@click.option("--image-size", type=click.IntRange(1), help="Longest side kept, pixels.  [default: the corpus's]")
@click.option(
    "--allow-private",
    is_flag=True,
    envvar="DATA_PREP_ALLOW_PRIVATE",
    help="Keep URLs of loopback, private and metadata addresses.  [default: the corpus's]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be planned; write nothing.")
@click.option("--part", callback=_part, metavar="I/N", help="Read share I (from 0) of N of the metadata, no more.")
@click.option("--merge", type=click.IntRange(1), metavar="N", help="Make the plan of N parts that were read.")
@click.option("--explain", metavar="ROW", help="Say what became of a row: its number (from 0), uid or URL.")
@click.option("--estimate", is_flag=True, help="Say what the download takes; write nothing. Its assumptions:")
@click.option("--images-per-second", type=click.FloatRange(1), default=800, help="- of one node")
@click.option("--bytes-per-image", type=click.FloatRange(1), default=40_000, help="- in a shard")
@click.option("--nodes", type=click.IntRange(1), default=1, help="- how many there are")
@click.option("--hours", type=click.FloatRange(0, min_open=True), help="- in which it has to be done: says the nodes")
@json_option
@click.pass_obj
def plan(
    root: Path,
    name: str,
    tasks: int,
    samples_per_shard: int,
    image_size: int | None,
    allow_private: bool,
    dry_run: bool,
    part: tuple[int, int] | None,
    merge: int | None,
    explain: str | None,
    estimate: bool,
    images_per_second: float,
    bytes_per_image: float,
    nodes: int,
    hours: float | None,
    as_json: bool,
) -> None:
    """Freeze which rows are downloaded, and cut them into work items.

    Reads the metadata (Parquet, CSV, TSV or JSON lines with URLs and captions) in bounded memory, drops unusable and
    repeated rows with a reason, and gives each row a stable uid. The same again does nothing; other rows or settings
    are refused, with the difference. Large metadata is read by several machines at once: --part 0/N to N-1/N on them,
    then --merge N.
    """
    if sum((part is not None, merge is not None, explain is not None, estimate)) > 1:
        raise click.UsageError("--part, --merge, --explain and --estimate are different things: give one of them")
    if dry_run and (part or merge):
        raise click.UsageError("--dry-run plans in one piece: leave --part and --merge out")
    corpus = find_corpus(name, root)
    _note_edits(corpus, root / f"{name}.yaml")
    if image_size:
        corpus = corpus.with_image_size(image_size)
    if allow_private:
        corpus = corpus.with_private_hosts()
    if not dry_run:
        _copy_metadata(corpus)
    if explain is not None:
        _explain(corpus, explain, as_json)
    elif estimate:
        _estimate(corpus, images_per_second, bytes_per_image, nodes, hours, as_json)
    elif part is not None:
        _make_part(corpus, tasks, samples_per_shard, part, as_json)
    else:
        _make_plan(corpus, tasks, samples_per_shard, merge, dry_run, as_json)


def _note_edits(corpus: Corpus, given: Path) -> None:
    """Say so where the definition that a corpus was planned by is no longer what its YAML file in the root says."""
    from data_prep.corpus import open_corpus

    if not (given.is_file() and (corpus.folder / "corpus.yaml").is_file()):
        return
    edited = open_corpus(str(given), given.parent).with_image_size(corpus.definition.images.image_size)
    if corpus.definition.fetch.allow_private:
        edited = edited.with_private_hosts()
    if changes := edited.described_differently():
        lines = "\n  ".join(changes)
        click.echo(
            f"note: in force is {corpus.folder / 'corpus.yaml'}, not {given}, which says otherwise:\n  {lines}\n"
            f"`data-prep plan {given} ...` plans by that.",
            err=True,
        )


def _copy_metadata(corpus: Corpus) -> None:
    from data_prep.metadata import copy_metadata
    from data_prep.progress import progress

    with progress("metadata files") as report:
        copy_metadata(corpus, report)


def _make_plan(
    corpus: Corpus, tasks: int, samples_per_shard: int, merge: int | None, dry_run: bool, as_json: bool
) -> None:
    from data_prep.parts import merge_parts
    from data_prep.plan import make_plan
    from data_prep.progress import progress

    described = corpus.described_differently()
    if merge:
        made, new = merge_parts(corpus, tasks=tasks, samples_per_shard=samples_per_shard, parts=merge)
    else:
        with progress("planning rows") as report:
            made, new = make_plan(
                corpus, tasks=tasks, samples_per_shard=samples_per_shard, dry_run=dry_run, report=report
            )
    result, text = _said(corpus, made, new, dry_run)
    largest = max(item["rows"] for item in made.items)
    if largest > LARGE_ITEM_ROWS:
        gib = largest * VERIFY_BYTES_PER_ROW / 2**30
        text += (
            f"\nnote: work items have up to {largest:,} rows; `verify` takes about {gib:,.1f} GiB for each at a "
            "time. More --tasks make them smaller; a plan is never changed later."
        )
    result["described_differently"] = described
    if described:
        verb = "would change" if dry_run else f"changed; `data-prep manifest {made.corpus}` publishes it"
        text += f"\ncorpus.yaml {verb}:\n  " + "\n  ".join(described)
    answer(as_json, result, text)


def _said(corpus: Corpus, made: Plan, new: bool, dry_run: bool) -> tuple[dict[str, Any], str]:
    from data_prep.outcomes import describe

    verb = {
        (True, True): "would plan",
        (True, False): "planned",
        (False, True): "already planned, nothing to do:",
        (False, False): "already planned, nothing done:",
    }[new, dry_run]
    facts = ("fingerprint", "tasks", "rows_read", "rows_planned", "dropped")
    text = (
        f"{verb} {made.rows_planned:,} of {made.rows_read:,} rows in {made.tasks} work items at "
        f"{corpus.folder} (dropped: {describe(made.dropped)})"
    )
    return {"new": new, "dry_run": dry_run, **{fact: getattr(made, fact) for fact in facts}}, text


def _make_part(corpus: Corpus, tasks: int, samples_per_shard: int, part: tuple[int, int], as_json: bool) -> None:
    from data_prep.outcomes import describe
    from data_prep.parts import make_part
    from data_prep.progress import progress

    number, parts = part
    with progress("reading rows") as report:
        done, new = make_part(
            corpus, tasks=tasks, samples_per_shard=samples_per_shard, part=number, parts=parts, report=report
        )
    if done is None:
        answer(as_json, {"new": False}, f"already planned, nothing done: {corpus.folder}")
        return
    verb = "read" if new else "already read, nothing done:"
    text = f"{verb} part {number} of {parts}: {done.rows_read:,} rows (dropped: {describe(done.dropped)})"
    answer(as_json, {"new": new, "rows_read": done.rows_read, "dropped": done.dropped}, text)


def _explain(corpus: Corpus, asked: str, as_json: bool) -> None:
    from data_prep.explain import explain

    rows = explain(corpus, asked)
    text = "\n".join(
        f"row {row.number:,} of {row.file}: {row.fate}: {row.because}\n"
        + "\n".join(f"  {key}: {value!r}" for key, value in row.values.items())
        for row in rows
    )
    answer(as_json, {"rows": [asdict(row) for row in rows]}, text)


def _estimate(
    corpus: Corpus, images_per_second: float, bytes_per_image: float, nodes: int, hours: float | None, as_json: bool
) -> None:
    from data_prep.estimate import DEFAULT_SUCCESS, Assumed, as_text, estimate

    success = corpus.definition.published_yield or DEFAULT_SUCCESS
    result = estimate(corpus, Assumed(images_per_second, bytes_per_image, success, nodes, hours))
    answer(as_json, asdict(result), as_text(result))
