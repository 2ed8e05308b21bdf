"""Batches of one rank, from any position on.

A batch of step t holds run positions [t*G, (t+1)*G); rank r of K takes every K-th of them from r on. Workers only
decode: torch's DataLoader hands batches out in the order of the positions whatever their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data_prep.manifest import read_manifest
from pipeline.config.schema import LoaderConfig
from pipeline.data.order import SampleOrder
from pipeline.data.shards import ShardReader
from pipeline.data.transforms import train_pixels
from pipeline.errors import UserError

Tokenizer = Callable[[list[str]], Tensor]


class Batch(NamedTuple):
    """images: (B, 3, H, W) uint8. tokens: (B, context) int64. sample_index: (B,) int64. failures: cause -> count."""

    images: Tensor
    tokens: Tensor
    sample_index: Tensor
    failures: Counter[str]

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""
        images, tokens, sample_index, failures = self
        return Batch(
            images.to(device, non_blocking=True),
            tokens.to(device, non_blocking=True),
            sample_index.to(device, non_blocking=True),
            failures,
        )


class Corpus(Dataset):
    """Decoded samples of a manifest, by run position (map style, whole batches at a time).

    A sample that cannot be decoded is replaced by the next row of its shard, always the same one, and counted.
    """

    def __init__(self, config: LoaderConfig, seed: int, image_size: int, tokenizer: Tokenizer) -> None:
        if config.manifest is None:
            raise UserError("loader.manifest is not set: give the folder that `data-prep manifest` published")
        manifest = read_manifest(config.manifest)
        self.fingerprint = manifest.fingerprint
        self.reader = ShardReader(manifest)
        self.order = SampleOrder(manifest.samples, seed, config.lanes, config.shuffle_window)
        self.seed = seed
        self.image_size = image_size
        self.crop_scale = config.crop_scale
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.order.total

    def __getitems__(self, positions: list[int]) -> Batch:
        shards, rows = self.order.locate(np.asarray(positions))
        return self._batch([(p, int(s), int(r)) for p, s, r in zip(positions, shards, rows, strict=True)])

    def by_sample_index(self, indices: np.ndarray) -> Batch:
        """(n,) sample indices -> a batch whose crops depend on the index alone: for a fixed reference subset."""
        return self._batch([(int(i), *self.reader.locate(int(i))) for i in indices])

    def _batch(self, places: list[tuple[int, int, int]]) -> Batch:
        failures: Counter[str] = Counter()
        samples = [self._sample(*place, failures) for place in places]
        images, captions, index = zip(*samples, strict=True)
        return Batch(
            torch.from_numpy(np.stack(images)),
            self.tokenizer(list(captions)),
            torch.tensor(index, dtype=torch.int64),
            failures,
        )

    def _sample(self, position: int, shard: int, row: int, failures: Counter[str]) -> tuple[np.ndarray, str, int]:
        """Pixels, caption and sample index. Raises UserError when a whole shard cannot be decoded."""
        rows = int(self.reader.manifest.samples[shard])
        for attempt in range(rows):
            candidate = (row + attempt) % rows
            image, caption = self.reader.read(shard, candidate)
            generator = np.random.Generator(np.random.Philox(key=[self.seed, position]))
            try:
                pixels = train_pixels(image, self.image_size, self.crop_scale, generator)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                failures[type(error).__name__] += 1
                continue
            return pixels, caption, self.reader.sample_index(shard, candidate)
        raise UserError(f"{self.reader.manifest.shard_path(shard)}: not one of its {rows} samples can be decoded")


class StepPositions(Sampler[list[int]]):
    """The run positions of one rank, a list per step, from `first_step` to `last_step`."""

    def __init__(self, global_batch_size: int, rank: int, world_size: int, first_step: int, last_step: int) -> None:
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.world_size = world_size
        self.steps = range(first_step, last_step)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            start = step * self.global_batch_size
            yield list(range(start + self.rank, start + self.global_batch_size, self.world_size))


def build_loader(corpus: Corpus, positions: StepPositions, config: LoaderConfig, pin_memory: bool) -> DataLoader:
    """Batches for the steps of `positions`, in their order, decoded by `config.workers` processes."""
    return DataLoader(
        corpus,
        batch_sampler=positions,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        collate_fn=_already_batched,
        pin_memory=pin_memory,
    )


def _already_batched(batch: Any) -> Any:
    return batch
