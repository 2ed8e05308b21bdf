"""The corpus of the laboratory, in memory: emoji in seven drawing styles, or drawn scenes where there are none.

Two drawing styles and a tenth of the concepts are never trained on. Half of the concepts in the held-out styles and
the concepts of `split = val` are for tuning, the other half and `split = test` for reporting.
"""

from __future__ import annotations

import functools
import hashlib
import io
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from data_prep.fabricate.emoji import Emoji, read_emoji

SIZE = 32  # pixels
CONTEXT = 16  # tokens
CAPTIONS = 8  # variants per image
VOCABULARY = 6144
HELD_OUT_STYLES = ("twemoji", "openmoji")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TEMPLATES = ("{c}", "{c} emoji", "an emoji of {c}", "an icon of {c}", "a drawing of {c}")


@dataclass(frozen=True)
class Task:
    """Zero-shot: which of `names` is the image? images: (n, 3, SIZE, SIZE) uint8; tokens: (c, CONTEXT) of the names;
    labels: (n,). pairs: also image-text retrieval over the images and `captions` (n, CONTEXT)."""

    images: Tensor
    tokens: Tensor
    labels: Tensor
    captions: Tensor | None = None


@dataclass(frozen=True)
class Corpus:
    """images: (N, 3, SIZE, SIZE) uint8. captions: (N, CAPTIONS, CONTEXT) int64. vocabulary: size of the token ids.

    tuning, reporting: tasks by name.
    """

    images: Tensor
    captions: Tensor
    vocabulary: int
    tuning: dict[str, Task]
    reporting: dict[str, Task]

    def part(self, share: float) -> Corpus:
        """The same tasks with a seeded share of the training images."""
        chosen = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))
        chosen = chosen[: round(share * len(self.images))]
        return Corpus(self.images[chosen], self.captions[chosen], self.vocabulary, self.tuning, self.reporting)


class Vocabulary:
    """open_clip's tokens, renumbered as they appear: a table of a few thousand rows instead of 49,408."""

    def __init__(self) -> None:
        self._tokenize = open_clip.SimpleTokenizer(context_length=CONTEXT)
        self._numbers = torch.full((self._tokenize.eot_token_id + 1,), -1)
        self._numbers[0] = 0
        self._numbers[-1] = VOCABULARY - 1  # the end token stays the largest: open_clip pools by argmax
        self._used = 1

    def __call__(self, texts: list[str]) -> Tensor:
        """(n, CONTEXT)."""
        rows = self._tokenize(texts)
        found = rows.unique()
        new = found[self._numbers[found] < 0]
        self._numbers[new] = torch.arange(self._used, self._used + len(new))
        self._used += len(new)
        if self._used >= VOCABULARY:
            raise ValueError(f"more than {VOCABULARY} tokens: raise VOCABULARY")
        return self._numbers[rows]


@functools.cache
def load(shared: Path = SHARED) -> Corpus:
    """The emoji corpus with its tasks, CIFAR-10 and groceries."""
    tokens = Vocabulary()
    everything = read_emoji(shared)
    training = [e for e in everything if e.split == "train" and e.style not in HELD_OUT_STYLES]
    names = sorted({e.name for e in everything})
    tuning: dict[str, Task] = {}
    reporting: dict[str, Task] = {}
    for tasks, half, split in ((tuning, 0, "val"), (reporting, 1, "test")):
        for style in HELD_OUT_STYLES:
            images = [e for e in everything if e.style == style and e.split == "train" and _half(e) == half]
            tasks[style] = _emoji_task(images, names, tokens, pairs=True)
        concepts = [e for e in everything if e.split == split]
        tasks["concepts"] = _emoji_task(concepts, sorted({e.name for e in concepts}), tokens)
    reporting["cifar10"] = _cifar10(shared, tokens)
    reporting["grocery"] = _grocery(shared, tokens)
    captions = tokens([_caption(e, variant) for e in training for variant in range(CAPTIONS)])
    pixels = torch.stack([_pixels(e.image) for e in training])
    return Corpus(pixels, captions.view(-1, CAPTIONS, CONTEXT), VOCABULARY, tuning, reporting)


def _half(emoji: Emoji) -> int:
    return hashlib.sha256(emoji.codepoint.encode()).digest()[0] % 2


def _emoji_task(emoji: list[Emoji], names: list[str], tokens: Vocabulary, pairs: bool = False) -> Task:
    number = {name: i for i, name in enumerate(names)}
    return Task(
        torch.stack([_pixels(e.image) for e in emoji]),
        tokens(names),
        torch.tensor([number[e.name] for e in emoji]),
        tokens([", ".join([e.name, *e.keywords[:3]]) for e in emoji]) if pairs else None,
    )


def _cifar10(shared: Path, tokens: Vocabulary) -> Task:
    rows = pq.read_table(shared / "cifar10_test.parquet").to_pylist()
    names = sorted({row["class_name"] for row in rows})
    return Task(
        torch.stack([_pixels(row["image"]) for row in rows]),
        tokens(names),
        torch.tensor([names.index(row["class_name"]) for row in rows]),
    )


def _grocery(shared: Path, tokens: Vocabulary) -> Task:
    table = pq.read_table(shared / "grocery.parquet", columns=["image_bytes", "class_name", "split"])
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    names = sorted({row["class_name"] for row in rows})
    return Task(
        torch.stack([_pixels(row["image_bytes"]) for row in rows]),
        tokens([name.replace("-", " ").lower() for name in names]),
        torch.tensor([names.index(row["class_name"]) for row in rows]),
    )


def _caption(emoji: Emoji, variant: int) -> str:
    rng = random.Random(f"{emoji.style}/{emoji.codepoint}/{variant}")
    text = rng.choice(TEMPLATES).format(c=emoji.name)
    if rng.random() < 0.4:
        text += f" in {emoji.style.replace('_', ' ')} style"
    return ", ".join([text, *rng.sample(emoji.keywords, min(rng.randint(0, 3), len(emoji.keywords)))])


def _pixels(encoded: bytes) -> Tensor:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
