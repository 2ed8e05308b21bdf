"""`data-prep plan --estimate`: what downloading a corpus takes, from a sample of its metadata and a few assumptions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

from data_prep.corpus import Corpus, Fetch
from data_prep.deal import open_files
from data_prep.outcomes import tally
from data_prep.plan import read_plan
from data_prep.screen import Screen
from data_prep.tables import MetadataFile
from pipeline.errors import UserError
from pipeline.text import size

_SAMPLED_FILES = 16  # spread evenly, of each its first batch or, of Parquet, the first of its middle row group
_HOST = r"^(?i:https?)://(?P<host>[^/?#]*)"
_MOST_HOSTS = 5
DEFAULT_SUCCESS = 0.7  # of a corpus without a published yield


@dataclass(frozen=True)
class Assumed:
    """What an estimate rests on.

    images_per_second: of one node. bytes_per_image: in a shard. success: share of the rows that become images.
    hours: in which it has to be done; None to ask how long `nodes` take.
    """

    images_per_second: float
    bytes_per_image: float
    success: float
    nodes: int = 1
    hours: float | None = None


@dataclass(frozen=True)
class Estimate:
    """What downloading takes.

    kept: rows to ask for. requests: with the further attempts for rows that fail. connections: of one node.
    seconds_on_failures: of one connection, if all failures are timeouts. hosts: the busiest,
    {host, requests, per_second}.
    """

    rows: int
    kept: int
    planned: bool
    sampled: int
    dropped: dict[str, int]
    images: int
    requests: int
    retries: int
    nodes: int
    hours: float
    downloads_per_second: float
    disk_bytes: float
    seconds_on_failures: float
    connections: int
    hosts: list[dict[str, Any]]
    assumed: dict[str, Any]


def estimate(corpus: Corpus, assumed: Assumed) -> Estimate:
    """Rows and hosts from a sample; the number of rows from the plan where there is one (then without duplicates)."""
    screen, fetch = Screen(corpus), corpus.definition.fetch
    files = open_files(list(corpus.metadata_files().values()), screen, corpus.definition)
    sampled, dropped, hosts = _sample(files, screen)
    kept_share = hosts.total() / sampled if sampled else 0
    if not kept_share:
        raise UserError(f"not one of {sampled:,} rows of {corpus.folder} passes the screening: {dropped}")
    planned = corpus.plan_file.exists()
    rows = sum(file.rows for file in files)
    kept = read_plan(corpus).rows_planned if planned else round(rows * kept_share)
    nodes, hours = _nodes_and_hours(kept, assumed)
    failed = kept * (1 - assumed.success)
    requests, retries, lost = _cost_of_failures(kept, failed, fetch)
    rate = kept / (hours * 3600)
    busiest = [
        {"host": host, "requests": round(requests * n / hosts.total()), "per_second": rate * n / hosts.total()}
        for host, n in hosts.most_common(_MOST_HOSTS)
    ]
    return Estimate(
        rows=rows,
        kept=kept,
        planned=planned,
        sampled=sampled,
        dropped=dropped,
        images=round(kept - failed),
        requests=requests,
        retries=retries,
        nodes=nodes,
        hours=hours,
        downloads_per_second=rate,
        disk_bytes=(kept - failed) * assumed.bytes_per_image,
        seconds_on_failures=lost,
        connections=fetch.processes * fetch.threads,
        hosts=busiest,
        assumed=asdict(assumed),
    )


def _nodes_and_hours(rows: int, assumed: Assumed) -> tuple[int, float]:
    """`assumed.hours` decides the nodes; without it `assumed.nodes` decide the hours."""
    node_hours = rows / assumed.images_per_second / 3600
    if assumed.hours is None:
        return assumed.nodes, node_hours / assumed.nodes
    return max(math.ceil(node_hours / assumed.hours), 1), assumed.hours


def _cost_of_failures(rows: int, failed: float, fetch: Fetch) -> tuple[int, int, float]:
    """Requests in all, those of them that are further attempts, and the seconds if all failures are timeouts."""
    retries = round(failed * fetch.retries)
    return rows + retries, retries, failed * (1 + fetch.retries) * fetch.timeout_seconds


def _sample(files: Sequence[MetadataFile], screen: Screen) -> tuple[int, dict[str, int], Counter[str]]:
    """Rows read, rows dropped by reason, and kept rows by host."""
    read, dropped, hosts = 0, Counter[str](), Counter[str]()
    for number in range(min(len(files), _SAMPLED_FILES)):
        file = files[number * len(files) // min(len(files), _SAMPLED_FILES)]
        batch = next(file.batches([file.pieces // 2]), None)
        if batch is None:
            continue
        screened = screen(batch.rows)
        read += batch.rows.num_rows + len(batch.malformed)
        dropped.update(screened.dropped())
        dropped["malformed"] += len(batch.malformed)
        found = pc.struct_field(pc.extract_regex(screened.rows["url"], _HOST), "host")
        hosts.update(pc.utf8_lower(found).to_pylist())
    return read, tally(+dropped), hosts


def as_text(result: Estimate) -> str:
    """For a person."""
    waiting = result.seconds_on_failures / 3600
    known = "planned" if result.planned else f"kept, by a sample of {result.sampled:,}, before repeated ones go"
    lines = [
        f"rows:       {result.kept:,} {known}, of {result.rows:,}",
        f"images:     {result.images:,}, if {result.assumed['success']:.0%} of the rows still are there",
        f"speed:      {result.downloads_per_second:,.0f} downloads per second on {result.nodes:,} nodes of "
        f"{result.assumed['images_per_second']:,.0f}, for {result.hours:,.2f} hours",
        f"disk:       {size(result.disk_bytes)} of shards, and as much again until `verify` is through",
        f"requests:   {result.requests:,}, of which {result.retries:,} are further attempts for rows that fail",
        f"failures:   at most {waiting:,.0f} connection-hours of waiting, if every one is a timeout: "
        f"{waiting / result.connections:,.1f} hours of {result.connections:,} connections",
        "per host:   " + ", ".join(f"{h['host']} {h['requests']:,} ({h['per_second']:,.1f}/s)" for h in result.hosts),
    ]
    return "\n".join(lines)
