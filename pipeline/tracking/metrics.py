"""Metrics between two log points: kept where they are, reduced when they are read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reduction = Literal["mean", "last", "max", "sum"]

_REDUCE: dict[Reduction, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: sum(values) / len(values),
    "last": lambda values: values[-1],
    "max": lambda values: math.nan if any(map(math.isnan, values)) else max(values),
    "sum": sum,
}


class _There(NamedTuple):
    """A number that is still on its device: entry `position` of a vector."""

    vector: Tensor
    position: int


class MetricBuffer:
    """Collects values by name until `flush`.

    Tensors of an accelerator stay there until then, so that recording does not wait for it; those of one `record_all`
    become one vector, and `flush` fetches all of a device's in one copy. A NaN among the values makes a mean, max or
    sum NaN.
    """

    def __init__(self) -> None:
        self._reductions: dict[str, Reduction] = {}
        self._values: dict[str, list[float | _There]] = defaultdict(list)

    def record(self, name: str, value: float | Tensor, reduction: Reduction = "mean") -> None:
        """Add one value: a number, or a tensor of one element.

        Raises ValueError for a tensor of more elements, an unknown reduction, or another reduction than the
        one that `name` was first recorded with.
        """
        self.record_all({name: value}, lambda name: reduction)

    def record_all(self, values: Mapping[str, float | Tensor], reduction: Callable[[str], Reduction]) -> None:
        """Add a value of each of several names, of which `reduction` says how they are reduced."""
        there: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor]]] = defaultdict(list)
        for name, value in values.items():
            self._declare(name, reduction(name))
            series = self._values[name]  # now, for the order of names
            if not isinstance(value, Tensor):
                series.append(value)
                continue
            if value.numel() != 1:
                raise ValueError(f"metric {name!r} should be one number, not a tensor of shape {tuple(value.shape)}")
            if _is_here(value):
                series.append(value.item())
            else:
                there[value.device, value.dtype].append((name, value.detach().reshape(())))
        for found in there.values():
            # A copy: the caller may update a parameter or an accumulator in place before the flush.
            vector = torch.stack([value for _, value in found])
            for position, (name, _) in enumerate(found):
                self._values[name].append(_There(vector, position))

    def flush(self) -> dict[str, float]:
        """Every name recorded since the last flush, reduced, in the order of first recording."""
        values, self._values = self._values, defaultdict(list)
        fetched = _fetch([value.vector for series in values.values() for value in series if isinstance(value, _There)])
        return {
            name: float(
                _REDUCE[self._reductions[name]](
                    [fetched[id(v.vector)][v.position] if isinstance(v, _There) else v for v in series]
                )
            )
            for name, series in values.items()
        }

    def _declare(self, name: str, reduction: Reduction) -> None:
        if self._reductions.get(name) == reduction:
            return
        if reduction not in _REDUCE:
            raise ValueError(f"metric {name!r}: unknown reduction {reduction!r}, known are {', '.join(_REDUCE)}")
        declared = self._reductions.setdefault(name, reduction)
        if declared != reduction:
            raise ValueError(f"metric {name!r} is reduced by {declared!r}, not by {reduction!r}")


def _is_here(value: Tensor) -> bool:
    """Whether reading it waits for no accelerator."""
    return value.device.type == "cpu"


def _fetch(vectors: Sequence[Tensor]) -> dict[int, list[float]]:
    """The numbers of each vector, by its id: one copy per device."""
    of_device: dict[torch.device, dict[int, Tensor]] = defaultdict(dict)
    for vector in vectors:
        of_device[vector.device][id(vector)] = vector
    fetched: dict[int, list[float]] = {}
    for found in of_device.values():
        numbers = iter(torch.cat([vector.double() for vector in found.values()]).tolist())
        fetched |= {key: [next(numbers) for _ in range(len(vector))] for key, vector in found.items()}
    return fetched
