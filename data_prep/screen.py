"""Screening: which rows are worth asking for, and for what reason the others are not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.corpus import Corpus
from data_prep.hosts import PRIVATE_DOMAINS, url_problem
from data_prep.rows import TAKEN, given_uids, hashed, one_line, own_uids, trimmed
from data_prep.uid_list import UidList
from pipeline.errors import UserError
from pipeline.where import Kind, compile_where

# Why a row is never asked for, in the order in which it is found out.
REASONS = (
    "malformed",  # a line with too few or too many columns
    "no_url",
    "no_caption",
    "long_url",
    "not_http",
    "bad_url",
    "credentials",
    "private_host",
    "bad_uid",
    "short_caption",
    "long_caption",
    "unwanted_caption",
    "where",
    "not_in_uids",
    "duplicate_url",
    "duplicate_image",
    "duplicate_url_caption",
    "duplicate",
)
_CODES = {reason: code for code, reason in enumerate(REASONS, start=1)}
# Sound at first sight, and not private: everything else is looked at with care by `url_problem`.
_PLAIN_URL = r"^(?i:https?)://(?:[A-Za-z0-9_-]+\.)+[A-Za-z][A-Za-z0-9-]*(?::[0-9]{1,4})?(?:[/?#][^\x00-\x1f\x7f]*)?$"
_PRIVATE_URL = rf"(?i)^https?://[^/?#]*\.(?:{'|'.join(PRIVATE_DOMAINS).replace('.', '[.]')})(?:[:/?#]|$)"


UID, IMAGE = ("uid:upper", "uid:lower"), ("image:upper", "image:lower")


@dataclass(frozen=True)
class Screened:
    """Rows after screening.

    reasons: code per row read, uint8 (0: kept; else REASONS[code - 1]). rows: the kept ones, with the columns UID
    (the halves, uint64), `url`, `caption`, the further captions, and IMAGE (uint64) where images are told apart.
    """

    reasons: np.ndarray
    rows: pa.Table

    def dropped(self) -> dict[str, int]:
        """Reason to rows; only those that there are."""
        numbers = np.bincount(self.reasons, minlength=len(REASONS) + 1)
        return {reason: int(numbers[code]) for reason, code in _CODES.items() if numbers[code]}


class Screen:
    """The rules of a corpus's definition, compiled. Raises UserError for a condition or list that is not sound."""

    def __init__(self, corpus: Corpus) -> None:
        definition = corpus.definition
        self._columns, self._rules, self._captions = definition.columns, definition.screen, definition.captions
        self._allow_private = definition.fetch.allow_private
        self._where = compile_where(definition.where) if definition.where is not None else None
        self._unwanted = "|".join(f"(?:{pattern})" for pattern in definition.screen.unwanted_captions)
        try:
            pc.match_substring_regex(pa.array([""]), self._unwanted)
        except pa.ArrowInvalid as error:
            raise UserError(f"screen.unwanted_captions: {error}") from error
        clash = TAKEN & set(self._captions)
        if clash:
            raise UserError(f"a further caption cannot be called {min(clash)!r}: every sample has that already")
        uids = corpus.uid_list
        self._uids = UidList(uids) if uids is not None else None

    @cached_property
    def wanted(self) -> dict[str, Kind]:
        """The columns of the metadata that it reads, and as what."""
        wanted: dict[str, Kind] = dict(self._where.columns) if self._where else {}
        mapped = [name for name in self._columns.model_dump().values() if name is not None]
        return wanted | dict.fromkeys([*mapped, *self._captions], "text")

    def __call__(self, batch: pa.RecordBatch) -> Screened:
        """batch: rows with the wanted columns, as `tables.MetadataFile` gives them."""
        reasons = np.zeros(batch.num_rows, np.uint8)

        def drop(reason: str, rows: pa.Array | np.ndarray) -> None:
            hit = rows if isinstance(rows, np.ndarray) else rows.to_numpy(zero_copy_only=False)
            reasons[(reasons == 0) & hit] = _CODES[reason]

        names, rules = self._columns, self._rules
        urls, captions = trimmed(batch[names.url]), one_line(batch[names.caption])
        drop("no_url", pc.equal(urls, ""))
        drop("no_caption", pc.equal(captions, ""))
        drop("long_url", pc.greater(pc.binary_length(urls), rules.max_url_bytes))
        self._drop_bad_urls(urls, reasons)
        if names.uid is None:
            uids = own_uids(urls, captions)
        else:
            uids, sound = given_uids(batch[names.uid])
            drop("bad_uid", ~sound)
        lengths = pc.utf8_length(captions)
        words = pc.add(pc.count_substring(captions, " "), 1)
        drop(
            "short_caption", pc.or_(pc.less(lengths, rules.min_caption_length), pc.less(words, rules.min_caption_words))
        )
        drop("long_caption", pc.greater(lengths, rules.max_caption_length))
        if self._unwanted:
            drop("unwanted_caption", pc.match_substring_regex(captions, self._unwanted))
        if self._where:
            drop("where", ~self._where(batch))
        if self._uids is not None:
            drop("not_in_uids", ~self._uids.holds(uids))
        columns = {**dict(zip(UID, uids.T, strict=True)), "url": urls, "caption": captions}
        columns |= {name: one_line(batch[name]) for name in self._captions}
        if names.image_hash is not None:
            keys = _image_keys(trimmed(batch[names.image_hash]), uids)
            columns |= dict(zip(IMAGE, keys.T, strict=True))
        kept = pa.array(reasons == 0)
        wide = {
            name: column if name in (*UID, *IMAGE) else column.cast(pa.large_string())
            for name, column in columns.items()
        }
        return Screened(reasons, pa.table(wide).filter(kept))

    def _drop_bad_urls(self, urls: pa.Array, reasons: np.ndarray) -> None:
        plain = pc.and_not(pc.match_substring_regex(urls, _PLAIN_URL), pc.match_substring_regex(urls, _PRIVATE_URL))
        with_care = np.flatnonzero((reasons == 0) & ~plain.to_numpy(zero_copy_only=False))
        for row, url in zip(with_care, urls.take(pa.array(with_care)).to_pylist(), strict=True):
            problem = url_problem(url, self._allow_private)
            if problem:
                reasons[row] = _CODES[problem]


def _image_keys(hashes: pa.Array, uids: np.ndarray) -> np.ndarray:
    """What tells images apart: their hashes; a row without one differs from all others, as its uid does."""
    keys = hashed(hashes.cast(pa.binary()).to_pylist())
    absent = pc.equal(hashes, "").to_numpy(zero_copy_only=False)
    return np.where(absent[:, None], uids, keys)
