"""The command that shows a corpus: `data-prep report`."""

from __future__ import annotations

from pathlib import Path

import click

from data_prep.console import EXAMPLE, answer, find_corpus, json_option, name_argument


@click.command(epilog=EXAMPLE + "data-prep report demo")
@name_argument
@json_option
@click.pass_obj
def report(root: Path, name: str, as_json: bool) -> None:
    """One HTML page about a corpus, and its charts as PNGs, in report/ of its folder.

    What became of every row, by cause and by host; rows per second; sizes, aspect ratios, lengths and scripts of
    captions, repetitions; a contact sheet; the yield against the published one. Works on a plan alone, and while a
    download runs: what is not there yet is said to be missing.
    """
    from data_prep.progress import progress
    from data_prep.report import build_report

    corpus = find_corpus(name, root)
    with progress("looking into shards") as advance:
        page, _ = build_report(corpus, advance)
    answer(as_json, {"page": str(page), "facts": str(page.with_name("facts.json"))}, f"wrote {page}")
