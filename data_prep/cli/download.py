"""The commands that ask the web: `data-prep download` and `data-prep retry`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from data_prep.cli.console import EXAMPLE, answer, fetch_options, find_corpus, json_option, name_argument, task_option

if TYPE_CHECKING:
    from data_prep.corpus import Fetch


@click.command(epilog=EXAMPLE + "data-prep download demo --task 0 --processes 4 --threads 128")
@name_argument
@task_option
@fetch_options
@click.option(
    "--expected-yield",
    type=click.FloatRange(0, 1),
    help="Share of rows that should be images; far fewer of the first 1,000 and it stops. 0: accept any.  "
    "[default: what the corpus publishes]",
)
@click.option("--dry-run", is_flag=True, help="Check this machine and say what would be downloaded.")
@json_option
@click.pass_obj
def download(
    root: Path,
    name: str,
    tasks: Sequence[int],
    expected_yield: float | None,
    dry_run: bool,
    as_json: bool,
    **wishes: object,
) -> None:
    """Download work items with img2dataset, each into a folder of its own.

    An item that is done is not downloaded again; of one that was killed, finished shards are kept. Servers are not
    trusted: http and https only, public addresses only, so many bytes in so much time. Images whose server opts out
    (X-Robots-Tag: noai and the like) are not kept.
    """
    from data_prep.download import download as run
    from data_prep.download import promised_yield
    from data_prep.outcomes import OK, describe, tally
    from data_prep.preflight import look
    from data_prep.progress import progress

    corpus = find_corpus(name, root)
    fetch = _wished(corpus.definition.fetch, wishes)
    if dry_run:
        facts = look(corpus, fetch, list(tasks) or None, promised_yield(corpus, expected_yield))
        answer(as_json, facts, "\n".join(f"{key + ':':<22}{value:,}" for key, value in facts.items()))
        return
    with progress("downloading rows") as report:
        results = run(corpus, fetch, list(tasks) or None, report, expected_yield, partial(click.echo, err=True))
    new = [done for done, is_new in results if is_new]
    counts = tally(*(done.outcomes for done in new))
    failed = {cause: number for cause, number in counts.items() if cause != OK}
    result = {
        "downloaded": [done.item for done in new],
        "already_done": [done.item for done, is_new in results if not is_new],
        "rows": sum(done.rows for done in new),
        "outcomes": counts,
    }
    if new:
        text = (
            f"downloaded {len(new)} work items: {counts.get(OK, 0):,} of {result['rows']:,} rows are images "
            f"(others: {describe(failed)})"
        )
    else:
        text = f"already downloaded, nothing done: {len(results)} work items at {corpus.folder}"
    answer(as_json, result, text)


def _wished(fetch: Fetch, wishes: dict[str, object]) -> Fetch:
    return fetch.model_copy(update={key: wish for key, wish in wishes.items() if wish is not None})


@click.command(epilog=EXAMPLE + "data-prep retry demo --causes timeout,dns,5xx")
@name_argument
@click.option(
    "--causes",
    help="Outcomes to try again, with commas; 5xx for all of a class.  [default: what may pass: timeout, dns, "
    "connection, truncated, lost, 408, 425, 429, 5xx]",
)
@task_option
@fetch_options
@click.option("--dry-run", is_flag=True, help="Count the rows; ask for nothing.")
@json_option
@click.pass_obj
def retry(
    root: Path, name: str, causes: str | None, tasks: Sequence[int], dry_run: bool, as_json: bool, **wishes: object
) -> None:
    """Ask again for rows that failed, by cause; images that are there are never downloaded twice.

    What comes is added as further shards; `data-prep verify` and `data-prep manifest` take them in. A retry that was
    killed goes on where it was. The causes of a corpus are those that `data-prep manifest` counts.
    """
    from data_prep.outcomes import describe
    from data_prep.progress import progress
    from data_prep.retry import retry as run

    corpus = find_corpus(name, root)
    fetch = _wished(corpus.definition.fetch, wishes)
    wanted = [cause.strip() for cause in causes.split(",") if cause.strip()] if causes else None
    with progress("trying rows again") as report:
        result = run(corpus, fetch, wanted, list(tasks) or None, report, dry_run=dry_run)
    rows = sum(result.rows.values())
    text = []
    if rows:
        text.append(f"{'would try' if dry_run else 'tried'} {rows:,} rows again ({describe(result.rows)})")
    if result.continued:
        verb = "is to be" if dry_run else "was"
        text.append(f"a retry that was cut short {verb} ended: work items {', '.join(map(str, result.continued))}")
    if result.done:
        text.append(f"run `data-prep verify {name}` and `data-prep manifest {name}` to take in what came")
    if result.unverified:
        text.append(f"not looked at, because not verified yet: work items {', '.join(map(str, result.unverified))}")
    facts = {
        "rows": result.rows,
        "tried": [done.item for done in result.done],
        "continued": result.continued,
        "unverified": result.unverified,
        "dry_run": dry_run,
    }
    answer(as_json, facts, "\n".join(text) or f"nothing to try again, nothing done: {corpus.folder}")
