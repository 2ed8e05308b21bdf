"""A model's preprocessing, image by image as far as it has to be: the same numbers, bit for bit, for less work.

The last steps of open_clip's are the conversion to fp32 and the normalisation of each channel. They make one number of
each of the 256 values that a pixel can have, so here they are a table.

The first are that the shorter side is resized to that of the model's square, and the middle of the longer one cut out.
Pillow resizes across, rounds to whole numbers, and resizes down: so of a wide image the sides are cut off in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

Preprocess = Callable[[Image.Image], Tensor]


def in_two_parts(preprocess: Preprocess) -> tuple[Callable[[Image.Image], Any], Callable[[Sequence[Any]], Tensor]]:
    """What to do with each image, and then with those of a batch together: I images -> (I, 3, H, W) fp32.

    A preprocessing that does not end as open_clip's is done image by image.
    """
    steps = getattr(preprocess, "transforms", [])
    if len(steps) >= 2 and isinstance(steps[-2], ToTensor) and isinstance(steps[-1], Normalize):
        return Compose([*_cut_in_between(steps[:-2]), _pixels]), partial(_looked_up, _table(steps[-2], steps[-1]))
    return preprocess, _stacked


def _cut_in_between(steps: list[Any]) -> list[Any]:
    """The steps, the first two as one where they are open_clip's."""
    if len(steps) < 2 or not isinstance(steps[0], Resize) or not isinstance(steps[1], CenterCrop):
        return steps
    resize, crop = steps[:2]
    square = isinstance(resize.size, int) and tuple(crop.size) == (resize.size, resize.size)
    if square and resize.max_size is None and resize.interpolation == InterpolationMode.BICUBIC:
        return [partial(_middle, resize, crop), *steps[2:]]
    return steps


def _middle(resize: Resize, crop: CenterCrop, image: Image.Image) -> Image.Image:
    width, height = image.size
    if image.mode != "RGB" or width <= height:  # of others Pillow makes another mode before it resizes them
        return crop(resize(image))
    side = resize.size
    across = int(side * width / height)  # as torchvision rounds, both
    left = round((across - side) / 2)
    strip = image.resize((across, height), Image.Resampling.BICUBIC).crop((left, 0, left + side, height))
    return strip.resize((side, side), Image.Resampling.BICUBIC)


def _stacked(images: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(images))


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode != "RGB":
        raise ValueError(f"an image of mode {image.mode} after preprocessing, not RGB")
    return np.asarray(image)


def _table(to_tensor: ToTensor, normalise: Normalize) -> np.ndarray:
    """(3, 256) fp32: what becomes of each value of each channel."""
    values = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)  # an image of one row
    return normalise(to_tensor(values))[:, 0].numpy().copy()


def _looked_up(table: np.ndarray, pixels: Sequence[np.ndarray]) -> Tensor:
    """I arrays (H, W, 3) uint8 -> (I, 3, H, W) fp32."""
    height, width, channels = pixels[0].shape
    images = np.empty((len(pixels), channels, height, width), np.float32)
    for source, target in zip(pixels, images, strict=True):
        for channel in range(channels):
            # Every index is in the table: mode only spares numpy a copy.
            np.take(table[channel], source[..., channel], out=target[channel], mode="clip")
    return torch.from_numpy(images)
