"""Colours: what torchvision's own operations give for the same draws, and open_clip's transform over many draws."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import ColorJitter, Grayscale

from pipeline.config.loader import load_recipe
from pipeline.config.schema import LoaderConfig
from pipeline.data.transforms import jittered, train_pixels
from pipeline.errors import UserError
from tests.pictures import encoded, photograph

SIZE = 32


def pixels(image: Image.Image, seed: int, **settings: Any) -> np.ndarray:
    """(3, SIZE, SIZE) uint8."""
    return train_pixels(encoded(image, "PNG"), SIZE, LoaderConfig(**settings), np.random.default_rng(seed))


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.sampled_from([0.0, 0.2, 0.8, 1.5])] * 3, st.sampled_from([0.0, 0.1, 0.5])), st.integers(0, 10**6))
def test_jitter_is_torchvisions_for_the_same_draws(most: tuple[float, float, float, float], seed: int) -> None:
    image = photograph(40, 30)
    draws = np.random.default_rng(seed)
    order = draws.permutation(4)
    factors: list[float | None] = [None] * 4
    for which in order:
        if most[which]:
            low, high = (-most[3], most[3]) if which == 3 else (max(0, 1 - most[which]), 1 + most[which])
            factors[which] = draws.uniform(low, high)
    reference = ColorJitter(*most)
    reference.get_params = lambda *_: (torch.tensor(order), *factors)  # type: ignore[method-assign]
    assert np.array_equal(jittered(image, most, np.random.default_rng(seed)), reference(image))


def test_the_same_crop_with_and_without_colours() -> None:
    image = photograph(90, 70)
    for seed in range(20):
        plain = Image.fromarray(pixels(image, seed, crop_scale=(0.2, 1)).transpose(1, 2, 0))
        grey = pixels(image, seed, crop_scale=(0.2, 1), gray_scale_prob=1)
        assert np.array_equal(grey.transpose(1, 2, 0), Grayscale(3)(plain))


def test_probabilities_are_kept() -> None:
    image = photograph(40, 40)
    colours = {"color_jitter": (0.8, 0.8, 0.8, 0.2), "color_jitter_prob": 0.3, "gray_scale_prob": 0.25}
    changed = grey = 0
    for seed in range(1000):
        plain, coloured = pixels(image, seed), pixels(image, seed, **colours)
        is_grey = bool((coloured == coloured[:1]).all())
        grey += is_grey
        changed += not is_grey and not np.array_equal(plain, coloured)
    assert grey == pytest.approx(250, abs=4 * np.sqrt(1000 * 0.25 * 0.75))
    assert changed == pytest.approx(225, abs=4 * np.sqrt(1000 * 0.225 * 0.775))  # jittered, and kept its colours


def test_many_draws_have_the_moments_of_open_clips_own_transform() -> None:
    """Mean and spread of each channel over 600 draws, against open_clip.image_transform with the same settings."""
    colours = {"color_jitter": (0.4, 0.4, 0.4, 0.1), "color_jitter_prob": 0.8, "gray_scale_prob": 0.2}
    image = photograph(64, 48)
    theirs = open_clip.image_transform(
        SIZE, is_train=True, mean=(0, 0, 0), std=(1, 1, 1), aug_cfg={"scale": (0.3, 1.0), **colours}
    )
    torch.manual_seed(0)
    random.seed(0)
    moments: list[list[np.ndarray]] = [[], []]
    for seed in range(600):
        ours = pixels(image, seed, crop_scale=(0.3, 1.0), **colours).astype(float)
        for kept, picture in zip(moments, (ours, 255 * theirs(image).numpy()), strict=True):
            kept.append(np.concatenate([picture.mean((1, 2)), picture.std((1, 2)), [np.ptp(picture.mean((1, 2)))]]))
    a, b = (np.array(kept) for kept in moments)
    error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    assert np.all(np.abs(a.mean(0) - b.mean(0)) < 4 * error)
    assert np.allclose(a.std(0), b.std(0), rtol=0.15)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("color_jitter=[0.1, 0.1, 0.1, 0.1]", "go together"),
        ("color_jitter_prob=0.5", "go together"),
        ("color_jitter=[0.1, 0.1, 0.1, 0.7]", "less than or equal to 0.5"),
        ("crop_ratio=[2, 1]", "crop_ratio must satisfy"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe("demo", [f"loader.{settings}"])
