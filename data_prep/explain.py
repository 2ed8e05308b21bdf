"""`data-prep plan --explain`: what became of a row of the metadata, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.corpus import Corpus
from data_prep.deal import open_files
from data_prep.plan import Plan, read_item, read_plan
from data_prep.rows import is_uid, to_hex, trimmed, work_item
from data_prep.screen import IMAGE, REASONS, UID, Screen, Screened
from data_prep.tables import MetadataFile
from pipeline.errors import UserError

MOST = 20  # rows explained at once, and rows like a dropped one that are named

_BECAUSE = {
    "malformed": "its line has too many or too few columns",
    "no_url": "the URL is empty",
    "no_caption": "the caption is empty",
    "long_url": "the URL has more bytes than screen.max_url_bytes, {screen.max_url_bytes:,}",
    "not_http": "the URL's scheme is neither http nor https",
    "bad_url": "the URL has no host, a port that is none, or control characters",
    "credentials": "the URL carries a user name or password",
    "private_host": "the host is written as a private, loopback, link-local or metadata address (--allow-private)",
    "bad_uid": "the uid is not 32 hex digits",
    "short_caption": "the caption has fewer than {screen.min_caption_length} characters or "
    "{screen.min_caption_words} words (screen.min_caption_length, screen.min_caption_words)",
    "long_caption": "the caption has more than {screen.max_caption_length:,} characters (screen.max_caption_length)",
    "unwanted_caption": "the caption matches one of screen.unwanted_captions",
    "where": "the condition `{where}` does not hold",
    "not_in_uids": "its uid is not in {uids}",
}


@dataclass(frozen=True)
class Explained:
    """One row. number: over all files in order, from 0, malformed lines among them.

    fate: `kept`, `planned` or the reason why it was dropped. values: what was read of it. because: the fate in words.
    """

    number: int
    file: str
    values: dict[str, Any]
    uid: str | None
    fate: str
    because: str


@dataclass(frozen=True)
class _Found:
    number: int
    file: str
    values: dict[str, Any]
    reason: str | None
    row: dict[str, Any]  # as screened; empty for one that was dropped


def explain(corpus: Corpus, asked: str) -> list[Explained]:
    """The rows that `asked` names: a number (from 0, over all files in order), a uid or a URL; at most MOST.

    With a plan, also whether a row is in it, and if not, which equal row is. Raises UserError when there is none.
    """
    screen = Screen(corpus)
    files = open_files(list(corpus.metadata_files().values()), screen, corpus.definition)
    found = [*_rows(files, screen, _test(corpus, asked))][:MOST] if not asked.isdigit() or is_uid(asked) else []
    if not found and asked.isdigit() and not is_uid(asked):
        found = list(_rows(files, screen, None, int(asked)))
    if not found:
        rows = f"a row number below {sum(file.rows for file in files):,}, a uid or a URL"
        raise UserError(f"the metadata of {corpus.folder} has no row {asked!r}: give {rows}")
    plan = read_plan(corpus) if corpus.plan_file.exists() else None
    return [_explained(corpus, plan, files, screen, row) for row in found]


Test = Callable[[pa.RecordBatch, Screened], np.ndarray]


def _test(corpus: Corpus, asked: str) -> Test:
    """Which rows of a batch are asked for."""
    if not is_uid(asked.lower()):
        url = corpus.definition.columns.url
        return lambda batch, _: _mask(pc.equal(trimmed(batch[url]), asked.strip()))

    def has_uid(_: pa.RecordBatch, screened: Screened) -> np.ndarray:
        hit = screened.reasons == 0
        hit[hit] = _mask(pc.equal(_uids(screened.rows), asked.lower()))
        return hit

    return has_uid


def _rows(files: list[MetadataFile], screen: Screen, test: Test | None, number: int = -1) -> Iterator[_Found]:
    """The rows that pass the test, or without one the row of that number."""
    start = 0
    for file in files:
        if test is None and file.format == "Parquet" and number >= start + file.rows:
            start += file.rows
            continue
        stop = start
        for batch in file.batches():
            stop = start + batch.stop
            if test is None and not start + batch.first <= number < stop:
                continue
            rows, numbers, screened = batch.rows, start + batch.numbers, screen(batch.rows)
            hit = numbers == number if test is None else test(rows, screened)
            positions = np.cumsum(screened.reasons == 0) - 1
            for row in np.flatnonzero(hit):
                code = screened.reasons[row]
                kept = {} if code else screened.rows.slice(positions[row], 1).to_pylist()[0]
                reason = REASONS[code - 1] if code else None
                values = rows.slice(row, 1).to_pylist()[0]
                yield _Found(int(numbers[row]), str(file.path), values, reason, kept)
            if test is None:
                if not hit.any():
                    yield _Found(number, str(file.path), {}, "malformed", {})
                return
        start = stop


def _explained(
    corpus: Corpus, plan: Plan | None, files: list[MetadataFile], screen: Screen, found: _Found
) -> Explained:
    uid = None if found.reason else _hex(found.row)
    if found.reason:
        fate, because = found.reason, _BECAUSE[found.reason].format(**dict(corpus.definition))
    elif plan is None:
        fate, because = "kept", "it passes the screening; `data-prep plan` finds out whether it repeats another row"
    elif _is_planned(corpus, plan, found.row):
        fate, because = "planned", f"it, or a row equal to it, is in work item {work_item(str(uid), plan.tasks)}"
    else:
        fate, because = _repeats(corpus, plan, files, screen, found)
    return Explained(found.number, found.file, found.values, uid, fate, because)


def _repeats(corpus: Corpus, plan: Plan, files: list[MetadataFile], screen: Screen, found: _Found) -> tuple[str, str]:
    """Which planned row a dropped one repeats, and in what."""
    definition, mine = corpus.definition, found.row
    alike: dict[str, tuple[str, ...]] = {"duplicate": UID}
    if "url_caption" in definition.screen.distinct:
        alike["duplicate_url_caption"] = ("url", "caption")
    if "url" in definition.screen.distinct:
        alike["duplicate_url"] = ("url",)
    if definition.columns.image_hash is not None:
        alike["duplicate_image"] = IMAGE

    def any_alike(_: pa.RecordBatch, screened: Screened) -> np.ndarray:
        hit, same = screened.reasons == 0, np.zeros(screened.rows.num_rows, bool)
        for names in alike.values():
            columns = [(screened.rows[name], mine[name]) for name in names]
            equal = [_mask(pc.equal(column, pa.scalar(value, column.type))) for column, value in columns]
            same |= np.all(equal, axis=0)
        hit[hit] = same
        return hit

    for other in _rows(files, screen, any_alike):
        if other.number != found.number and _is_planned(corpus, plan, other.row):
            reason = next(name for name, columns in alike.items() if all(other.row[c] == mine[c] for c in columns))
            return reason, f"row {other.number:,} of the metadata (uid {_hex(other.row)}) is planned in its place"
    return "unplanned", "the plan in force was made of other metadata or other settings"


def _is_planned(corpus: Corpus, plan: Plan, row: dict[str, Any]) -> bool:
    uid = _hex(row)
    rows = read_item(corpus, plan, work_item(uid, plan.tasks))
    return {"uid": uid, "url": row["url"], "caption": row["caption"]} in (
        rows.filter(pc.field("uid") == uid).select(["uid", "url", "caption"]).to_pylist()
    )


def _uids(rows: pa.Table) -> pa.Array:
    return to_hex(np.stack([rows[name].to_numpy() for name in UID], axis=1))


def _hex(row: dict[str, Any]) -> str:
    return "".join(f"{row[name]:016x}" for name in UID)


def _mask(answer: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return answer.to_numpy(zero_copy_only=False) if isinstance(answer, pa.Array) else answer.to_numpy()
