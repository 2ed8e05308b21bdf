"""Drawn evaluation tasks made as heavy to decode as ImageNet's: JPEGs of 500 x 375 pixels, with grain."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDES = (500, 375)
GRAIN = 12.0  # standard deviation, of 255
QUALITY = 87


def enlarge(data: Path) -> None:
    """Replace every image in the tars below `data`; labels stay."""
    rng = np.random.default_rng(0)
    for shard in sorted(data.rglob("*.tar")):
        with tarfile.open(shard) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        with tarfile.open(shard, "w") as tar:
            for name, content in members:
                key, _, extension = name.partition(".")
                if extension != "cls":
                    name, content = f"{key}.jpg", photograph(content, rng)
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def photograph(content: bytes, rng: np.random.Generator) -> bytes:
    """The picture, one in three upright, as a camera would store it."""
    size = SIDES if rng.integers(3) else SIDES[::-1]
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB").resize(size), dtype=np.float32)
    grain = rng.normal(0, GRAIN, (*pixels.shape[:2], 1))
    stream = io.BytesIO()
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()
