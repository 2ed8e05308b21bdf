"""What MLflow takes, and in which form: the limits of its REST API, and what becomes of names and texts beyond them.

Axes: MLflow's integer step is `samples_seen`, the axis on which runs of different batch sizes compare; its
timestamp is the time at which the point was logged, so that its time axis works too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.config.tree import flatten

METRICS_PER_BATCH = 1000
NAME_LENGTH = 250
_PARAM_LENGTH = 6000
TAG_LENGTH = 8000
_DIGEST_LENGTH = 36


class MetricPoint(NamedTuple):
    """One value of one metric. step: samples seen. time: unix seconds."""

    name: str
    value: float
    step: int
    time: float


class Dataset(NamedTuple):
    """Data that a run read. digest: of its content. source: folder or URL. profile: JSON, what is known of it."""

    name: str
    digest: str
    source: str
    context: str
    profile: str = "{}"


def valid_name(name: str) -> str:
    """`name` as MLflow takes it for a metric, parameter or tag: letters, digits and `_-. /`, as a relative path."""
    plain = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
    parts = [part for part in plain.split("/") if part and part.strip(".")]
    return "/".join(parts)[:NAME_LENGTH].rstrip("/") or "_"


def params_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as MLflow takes parameters: flat (`train.steps`), as text, cut to its limits."""
    return {valid_name(key): cut(str(value), _PARAM_LENGTH) for key, value in flatten(settings)}


def tags_of(values: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow takes them."""
    return {valid_name(key): cut(value, TAG_LENGTH) for key, value in values.items()}


def dataset_of(data: Dataset) -> Dataset:
    """A dataset as MLflow takes it."""
    name, digest = cut(data.name, 500) or "data", data.digest[:_DIGEST_LENGTH]
    return Dataset(name, digest, _plain(data.source), data.context, _plain(data.profile))


def _plain(value: str) -> str:
    """Without what databases refuse: zero bytes, halves of surrogate pairs."""
    return value.replace("\0", "").encode(errors="replace").decode()


def cut(value: str, length: int) -> str:
    """At most so many characters, without what databases refuse."""
    return _plain(value)[:length]
