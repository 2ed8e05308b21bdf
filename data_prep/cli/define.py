"""The commands that come before a plan: `data-prep new` and `data-prep metadata`."""

from __future__ import annotations

from pathlib import Path

import click

from data_prep.cli.console import EXAMPLE, answer, find_corpus, json_option, name_argument


@click.command(epilog=EXAMPLE + "data-prep new birds birds.csv --licence 'CC-BY-4.0 (the list)'")
@name_argument
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--url", help="Column with the URLs.  [default: found by its content]")
@click.option("--caption", help="Column with the captions.  [default: found by its name or content]")
@click.option("--title", help="Title for the manifest and the report.  [default: the name]")
@click.option("--licence", help="Licence for the manifest and the report.  [default: not stated]")
@click.option("--dry-run", is_flag=True, help="Show what is in the files; write nothing.")
@json_option
@click.pass_obj
def new(
    root: Path,
    name: str,
    files: tuple[Path, ...],
    url: str | None,
    caption: str | None,
    title: str | None,
    licence: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Define a corpus from files of URLs and captions (.parquet, .csv, .tsv, .jsonl).

    Looks into the files, shows rows, columns, missing values, lengths of captions, hosts and repetitions in a sample,
    and writes the definition NAME.yaml into the root, to be read and edited. The files stay where they are. Then:
    data-prep plan NAME.
    """
    from data_prep import sniff

    preview, header = sniff.sniff(files, url=url, caption=caption)
    content = sniff.definition_yaml(name, files, preview, header, title, licence)
    path = root / f"{name}.yaml"
    made = False if dry_run else sniff.write_definition(path, content)
    verb = "wrote" if made else "would write" if dry_run else "already there, nothing done:"
    result = {"new": made, "path": str(path), "header": header, **sniff.as_json(preview)}
    answer(as_json, result, f"{sniff.describe(preview)}\n\n{verb} {path}:\n\n{content}")


@click.command(epilog=EXAMPLE + "data-prep metadata cc3m\n  HF_TOKEN=... data-prep metadata relaion-2b --dry-run")
@name_argument
@click.option("--dry-run", is_flag=True, help="Ask what there is and how much; fetch nothing.")
@json_option
@click.pass_obj
def metadata(root: Path, name: str, dry_run: bool, as_json: bool) -> None:
    """Fetch the lists of URLs and captions from where the definition says: the Hugging Face hub, or URLs.

    Files are continued where they were cut off, checked against the hub's checksums, and kept at one commit. Where a
    licence has to be accepted first, the message says where. HF_TOKEN, HF_ENDPOINT and proxies are obeyed.
    """
    from data_prep.metadata import fetch_metadata
    from data_prep.progress import progress

    corpus = find_corpus(name, root)
    with progress("metadata files") as report:
        result = fetch_metadata(corpus, dry_run=dry_run, report=report)
    if dry_run:
        text = f"{result['missing']} files to fetch, {result['already_there']} are there"
    elif result["fetched"]:
        text = f"fetched {result['fetched']} files, {result['already_there']} were there"
    else:
        text = f"already there, nothing done: {result['already_there']} files"
    text += f" ({result['bytes'] / 1e9:.2f} GB by the hub), at {corpus.folder}"
    text += "".join(f"\n  {key} is {commit}" for key, commit in result["commits"].items())
    if result["by_hand"]:
        text += f"\n  Note: {result['by_hand'].strip()}"
    answer(as_json, result, text)
