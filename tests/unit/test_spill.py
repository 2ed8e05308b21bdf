"""Rows come back from disk in order and each key once, however they went in; the reference is a dict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_prep.spill
from data_prep.spill import Key, Spill, read_spills
from pipeline.errors import UserError

SMALL = st.integers(0, 3) | st.integers(2**64 - 2, 2**64 - 1) | st.integers(0, 2**64 - 1)
ROWS = st.lists(st.tuples(SMALL, SMALL, st.text("ab", max_size=2)), max_size=60)


def key(tasks: int) -> Key:
    return Key("duplicate", lambda rows: np.stack([rows[name].to_numpy() for name in ("upper", "lower")], 1), tasks)


def table(rows: list[tuple[int, int, str]]) -> pa.Table:
    upper, lower, text = zip(*rows, strict=True) if rows else ((), (), ())
    arrays = [pa.array(upper, pa.uint64()), pa.array(lower, pa.uint64()), pa.array(text, pa.large_string())]
    return pa.Table.from_arrays(arrays, ["upper", "lower", "text"])


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(1, 5), st.integers(1, 9), st.integers(1, 20), st.integers(1, 3))
def test_order_and_uniqueness(
    tmp_path_factory: pytest.TempPathFactory, rows: list, tasks: int, ranges: int, run: int, spills: int
) -> None:
    folder, duplicates = tmp_path_factory.mktemp("spill"), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_prep.spill, "RUN_ROWS", run)
        for number in range(spills):
            spill = Spill(folder / str(number), key(tasks), ranges)
            mine = rows[number::spills]
            for start in range(0, len(mine), 7):
                spill.add(table(mine[start : start + 7]))
            spill.flush()
            duplicates += spill.duplicates
    found = []
    for part, more in read_spills([folder / str(number) for number in range(spills)], key(tasks), ranges):
        found += [tuple(row.values()) for row in part.to_pylist()]
        duplicates += more
    expected = {row[:2]: min(other for other in rows if other[:2] == row[:2]) for row in rows}
    assert found == sorted(expected.values(), key=lambda row: (row[1] % tasks, row[0], row[1]))
    assert duplicates == len(rows) - len(expected)


def test_equal_leading_bits_are_ordered_by_the_rest() -> None:
    """Uids that differ in their last bits only, as those that count up do."""
    keys = np.array([(5, number) for number in range(100)[::-1]] + [(4, 7)], np.uint64)
    order = key(3).order(keys)
    assert [tuple(map(int, pair)) for pair in keys[order]] == sorted(
        [(5, number) for number in range(100)] + [(4, 7)], key=lambda pair: (pair[1] % 3, *pair)
    )


def test_a_full_disk_names_the_run(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "rows", key(1), 1)
    (tmp_path / "rows/000000.arrow").symlink_to("/dev/full")  # the kernel's own error
    spill.add(table([(1, 1, "a")]))
    with pytest.raises(UserError, match=r"no space left to write .*rows/000000\.arrow: .* GB are free"):
        spill.flush()
