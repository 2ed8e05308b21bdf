"""Image bytes to pixels: decode, random resized crop, with randomness that belongs to the position, not the process."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

ASPECT_RATIOS = (3 / 4, 4 / 3)
ATTEMPTS = 10


def crop_box(
    width: int, height: int, scale: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random resized crop's (left, top, right, bottom) in pixels, distributed as torchvision's RandomResizedCrop.

    scale: bounds of the crop's area as a share of the image's; the aspect ratio is log-uniform in 3/4..4/3.
    """
    area = width * height
    for _ in range(ATTEMPTS):
        target = area * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(0, width - w + 1))
            top = int(generator.integers(0, height - h + 1))
            return left, top, left + w, top + h
    # No draw fitted: the largest central crop whose aspect ratio is allowed.
    w = min(width, round(height * ASPECT_RATIOS[1]))
    h = min(height, round(width / ASPECT_RATIOS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def train_pixels(content: bytes, size: int, scale: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """Image file bytes -> (3, size, size) uint8, randomly cropped, bicubic.

    A JPEG that is much larger than the crop is decoded at a half, a quarter or an eighth of its size, which the format
    offers almost for free, never below the crop's. Raises what PIL raises when the bytes are no whole image.
    """
    image: Image.Image = Image.open(io.BytesIO(content))
    width, height = image.size
    left, top, right, bottom = crop_box(width, height, scale, generator)
    needed = math.ceil(width * size / (right - left)), math.ceil(height * size / (bottom - top))
    drafted = image.draft(None, needed)  # None where the format has no smaller sizes
    factor = 1 if drafted is None else round(width / drafted[1][2])
    image = image.convert("RGB")
    box = left / factor, top / factor, right / factor, bottom / factor
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)
