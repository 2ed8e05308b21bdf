"""Numbers of array elements, as SLURM writes them and in parts below its MaxArraySize."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.launch.slurm.arrays import compressed, expanded, parts

NUMBERS = st.sets(st.integers(0, 200), min_size=1)


def test_as_slurm_writes_them() -> None:
    assert compressed([0, 1, 2, 7, 9, 10]) == "0-2,7,9-10"
    assert compressed([5]) == "5"
    assert expanded("0-2,7%20") == [0, 1, 2, 7]


@given(NUMBERS)
def test_there_and_back(numbers: set[int]) -> None:
    assert expanded(compressed(numbers)) == sorted(numbers)


@given(NUMBERS, st.integers(1, 50))
def test_parts_hold_each_element_once_within_the_limit(numbers: set[int], limit: int) -> None:
    found = parts(numbers, limit)
    assert sorted(element for _, elements in found for element in elements) == sorted(numbers)
    assert all(0 <= element - offset < limit for offset, elements in found for element in elements)
    assert len(found) <= max(numbers) // limit + 1
