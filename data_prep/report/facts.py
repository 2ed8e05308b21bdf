"""What is known of a corpus: from its plan, the records of its downloads, its manifest, and a sample of its shards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.corpus import Corpus
from data_prep.corpus_files import ACCOUNTED, TIMED_STATISTICS
from data_prep.hosts import host_of
from data_prep.manifest import Manifest, read_manifest
from data_prep.outcomes import OK
from data_prep.plan import read_plan
from data_prep.progress import Report
from data_prep.report.scripts import script
from data_prep.shard import Sample, read_samples
from pipeline.errors import UserError

SAMPLES = 4_000  # looked into, evenly spread
SHARDS = 40  # from which they come, evenly spread
ITEMS = 64  # work items whose rows are counted by host, evenly spread
HOSTS = 12  # named
BINS = 60  # of the time that the download took


@dataclass(frozen=True)
class HostFacts:
    """Rows of one host that were asked for. worst: the most frequent cause among its failures, if any failed."""

    host: str
    rows: int
    ok: int
    worst: str | None


@dataclass(frozen=True)
class Throughput:
    """Rows per second in each of BINS equal stretches of the download. seconds: of one stretch."""

    seconds: float
    per_second: list[float]
    ok_per_second: list[float]


@dataclass(frozen=True)
class SampleFacts:
    """What a sample of the published samples shows. Sizes in pixels, lengths in characters, bytes of the images."""

    samples: int
    width: list[int]
    height: list[int]
    original_width: list[int]
    original_height: list[int]
    image_bytes: list[int]
    caption_length: list[int]
    scripts: dict[str, int]
    repeated_images: int
    repeated_captions: int


@dataclass(frozen=True)
class CorpusFacts:
    """manifest, plan: as published and as planned. dropped, outcomes: reason and cause to rows."""

    name: str
    title: str
    licence: str
    source: str
    unverified: str | None
    published_yield: float | None
    expected_rows: int | None
    folder: str
    plan: dict[str, Any] | None
    manifest: dict[str, Any] | None
    dropped: dict[str, int]
    outcomes: dict[str, int]
    hosts: list[HostFacts]
    distinct_hosts: int
    host_items: int
    all_items: int
    throughput: Throughput | None
    sample: SampleFacts | None

    @property
    def rows_read(self) -> int:
        return int((self.manifest or self.plan or {})["rows_read"])

    @property
    def rows_planned(self) -> int:
        return int(self.manifest["rows"] if self.manifest else (self.plan or {})["rows_planned"])

    @property
    def ok(self) -> int:
        return self.outcomes.get(OK, 0)

    @property
    def achieved_yield(self) -> float | None:
        """Share of the rows with an outcome that became samples."""
        known = sum(self.outcomes.values())
        return self.ok / known if known else None


def read_facts(corpus: Corpus, report: Report) -> CorpusFacts:
    """Raises UserError for a corpus that is neither planned nor published."""
    plan = vars(read_plan(corpus)) if corpus.plan_file.exists() else None
    totals, manifest = ACCOUNTED.read(corpus.folder / "manifest.json"), _manifest(corpus)
    summary = totals if manifest else None
    known = summary or plan
    if known is None:
        raise UserError(
            f"nothing to report at {corpus.folder}: neither a plan nor a manifest. Run `data-prep plan` first"
        )
    hosts, outcomes, counted, files = _outcomes(corpus)
    definition = corpus.definition
    return CorpusFacts(
        name=definition.name,
        title=definition.title,
        licence=definition.licence,
        source=definition.source,
        unverified=definition.unverified,
        published_yield=definition.published_yield,
        expected_rows=definition.expected_rows,
        folder=str(corpus.folder),
        plan=plan and {key: plan[key] for key in ("fingerprint", "rows_read", "rows_planned", "tasks")},
        manifest=summary,
        dropped=dict(known["dropped"]),
        outcomes=dict(summary["outcomes"]) if summary else outcomes,
        hosts=_top(hosts),
        distinct_hosts=len(hosts),
        host_items=counted,
        all_items=files,
        throughput=_throughput(corpus),
        sample=_sample(manifest, report) if manifest else None,
    )


def _manifest(corpus: Corpus) -> Manifest | None:
    try:
        return read_manifest(corpus.folder)
    except UserError:
        return None


def _outcomes(corpus: Corpus) -> tuple[dict[str, Counter[str]], dict[str, int], int, int]:
    """Host to cause to rows, and cause to rows, of some of the items; how many those are, of how many."""
    files = sorted((corpus.folder / "outcomes").glob("*.parquet"))
    chosen = [files[int(n)] for n in _spread(len(files), ITEMS)]
    hosts: dict[str, Counter[str]] = defaultdict(Counter)
    causes: Counter[str] = Counter()
    for path in chosen:
        try:
            table = pq.read_table(path, columns=["url", "outcome"])
        except (OSError, pa.ArrowInvalid):
            continue  # being written again
        for url, outcome in zip(table["url"].to_pylist(), table["outcome"].to_pylist(), strict=True):
            hosts[host_of(url) or "none"][outcome] += 1
            causes[outcome] += 1
    return hosts, dict(causes), len(chosen), len(files)


def _top(hosts: dict[str, Counter[str]]) -> list[HostFacts]:
    largest = sorted(hosts, key=lambda host: (-hosts[host].total(), host))[:HOSTS]
    return [
        HostFacts(
            host,
            hosts[host].total(),
            hosts[host][OK],
            max((c for c in hosts[host] if c != OK), key=lambda cause: hosts[host][cause], default=None),
        )
        for host in largest
    ]


def _throughput(corpus: Corpus) -> Throughput | None:
    """From the statistics that img2dataset left of each shard: its rows are spread evenly over its time."""
    spans = []
    for path in (corpus.folder / "download").glob("*/*_stats.json"):
        if stats := TIMED_STATISTICS.whole(path):  # else of a download that runs
            spans.append([stats["start_time"], stats["end_time"], stats["count"], stats["successes"]])
    if not spans:
        return None
    start, end, count, ok = np.array(spans, dtype=np.float64).T
    edges = np.linspace(start.min(), max(end.max(), start.min() + 1e-3), BINS + 1)
    width = edges[1] - edges[0]
    total, good = np.zeros(BINS), np.zeros(BINS)
    for begin, stop, rows, successes in zip(start, end, count, ok, strict=True):
        share = np.clip(np.minimum(edges[1:], stop) - np.maximum(edges[:-1], begin), 0, None)
        share = share / share.sum() if share.sum() else np.eye(BINS)[min(int((begin - edges[0]) / width), BINS - 1)]
        total += rows * share / width
        good += successes * share / width
    return Throughput(float(width), total.tolist(), good.tolist())


def _sample(manifest: Manifest, report: Report) -> SampleFacts | None:
    samples: list[Sample] = []
    sizes: list[int] = []
    chosen = _spread(len(manifest.samples), SHARDS)
    for done, shard in enumerate(chosen):
        file = manifest.shard(int(shard))
        rows = _spread(file.samples, max(SAMPLES // len(chosen), 1))
        try:
            for sample in read_samples(file.path, file.bytes, rows.tolist()):
                sizes.append(len(sample.image))
                samples.append(sample._replace(image=b""))
        except (OSError, ValueError):
            continue  # `verify --again` is what judges shards
        report(done + 1, len(chosen))
    if not samples:
        return None

    def numbers(key: str) -> list[int]:
        return [value for sample in samples if isinstance(value := sample.metadata.get(key), int)]

    hashes = [sample.metadata["sha256"] for sample in samples if sample.metadata.get("sha256")]
    return SampleFacts(
        samples=len(samples),
        width=numbers("width"),
        height=numbers("height"),
        original_width=numbers("original_width"),
        original_height=numbers("original_height"),
        image_bytes=sizes,
        caption_length=[len(sample.caption) for sample in samples],
        scripts=dict(Counter(script(sample.caption) for sample in samples).most_common()),
        repeated_images=_repeated(hashes),
        repeated_captions=_repeated(sample.caption for sample in samples),
    )


def _repeated(values: Iterable[str]) -> int:
    """How many of them are equal to an earlier one."""
    counts = Counter(values)
    return counts.total() - len(counts)


def _spread(total: int, most: int) -> np.ndarray:
    """Up to `most` of the numbers below `total`, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(np.int64)) if total else np.arange(0)
