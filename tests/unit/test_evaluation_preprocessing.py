"""Preprocessing in two parts gives the bits of open_clip's own, image by image, whatever the image is like."""

import io

import numpy as np
import open_clip
import pytest
import torch
from evaluation_support import image_bytes, open_folder, write_folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.evaluation.preprocessing import in_two_parts
from pipeline.evaluation.reading import read_batches

sides = st.one_of(st.integers(1, 40), st.integers(1, 400))


def picture(width, height, mode, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@given(sides, sides, st.sampled_from([8, 24, 31]), st.sampled_from(["RGB", "RGB", "RGBA", "L", "P"]), st.integers(0, 9))
def test_every_size_and_mode_gives_the_same_bits(width, height, side, mode, seed):
    preprocess = open_clip.image_transform(side, is_train=False)
    each, together = in_two_parts(preprocess)
    image = picture(width, height, mode, seed)
    assert torch.equal(together([each(image)])[0], preprocess(image))


@pytest.mark.parametrize(
    "options",
    [
        {"interpolation": "bilinear"},
        {"resize_mode": "squash"},
        {"resize_mode": "longest"},
        {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    ],
)
def test_other_preprocessing_gives_the_same_bits(options):
    preprocess = open_clip.image_transform(24, is_train=False, **options)
    each, together = in_two_parts(preprocess)
    for image in (picture(70, 41, "RGB"), picture(41, 70, "RGB")):
        assert torch.equal(together([each(image)])[0], preprocess(image))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_give_the_same_bits(tmp_path, workers):
    rng = np.random.default_rng(0)
    contents = [image_bytes(rng, "jpg") for _ in range(9)]
    write_folder(tmp_path, "t", [{"jpg": content} for content in contents])
    preprocess = open_clip.image_transform(24, is_train=False)
    batches = read_batches(open_folder(tmp_path, "t").shards, preprocess, lambda sample: 0, 4, workers)
    expected = torch.stack([preprocess(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents])
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)
