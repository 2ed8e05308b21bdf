"""Metrics between two log points: kept where they are, reduced when they are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Reduction = Literal["mean", "last", "max", "sum"]

_REDUCE: dict[Reduction, Callable[[list[Any]], Any]] = {
    "mean": np.mean,
    "last": lambda values: values[-1],
    "max": np.max,
    "sum": np.sum,
}


class MetricBuffer:
    """Collects values by name until `flush`.

    Tensors stay on their device until then, so that recording does not wait for the accelerator; `flush`
    fetches all of a device's values in one copy. A NaN among the values makes a mean, max or sum NaN.
    """

    def __init__(self) -> None:
        self._reductions: dict[str, Reduction] = {}
        self._values: dict[str, list[float | Tensor]] = defaultdict(list)

    def record(self, name: str, value: float | Tensor, reduction: Reduction = "mean") -> None:
        """Add one value: a number, or a tensor of one element.

        Raises ValueError for a tensor of more elements, an unknown reduction, or another reduction than the
        one that `name` was first recorded with.
        """
        if reduction not in _REDUCE:
            raise ValueError(f"metric {name!r}: unknown reduction {reduction!r}, known are {', '.join(_REDUCE)}")
        declared = self._reductions.setdefault(name, reduction)
        if declared != reduction:
            raise ValueError(f"metric {name!r} is reduced by {declared!r}, not by {reduction!r}")
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"metric {name!r} should be one number, not a tensor of shape {tuple(value.shape)}")
            # A copy: the caller may update a parameter or an accumulator in place before the flush.
            value = value.detach().reshape(()).to(torch.float64, copy=True)
        self._values[name].append(value)

    def flush(self) -> dict[str, float]:
        """Every name recorded since the last flush, reduced, in the order of first recording."""
        values, self._values = self._values, defaultdict(list)
        _fetch(values)
        return {name: float(_REDUCE[self._reductions[name]](series)) for name, series in values.items()}


def _fetch(values: dict[str, list[float | Tensor]]) -> None:
    """Replace the tensors in `values` by floats, one copy per device."""
    places: dict[torch.device, list[tuple[str, int]]] = defaultdict(list)
    for name, series in values.items():
        for position, value in enumerate(series):
            if isinstance(value, Tensor):
                places[value.device].append((name, position))
    for found in places.values():
        numbers = torch.stack([torch.as_tensor(values[name][position]) for name, position in found]).tolist()
        for (name, position), number in zip(found, numbers, strict=True):
            values[name][position] = number
