"""Batches: the right samples, captions and crops, the same for any number of workers, and bad ones replaced."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from pipeline.config.schema import LoaderConfig
from pipeline.data.loader import Batch, Corpus, StepPositions, build_loader
from pipeline.data.transforms import crop_box, train_pixels
from pipeline.errors import UserError
from tests.conftest import write_corpus
from tests.pictures import encoded, photograph

RATIO = (3 / 4, 4 / 3)


def tokens(captions: list[str]) -> torch.Tensor:
    """The number in `caption i`."""
    return torch.tensor([[int(caption.split()[1])] for caption in captions])


def corpus_of(folder: Path, **settings: object) -> Corpus:
    return Corpus(LoaderConfig(manifest=str(folder), lanes=4, **settings), seed=3, image_size=16, tokenizer=tokens)


def batches(folder: Path, workers: int, first: int = 0, last: int = 6) -> list[Batch]:
    config = LoaderConfig(manifest=str(folder), lanes=4, workers=workers)
    return list(build_loader(corpus_of(folder), StepPositions(32, 0, 1, first, last), config, pin_memory=False))


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def test_caption_belongs_to_sample_index(noise_corpus: Path) -> None:
    for batch in batches(noise_corpus, workers=0):
        assert torch.equal(batch.tokens.squeeze(1), batch.sample_index)
        assert batch.images.shape == (32, 3, 16, 16)
        assert batch.images.dtype == torch.uint8


def test_workers_and_the_starting_step_change_nothing(noise_corpus: Path) -> None:
    alone = batches(noise_corpus, workers=0)
    assert all(map(same, alone, batches(noise_corpus, workers=2)))
    assert all(map(same, alone[4:], batches(noise_corpus, workers=1, first=4)))


def test_an_epoch_holds_every_sample_and_batches_run_across_its_end(noise_corpus: Path) -> None:
    seen = torch.cat([b.sample_index for b in batches(noise_corpus, workers=0, last=13)])[: 2 * 203]
    for epoch in seen.split(203):
        assert sorted(epoch.tolist()) == list(range(203))


def test_crops_of_a_sample_differ_between_epochs(noise_corpus: Path) -> None:
    corpus = corpus_of(noise_corpus, crop_scale=(0.2, 1.0))
    positions = {int(corpus.__getitems__([p]).sample_index): p for p in range(203)}
    again = {int(corpus.__getitems__([p]).sample_index): p for p in range(203, 406)}
    differ = [
        not torch.equal(corpus.__getitems__([positions[i]]).images, corpus.__getitems__([again[i]]).images)
        for i in range(20)
    ]
    assert sum(differ) >= 19


def test_undecodable_samples_are_replaced_by_the_next_and_counted(tmp_path: Path) -> None:
    corpus = corpus_of(write_corpus(tmp_path, [20], broken=(3, 4, 19)))
    batch = corpus.by_sample_index(np.arange(20))
    expected = [5 if i in (3, 4) else 0 if i == 19 else i for i in range(20)]
    assert batch.sample_index.tolist() == expected
    assert batch.tokens.squeeze(1).tolist() == expected
    assert batch.failures.total() == 4  # 3 meets 4 on its way to 5


def test_failures_and_their_replacements_are_the_same_for_any_ranks_and_workers(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, [20, 13], broken=(3, 4, 19, 27))

    def seen(ranks: int, workers: int) -> tuple[torch.Tensor, Counter[str]]:
        """Sample indices of two epochs in run position order, and failures by cause."""
        config = LoaderConfig(manifest=str(folder), lanes=4, workers=workers)
        loaders = [
            build_loader(corpus_of(folder), StepPositions(6, rank, ranks, 0, 11), config, pin_memory=False)
            for rank in range(ranks)
        ]
        steps = list(zip(*loaders, strict=True))
        index = torch.cat([torch.stack([batch.sample_index for batch in step], 1).flatten() for step in steps])
        return index, sum((batch.failures for step in steps for batch in step), Counter())

    index, failures = seen(1, 0)
    for ranks, workers in ((2, 2), (3, 0)):
        again, counted = seen(ranks, workers)
        assert torch.equal(again, index)
        assert counted == failures
    assert failures == {"UnidentifiedImageError": 10}  # in each epoch 4, and once more for 3, which meets 4
    assert Counter(index.tolist()) == {
        i: 6 if i == 5 else 4 if i in (0, 28) else 2 for i in range(33) if i not in (3, 4, 19, 27)
    }


def test_a_corpus_without_one_image_says_so(tmp_path: Path) -> None:
    corpus = corpus_of(write_corpus(tmp_path, [3], broken=(0, 1, 2)))
    with pytest.raises(UserError, match="not one of its 3 samples"):
        corpus.__getitems__([0])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    corpus = corpus_of(write_corpus(tmp_path, [3, 3]))
    (tmp_path / "shards/00001-000.tar").unlink()
    with pytest.raises(UserError, match=r"00001-000\.tar is missing"):
        corpus.by_sample_index(np.arange(6))


@pytest.mark.parametrize("ratio", [RATIO, (0.5, 1.1)], ids=str)
def test_crops_are_distributed_as_torchvisions(ratio: tuple[float, float]) -> None:
    """Moments of area, aspect ratio and position over 4,000 draws, against RandomResizedCrop itself."""
    width, height, scale = 320, 200, (0.3, 1.0)
    image = torch.zeros(1, height, width)
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    theirs, ours = [], []
    for _ in range(4000):
        top, left, h, w = RandomResizedCrop.get_params(image, list(scale), list(ratio))
        theirs.append((w * h, w / h, left, top))
        box = crop_box(width, height, scale, ratio, generator)
        w, h = box[2] - box[0], box[3] - box[1]
        ours.append((w * h, w / h, box[0], box[1]))
    a, b = np.array(theirs, float), np.array(ours, float)
    error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    assert np.all(np.abs(a.mean(0) - b.mean(0)) < 4 * error)
    assert np.allclose(a.std(0), b.std(0), rtol=0.08)


def test_crops_stay_inside_extreme_images() -> None:
    generator = np.random.default_rng(0)
    for width, height in ((1, 1), (1000, 3), (3, 1000), (2, 1)):
        for _ in range(50):
            left, top, right, bottom = crop_box(width, height, (0.08, 1.0), RATIO, generator)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height


def whole_then_cropped(content: bytes, size: int, scale: tuple[float, float], seed: int) -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    box = crop_box(image.width, image.height, scale, RATIO, np.random.default_rng(seed))
    return np.asarray(image.crop(box).resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


@pytest.mark.parametrize("side", [243, 501, 1003, 2107])
@pytest.mark.parametrize(("scale", "tolerance"), [((0.9, 1.0), 0.5), ((0.3, 0.4), 1.0)])
def test_a_jpeg_decoded_small_is_the_same_picture(side: int, scale: tuple[float, float], tolerance: float) -> None:
    content = encoded(photograph(side, side * 3 // 4), "JPEG")
    for seed in range(3):
        small = train_pixels(content, 112, LoaderConfig(crop_scale=scale), np.random.default_rng(seed)).astype(int)
        whole = whole_then_cropped(content, 112, scale, seed).astype(int)
        difference = np.abs(small - whole)
        assert difference.mean() < tolerance  # of 255; a shift of half a pixel is 1.1
        assert np.quantile(difference, 0.99) <= 8


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_what_is_not_much_larger_than_the_crop_is_decoded_whole(form: str) -> None:
    content = encoded(photograph(180, 150), form)
    image = Image.open(io.BytesIO(content)).convert("RGB")
    box = crop_box(180, 150, (0.9, 1.0), RATIO, np.random.default_rng(5))
    expected = np.asarray(image.resize((96, 96), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)
    assert np.array_equal(train_pixels(content, 96, LoaderConfig(), np.random.default_rng(5)), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB", "P", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_three_channels(mode: str) -> None:
    image = Image.fromarray(np.zeros((300, 330), np.uint16)) if mode == "I;16" else photograph(330, 300).convert(mode)
    form = "JPEG" if mode in ("L", "CMYK", "RGB") else "PNG"
    pixels = train_pixels(encoded(image, form), 32, LoaderConfig(), np.random.default_rng(0))
    assert pixels.shape == (3, 32, 32)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 64), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_no_size_is_refused(width: int, height: int, size: int, seed: int) -> None:
    content = encoded(Image.new("RGB", (width, height), (9, 99, 199)), "JPEG")
    pixels = train_pixels(content, size, LoaderConfig(crop_scale=(0.2, 1.0)), np.random.default_rng(seed))
    assert pixels.shape == (3, size, size)
    assert np.abs(pixels.astype(int) - np.array([9, 99, 199])[:, None, None]).max() <= 4
