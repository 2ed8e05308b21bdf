"""Numbers of array elements: as SLURM writes them, and in parts that fit under its MaxArraySize."""

from __future__ import annotations

from collections.abc import Iterable


def compressed(numbers: Iterable[int]) -> str:
    """Ascending numbers as `0-3,7,9-10`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def expanded(text: str) -> list[int]:
    """The numbers of `0-3,7,9-10`, also with a throttle (`%2`) behind."""
    numbers: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def parts(elements: Iterable[int], max_array_size: int) -> list[tuple[int, list[int]]]:
    """(offset, elements) whose distances from the offset are below `max_array_size`, each element in one part."""
    found: dict[int, list[int]] = {}
    for element in sorted(elements):
        found.setdefault(element // max_array_size * max_array_size, []).append(element)
    return list(found.items())
