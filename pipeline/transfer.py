"""Numbers of a step on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Transfer:
    """One copy for all of them, begun without waiting for the device; `values` waits for what is not there yet."""

    def __init__(self, numbers: Mapping[str, Tensor | float]) -> None:
        """numbers: floats, or tensors of one element, which may change afterwards. Those of a device share one."""
        there = {n: v for n, v in numbers.items() if isinstance(v, Tensor) and v.device.type != "cpu"}
        self._here = {name: float(value) for name, value in numbers.items() if name not in there}
        self._names = list(there)
        self._arrived: torch.cuda.Event | None = None
        if there:
            stacked = torch.stack([value.detach().reshape(()).double() for value in there.values()])
            self._copy = stacked.to("cpu", non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def values(self) -> dict[str, float]:
        """Every number by name."""
        if self._arrived is None:
            return self._here
        self._arrived.synchronize()
        return {**self._here, **dict(zip(self._names, self._copy.tolist(), strict=True))}
