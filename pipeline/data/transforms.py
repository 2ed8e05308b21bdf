"""Image bytes to pixels, as open_clip's training transform does, with randomness that belongs to the position."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image
from torchvision.transforms import functional

from pipeline.config.schema import Jitter, LoaderConfig

ATTEMPTS = 10
ADJUSTMENTS = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)


def crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random resized crop's (left, top, right, bottom) in pixels, distributed as torchvision's RandomResizedCrop.

    scale: bounds of the crop's area as a share of the image's. ratio: bounds of its width over its height, log-uniform.
    """
    area = width * height
    for _ in range(ATTEMPTS):
        target = area * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(0, width - w + 1))
            top = int(generator.integers(0, height - h + 1))
            return left, top, left + w, top + h
    # No draw fitted: the largest central crop whose aspect ratio is allowed.
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def train_pixels(content: bytes, size: int, config: LoaderConfig, generator: np.random.Generator) -> np.ndarray:
    """Image file bytes -> (3, size, size) uint8, randomly cropped, bicubic, with the colours that `config` changes.

    A JPEG that is much larger than the crop is decoded at a half, a quarter or an eighth of its size, which the format
    offers almost for free, never below the crop's. Raises what PIL raises when the bytes are no whole image.
    """
    image: Image.Image = Image.open(io.BytesIO(content))
    width, height = image.size
    left, top, right, bottom = crop_box(width, height, config.crop_scale, config.crop_ratio, generator)
    needed = math.ceil(width * size / (right - left)), math.ceil(height * size / (bottom - top))
    drafted = image.draft(None, needed)  # None where the format has no smaller sizes
    factor = 1 if drafted is None else round(width / drafted[1][2])
    image = image.convert("RGB")
    box = left / factor, top / factor, right / factor, bottom / factor
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if config.color_jitter is not None and generator.random() < config.color_jitter_prob:
        image = jittered(image, config.color_jitter, generator)
    if config.gray_scale_prob and generator.random() < config.gray_scale_prob:
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    return np.asarray(image).transpose(2, 0, 1)


def jittered(image: Image.Image, most: Jitter, generator: np.random.Generator) -> Image.Image:
    """The image with changed colours, distributed as torchvision's ColorJitter(*most): in a random order, brightness,
    contrast and saturation times a factor within `most` of 1, hue turned by at most `most` of the circle."""
    for which in generator.permutation(4):
        if not most[which]:
            continue
        if which == 3:
            image = functional.adjust_hue(image, generator.uniform(-most[3], most[3]))
        else:
            image = ADJUSTMENTS[which](image, generator.uniform(max(0, 1 - most[which]), 1 + most[which]))
    return image
