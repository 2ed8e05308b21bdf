"""The files that `data-prep` leaves in a corpus, and what their fields are: whoever reads one reads it as its kind.

Fields without a default are those that no file of this kind lacks. A leaf: `manifest.py` is one.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, field

from pipeline.run_files import Downloads
from pipeline.typed_files import Count, Kind, Seconds, Sha256, Shape, UnixSeconds

Counts = dict[str, Count]  # by reason or cause
AtLeastOne = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Number = Annotated[int, Meta(ge=0, le=2**31 - 1)]  # of a work item or an attempt
ShardPath = Annotated[str, Meta(pattern=r"^shards/[0-9]+(-retry[0-9]+)?-[0-9]+\.tar$")]
HeaderText = Annotated[str, Meta(pattern=r"^[ -~\xa0-\xff]*$")]  # what HTTP sends


class WorkItem(Shape):
    item: Number
    path: str
    rows: Count
    sha256: Sha256


class PlanShape(Shape):
    """plan.json. settings: which there are depends on the version that planned."""

    corpus: str
    fingerprint: Sha256
    tasks: AtLeastOne
    samples_per_shard: AtLeastOne
    rows_read: Count
    rows_planned: Count
    dropped: Counts
    settings: dict[str, Any]
    inputs: dict[str, Sha256]
    items: list[WorkItem]


class PartShape(Shape):
    """plan/parts/<part>-of-<parts>/part.json."""

    request: dict[str, Any]
    ranges: AtLeastOne
    inputs: dict[str, Sha256]
    rows_read: Count
    dropped: Counts


class Metadata(Downloads):
    """metadata.json. wanted: the files that were to be fetched."""

    wanted: list[str] = field(default_factory=list)


class ClaimShape(Shape):
    """download/<item>/input.json: the plan by which it is downloaded."""

    plan: str


class Statistics(Shape):
    """download/<item>/<shard>_stats.json, as far as it is read; img2dataset's own."""

    successes: Count
    status_dict: Counts


class TimedStatistics(Statistics, kw_only=True):
    count: Count
    start_time: UnixSeconds
    end_time: UnixSeconds


class Tar(Shape):
    """One of img2dataset's."""

    attempt: Number
    name: str
    samples: Count
    bytes: Count
    sha256: Sha256


class DoneShape(Shape):
    """download/<item>/done.json."""

    item: Number
    fingerprint: Sha256
    rows: Count
    outcomes: Counts
    attempts: AtLeastOne
    shards: list[Tar]


class ShardRow(Shape):
    """A shard, as a row of the manifest; of one that is derived also derive/written/<shard>.json."""

    path: ShardPath
    samples: Count
    bytes: Count
    sha256: Sha256
    index_sha256: Sha256
    work_item: Number
    attempt: Number


class VerifiedShape(Shape):
    """verify/<item>.json."""

    item: Number
    attempts: list[Sha256]
    rows: Count
    shards: list[ShardRow]
    outcomes: Counts


class Published(Shape):
    """manifest.json: what that of any corpus says."""

    fingerprint: Sha256
    shards: Count
    samples: Count
    bytes: Count
    corpus: str = ""
    title: str = ""
    licence: str = ""
    source: str = ""
    samples_per_shard: AtLeastOne = 10_000
    plan: str = ""


class Accounted(Published, kw_only=True):
    """manifest.json as `data-prep` publishes it: it says what became of every row."""

    rows: Count
    ok: Count
    outcomes: Counts
    rows_read: Count
    dropped: Counts


class Source(Shape):
    corpus: str
    fingerprint: Sha256


class Derived(Shape):
    """derived.json."""

    sources: list[Source]
    where: str | None
    uids: Sha256 | None
    samples_per_shard: AtLeastOne


class SelectionShape(Shape):
    """derive/selected/<shard>.json."""

    number: Count
    kept: Count
    dropped: Counts


class BehaviourShape(Shape, forbid_unknown_fields=True):
    """What a row of behaviours.json may say; people write these."""

    status: Annotated[int, Meta(ge=100, le=599)] = 200
    failures: Count = 0
    location: HeaderText | None = None
    delay_seconds: Seconds = 0
    truncated: bool = False
    html: bool = False
    headers: dict[HeaderText, HeaderText] = field(default_factory=dict)


_AGAIN = "`data-prep manifest CORPUS` writes it again; for a derived one, the command that made it."

PLAN = Kind(PlanShape, "Remove it and plan again as before: of the same metadata and settings it is the same plan.")
PART = Kind(PartShape, "The command that made this part, `data-prep plan CORPUS ... --part I/N`, makes it again.")
METADATA = Kind(
    Metadata,
    "It says what was fetched, at which commits: put it back, or remove it and run `data-prep metadata CORPUS`.",
)
CLAIM = Kind(ClaimShape, "It says which plan this folder was downloaded by: put it back, or remove the folder.")
STATISTICS = Kind(Statistics, "`data-prep download CORPUS` makes the shard again.")
TIMED_STATISTICS = Kind(TimedStatistics, STATISTICS.mend)
DONE = Kind(DoneShape, "`data-prep download CORPUS` writes it again.")
VERIFIED = Kind(VerifiedShape, "`data-prep verify CORPUS` writes it again.")
PUBLISHED = Kind(Published, _AGAIN)
ACCOUNTED = Kind(Accounted, _AGAIN)
DERIVED = Kind(
    Derived, "It says what the corpus is made of: give the new one another name (--out), or remove its folder."
)
SELECTION = Kind(SelectionShape, "The command that was cut off writes it again.")
WRITTEN = Kind(ShardRow, SELECTION.mend)
BEHAVIOURS = Kind(dict[str, BehaviourShape], "It is a table of URL paths and behaviours: mend it, or remove it.")
