"""What can be done with published corpora: `data-prep subset`, `merge`, `reshard` and `upload`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from data_prep.cli.console import EXAMPLE, answer, json_option, name_argument

_OPTIONS = (
    click.option("--out", required=True, help="Name of the new corpus, or a URL that ends with it (s3://bucket/name)."),
    click.option("--processes", type=click.IntRange(1), default=1, help="Shards at once; each holds one in memory."),
    click.option("--dry-run", is_flag=True, help="Count what would stay; write nothing."),
    json_option,
)
_size_option = click.option(
    "--samples-per-shard", type=click.IntRange(1), help="Samples of a full shard.  [default: as the first source]"
)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command(
    epilog=EXAMPLE + "data-prep subset demo --where 'original_width >= 200 and caption_length > 20' --out demo-large\n"
    "  data-prep subset s3://bucket/datacomp-medium --uids dfn.npy --out dfn-14m --processes 16"
)
@name_argument
@click.option("--where", help="Samples to keep: an expression over their JSON, `caption` and `caption_length`.")
@click.option(
    "--uids",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Samples to keep: .npy file of uids in DataComp's form (dtype u8,u8).",
)
@_size_option
@_options
@click.pass_obj
def subset(root: Path, name: str, where: str | None, uids: Path | None, **options: Any) -> None:
    """A new corpus of some of a corpus's samples, without downloading anything.

    NAME is a published corpus: its name, its folder, or a URL such as s3://bucket/folder. Samples are copied as they
    are, byte for byte, into canonical shards that are all full but the last. Columns of an expression are what the
    samples' JSON holds (width, height, original_width, original_height, url, ...), `caption` and `caption_length`
    (characters). With both --where and --uids, a sample has to pass both.

    The same again does what is missing and nothing else; another request into the same corpus is refused.
    """
    if where is None and uids is None:
        raise click.UsageError("say which samples to keep: --where EXPRESSION, --uids FILE, or both")
    _derive(root, [name], where=where, uids=uids, **options)


@click.command(epilog=EXAMPLE + "data-prep merge cc3m cc12m --out cc15m --processes 8")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_size_option
@_options
@click.pass_obj
def merge(root: Path, names: Sequence[str], **options: Any) -> None:
    """A new corpus of all samples of several corpora, in their order; a uid that comes twice is kept once.

    Each NAME is a published corpus: its name, its folder, or a URL. To train on several corpora as they are, or with
    weights, no merge is needed: see loader.manifest.
    """
    _derive(root, names, **options)


@click.command(epilog=EXAMPLE + "data-prep reshard demo --samples-per-shard 500 --out demo-500")
@name_argument
@click.option("--samples-per-shard", type=click.IntRange(1), required=True, help="Samples of a full shard.")
@_options
@click.pass_obj
def reshard(root: Path, name: str, **options: Any) -> None:
    """The same samples in shards of another size."""
    _derive(root, [name], **options)


@click.command(epilog=EXAMPLE + "data-prep upload demo s3://bucket/corpora/demo")
@name_argument
@click.argument("url")
@click.option("--threads", type=click.IntRange(1), default=8, help="Files at once.")
@click.option("--dry-run", is_flag=True, help="Count what would be copied; copy nothing.")
@json_option
@click.pass_obj
def upload(root: Path, name: str, url: str, threads: int, dry_run: bool, as_json: bool) -> None:
    """Copy a published corpus to a URL (s3://, gs://, ...), the manifest last.

    Every shard is checked against the manifest before it is copied; what is there already is not copied again.
    Training reads it there: loader.manifest=URL. Credentials and endpoints come from the environment.
    """
    from data_prep.progress import progress
    from data_prep.upload import upload_corpus

    folder = root / name if (root / name).is_dir() else Path(name)
    with progress("files") as report:
        result = upload_corpus(folder, url, threads=threads, dry_run=dry_run, report=report)
    number, verb = (result["missing"], "would copy") if dry_run else (result["uploaded"], "copied")
    text = f"{verb} {number:,} files to {url}, {result['already_there']:,} were there"
    answer(as_json, result, text)


def _derive(root: Path, names: Sequence[str], *, out: str, as_json: bool, **options: Any) -> None:
    from data_prep.derive import derive
    from data_prep.outcomes import describe
    from data_prep.progress import progress
    from data_prep.upload import upload_corpus
    from pipeline.storage import is_url

    sources = [name if is_url(name) or not (root / name).is_dir() else str(root / name) for name in names]
    target = root / out.rstrip("/").rpartition("/")[2] if is_url(out) else root / out
    with progress("shards") as report:
        summary, new = derive(sources, target, report=report, **options)
    verb = "already made, nothing done:" if not new else "would keep" if options["dry_run"] else "kept"
    text = (
        f"{verb} {summary['ok']:,} of {summary['rows_read']:,} samples, at {target} "
        f"(dropped: {describe(summary['dropped'])})"
    )
    if "fingerprint" in summary:
        text += f"\n  {summary['shards']} shards, fingerprint: {summary['fingerprint']}"
    result = {"new": new, **summary}
    if is_url(out) and not options["dry_run"]:
        with progress("files") as report:
            result["uploaded"] = upload_corpus(target, out, report=report)["uploaded"]
        text += f"\n  copied {result['uploaded']:,} files to {out}"
    answer(as_json, result, text)
