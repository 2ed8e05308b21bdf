"""The command that shows a corpus: `data-prep report`."""

from __future__ import annotations

from pathlib import Path

import click

from data_prep.cli.console import EXAMPLE, answer, find_corpus, json_option, name_argument


@click.command(epilog=EXAMPLE + "data-prep report demo")
@name_argument
@click.option("--dry-run", is_flag=True, help="Print the facts in place of writing a page (with --json: all of them).")
@json_option
@click.pass_obj
def report(root: Path, name: str, dry_run: bool, as_json: bool) -> None:
    """One HTML page about a corpus, and its charts as PNGs, in report/ of its folder.

    What became of every row, by cause and by host; rows per second; sizes, aspect ratios, lengths and scripts of
    captions, repetitions; a contact sheet; the yield against the published one. Works on a plan alone, and while a
    download runs: what is not there yet is said to be missing.
    """
    from data_prep.outcomes import describe
    from data_prep.progress import progress
    from data_prep.report import build_report

    corpus = find_corpus(name, root)
    with progress("looking into shards") as advance:
        page, facts = build_report(corpus, advance, dry_run=dry_run)
    paths = {"page": str(page), "facts": str(page.with_name("facts.json"))}
    if dry_run:
        counts = "".join(f"\n  {key}: {describe(facts[key])}" for key in ("dropped", "outcomes"))
        answer(as_json, {"page": str(page), **facts}, f"would write {page}{counts}")
        return
    answer(as_json, paths, f"wrote {page}")
