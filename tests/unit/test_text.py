"""Numbers are written as people read them, also where they round up to the next unit."""

from __future__ import annotations

import pytest

from pipeline import text


@pytest.mark.parametrize(
    ("bytes_", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (3_140_000_000_000, "3.14 TB"),
        (999.7e12, "1 PB"),
        (28e15, "28 PB"),
    ],
)
def test_sizes(bytes_: float, shown: str) -> None:
    assert text.size(bytes_) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (999.4, "999"),
        (999.6, "1k"),
        (3840, "3.84k"),
        (999_499, "999k"),
        (999_600, "1M"),
        (999_999_999, "1G"),
        (12_800_000, "12.8M"),
        (None, "–"),
    ],
)
def test_short_counts(value: float | None, shown: str) -> None:
    assert text.short_count(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.004, "+0.4"), (-0.0149, "−1.5"), (0.0004, "0.0"), (-0.0004, "0.0")])
def test_points_have_a_sign_but_for_none(value: float, shown: str) -> None:
    assert text.points(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(59.7, "1 min 00 s"), (45, "45 s"), (3599.6, "1 h 00 min"), (90_000, "1 d 1 h"), (float("inf"), "–"), (None, "–")],
)
def test_durations_have_two_units(seconds: float | None, shown: str) -> None:
    assert text.duration(seconds) == shown
