"""Numbers and names as people read them; what comes from data is one line and cannot steer a terminal."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"


def one_line(text: object, limit: int = 80) -> str:
    """`text` without line breaks, control and direction characters, cut to `limit` characters."""
    words = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 8 * limit]).split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def number(value: Any) -> str:
    """Four significant digits; nan and inf as they are."""
    if value is None:
        return MISSING
    return (f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}").replace("-", "−")


def count(value: float | None) -> str:
    """Thousands apart."""
    return MISSING if value is None else f"{value:,.0f}"


def short_count(value: float | None) -> str:
    """12.8M, 3.84k."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # which three digits round to it
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def percent(value: float | None) -> str:
    """A share in per cent."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def hours(value: float | None) -> str:
    """Hours, to three digits; from 100 on whole ones."""
    return MISSING if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def device_hours(gpu_hours: float | None, cpu_hours: float | None) -> str:
    """Of GPUs, or, named so, of processes on CPUs."""
    return f"{hours(cpu_hours)} CPU" if cpu_hours and not gpu_hours else hours(gpu_hours)


def duration(seconds: float | None) -> str:
    """The two largest units: 3 d 4 h, 2 h 05 min, 3 min 20 s, 45 s."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hour, minutes = divmod(minutes, 60)
    days, hour = divmod(hour, 24)
    if days:
        return f"{days} d {hour} h"
    if hour:
        return f"{hour} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def size(number: float) -> str:
    """Bytes as 512 MB or 3.14 TB, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 999.5:  # from there on three digits are 1000, which `g` writes as 1e+03
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} PB"


def words(name: object) -> str:
    """`http_404` -> `HTTP 404`, `opt_out` -> `opt out`."""
    return str(name).replace("http_", "HTTP ").replace("_", " ")
