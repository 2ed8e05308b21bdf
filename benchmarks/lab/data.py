"""A corpus of the laboratory, in memory, and the batches drawn from it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

SIZE = 32  # pixels
CONTEXT = 16  # tokens
CAPTIONS = 8  # variants per image
CROP = (0.7, 1.0)  # area of the random crop
VOCABULARY = 6144


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


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop of CROP's area, resized back; images: (B, 3, S, S) uint8, returned as float of the same range."""
    count = len(images)
    side = torch.empty(count).uniform_(*CROP, generator=generator).sqrt()
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - side)[:, None]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images.float(), grid, align_corners=False, padding_mode="border")


def sample(corpus: Corpus, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augmented images (B, 3, S, S) and one caption each (B, CONTEXT)."""
    variant = torch.randint(CAPTIONS, (len(index),), generator=generator)
    return augment(corpus.images[index], generator), corpus.captions[index, variant]


def pixels(encoded: bytes) -> Tensor:
    """(3, SIZE, SIZE) uint8 of the image's central square."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
