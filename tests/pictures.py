"""Images to test decoding and preprocessing with."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photograph(width: int, height: int) -> Image.Image:
    """Smooth shapes, edges and a little noise, as cameras give."""
    rng = np.random.default_rng(width * height)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    smooth[height // 3 :, width // 2 :] //= 2
    return Image.fromarray((smooth + rng.integers(-8, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str) -> bytes:
    """Its file; a JPEG of a camera's quality."""
    stream = io.BytesIO()
    image.save(stream, form, **({"quality": 92} if form == "JPEG" else {}))
    return stream.getvalue()
