"""Metrics between two log points: kept as they were given, read and reduced at the next one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.tracking.names import Reduction, reduction_of

_REDUCE: dict[Reduction, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: sum(values) / len(values),
    "last": lambda values: values[-1],
    "sum": sum,
}


class MetricBuffer:
    """Collects values by name until `flush`, which reduces each name's as `names.reduction_of` says.

    A tensor is only kept until then: recording neither waits for an accelerator nor pays for reading so many numbers
    in every step. So it has to be one that nobody writes to. A NaN among the values makes a mean or sum NaN.
    """

    def __init__(self) -> None:
        self._recorded: list[dict[str, float | Tensor]] = []

    def record(self, name: str, value: float | Tensor) -> None:
        """Add one value: a number, or a tensor of one element."""
        self._recorded.append({name: value})

    def record_all(self, values: Mapping[str, float | Tensor]) -> None:
        """Add a value of each of several names."""
        self._recorded.append(dict(values))

    def flush(self) -> dict[str, float]:
        """Every name recorded since the last flush, reduced, in the order of first recording.

        Raises ValueError for a tensor of more elements than one.
        """
        recorded, self._recorded = self._recorded, []
        series: dict[str, list[float | Tensor]] = {}
        for values in recorded:
            for name, value in values.items():
                series.setdefault(name, []).append(value)
        reductions = {name: reduction_of(name) for name in series}
        counted = {name: v[-1:] if reductions[name] == "last" else v for name, v in series.items()}
        return {name: float(_REDUCE[reductions[name]](values)) for name, values in _read(counted).items()}


def _read(series: Mapping[str, Sequence[float | Tensor]]) -> dict[str, list[float]]:
    """The numbers: those of an accelerator in one copy for each of its types."""
    numbers: dict[str, list[float]] = {}
    there: dict[tuple[torch.device, torch.dtype], list[tuple[list[float], int, Tensor]]] = defaultdict(list)
    for name, values in series.items():
        read = numbers[name] = [math.nan] * len(values)
        try:
            for position, value in enumerate(values):
                if not isinstance(value, Tensor):
                    read[position] = value
                elif value.is_cpu:
                    read[position] = value.item()
                else:
                    there[value.device, value.dtype].append((read, position, value.detach().reshape(())))
        except RuntimeError as error:
            raise ValueError(f"metric {name!r} should be one number at a time: {error}") from error
    for found in there.values():
        vector = torch.stack([value for _, _, value in found])
        for (read, position, _), number in zip(found, vector.tolist(), strict=True):
            read[position] = number
    return numbers
