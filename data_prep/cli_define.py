"""The commands that come before a plan: `data-prep new` and `data-prep metadata`."""

from __future__ import annotations

from pathlib import Path

import click

from data_prep.console import EXAMPLE, answer, find_corpus, json_option, name_argument


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
