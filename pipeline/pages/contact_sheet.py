"""A few samples of a corpus as small pictures that fit into the page."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_prep.manifest import Manifest, read_manifest
from data_prep.shard import read_at, read_index
from pipeline.errors import UserError

SIDE = 144  # pixels of the longer side


class Thumbnail(NamedTuple):
    """source: a `data:` URI. caption: as in the corpus, any text."""

    source: str
    caption: str


def contact_sheet(corpus: Path, count: int = 24) -> list[Thumbnail]:
    """`count` samples spread evenly over the corpus; fewer where it is small or some cannot be read.

    corpus: folder with a manifest; empty if there is none.
    """
    try:
        manifest = read_manifest(corpus)
    except UserError:
        return []
    total = manifest.total_samples
    positions = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
    return [thumbnail for p in positions if (thumbnail := _thumbnail(manifest, int(p))) is not None]


def _thumbnail(manifest: Manifest, sample_index: int) -> Thumbnail | None:
    shard = int(np.searchsorted(manifest.first_sample_index, sample_index, side="right")) - 1
    try:
        content, caption = _read(manifest.shard(shard).path, sample_index - manifest.first_sample_index[shard])
        with Image.open(io.BytesIO(content)) as image:
            small = image.convert("RGBA") if image.mode in ("P", "LA", "RGBA") else image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    small.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    small.save(encoded, "WEBP", quality=80)
    return Thumbnail(f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}", caption)


def _read(shard: str, row: int) -> tuple[bytes, str]:
    """Image bytes and caption of one row."""
    entry = read_index(shard)[row]
    descriptor = os.open(shard, os.O_RDONLY)
    try:
        image = read_at(descriptor, int(entry["image_offset"]), int(entry["image_bytes"]))
        text = read_at(descriptor, int(entry["text_offset"]), int(entry["text_bytes"]))
    finally:
        os.close(descriptor)
    return image, text.decode("utf-8", errors="replace")
