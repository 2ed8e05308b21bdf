"""Which of a sample's captions a position trains on."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.shard import StoredSample


def choose_caption(stored: StoredSample, fields: tuple[str, ...], generator: np.random.Generator) -> tuple[str, int]:
    """One of `fields` by chance, or the next of them that holds something: the caption, how many were passed over.

    fields: `txt`, the caption of the shard, or `json:KEY`, a string of its metadata or a list of strings, one of which
    is drawn. One that is named twice is drawn twice as often. Where all are missing or empty the caption is empty.
    Raises ValueError when the metadata cannot be read.
    """
    first = int(generator.integers(len(fields)))
    for passed in range(len(fields)):
        texts = _texts(stored, fields[(first + passed) % len(fields)])
        if texts:
            return texts[int(generator.integers(len(texts)))], passed
    return "", len(fields)


def _texts(stored: StoredSample, field: str) -> list[str]:
    """What the field holds, without what is empty."""
    value: Any = stored.caption if field == "txt" else stored.metadata.get(field.removeprefix("json:"))
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text.strip()]
