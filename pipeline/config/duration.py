"""How long something takes, as a user says it: `500 steps`, `1e6 samples`, `2.5 epochs`."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

_FORM = re.compile(r"([0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*(step|sample|epoch)s?")


def steps_of(duration: str, global_batch_size: int, samples_per_epoch: int) -> int:
    """Optimizer steps of a Duration, rounded down; one epoch is `samples_per_epoch`."""
    samples = _samples(duration, global_batch_size, samples_per_epoch)
    return math.floor(samples / global_batch_size + 1e-9)  # 0.1 * 30 is a little less than 3


def multiples(duration: str, steps: int, global_batch_size: int, samples_per_epoch: int) -> int:
    """How many times a Duration, which is not 0, has gone by after `steps`."""
    return math.floor(steps * global_batch_size / _samples(duration, global_batch_size, samples_per_epoch) + 1e-9)


def period_ends(duration: str, step: int, global_batch_size: int, samples_per_epoch: int) -> bool:
    """Whether a Period comes to its end with this step, the first of a run being 1."""
    sizes = (global_batch_size, samples_per_epoch)
    return multiples(duration, step, *sizes) > multiples(duration, step - 1, *sizes)


def _samples(duration: str, global_batch_size: int, samples_per_epoch: int) -> float:
    amount, unit = _parts(duration)
    return {"step": global_batch_size, "sample": 1, "epoch": samples_per_epoch}[unit] * amount


def _checked(value: Any) -> str:
    """The duration in one spelling; a bare whole number means steps. Raises ValueError for what is no duration."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value} steps"
    amount, unit = _parts(str(value).strip())
    whole = amount == int(amount)
    if unit == "step" and not whole:
        raise ValueError(f"{value!r}: steps are whole")
    return f"{int(amount) if whole else amount} {unit}s"


def _not_zero(duration: str) -> str:
    if _parts(duration)[0] == 0:
        raise ValueError(f"{duration!r}: must be more than 0")
    return duration


def _parts(duration: str) -> tuple[float, str]:
    match = _FORM.fullmatch(duration)
    if match is None:
        raise ValueError(f"{duration!r} is not a duration: write for example '500 steps', '1e6 samples' or '2 epochs'")
    amount = float(match[1])
    if not math.isfinite(amount):
        raise ValueError(f"{duration!r} is longer than any run")
    return amount, match[2]


Duration = Annotated[str, BeforeValidator(_checked)]
Period = Annotated[Duration, AfterValidator(_not_zero)]  # for what comes again and again
