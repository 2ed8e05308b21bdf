"""Batches of one rank, from any position on.

A batch of step t holds run positions [t*G, (t+1)*G); rank r of K takes every K-th of them from r on. Workers only
decode: torch's DataLoader hands batches out in the order of the positions whatever their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data_prep.manifest import Manifest, read_manifest
from data_prep.shard import StoredSample
from pipeline.config.schema import LoaderConfig
from pipeline.data.cache import ShardCache
from pipeline.data.captions import choose_caption
from pipeline.data.mixture import MixtureOrder
from pipeline.data.order import SampleOrder
from pipeline.data.shards import ShardReader
from pipeline.data.transforms import train_pixels
from pipeline.errors import UserError
from pipeline.files import fingerprint

Tokenizer = Callable[[list[str]], Tensor]


class Batch(NamedTuple):
    """images: (B, 3, H, W) uint8. tokens: (B, context) int64. sample_index: (B,) int64. failures: cause -> count.

    empty_captions: how many caption fields were drawn but held nothing.
    """

    images: Tensor
    tokens: Tensor
    sample_index: Tensor
    failures: Counter[str]
    empty_captions: int = 0

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""
        return self._replace(
            images=self.images.to(device, non_blocking=True),
            tokens=self.tokens.to(device, non_blocking=True),
            sample_index=self.sample_index.to(device, non_blocking=True),
        )


class Corpus(Dataset):
    """Decoded samples of one or several manifests, by run position (map style, whole batches at a time).

    A sample that cannot be decoded is replaced by the next row of its shard, always the same one, and counted.
    """

    def __init__(self, config: LoaderConfig, seed: int, image_size: int, tokenizer: Tokenizer) -> None:
        if not config.sources:
            raise UserError("loader.manifest is not set: give the folder that `data-prep manifest` published")
        manifests = [read_manifest(source.manifest) for source in config.sources]
        cache = None if config.cache is None else ShardCache(Path(config.cache), int(config.cache_gib * 2**30))
        self.names = _names([manifest.folder for manifest in manifests])
        self.fingerprint = _fingerprint(manifests)
        self.reader = ShardReader(manifests, cache)
        self.order = build_order(config, seed, manifests)
        self.config = config
        self.seed = seed
        self.image_size = image_size
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.order.total

    def drawn(self, position: int) -> dict[str, int]:
        """How many of the first `position` samples of the run each corpus gave, by its name."""
        return dict(zip(self.names, self.order.counts(position), strict=True))

    def __getitems__(self, positions: list[int]) -> Batch:
        shards, rows = self.order.locate(np.asarray(positions))
        return self._batch(positions, list(zip(shards.tolist(), rows.tolist(), strict=True)), keep=True)

    def by_sample_index(self, indices: np.ndarray) -> Batch:
        """(n,) sample indices -> a batch whose crops depend on the index alone: for a fixed reference subset."""
        return self._batch(indices.tolist(), [self.reader.locate(int(index)) for index in indices], keep=False)

    def _batch(self, keys: list[int], places: list[tuple[int, int]], keep: bool) -> Batch:
        """keys: what the random draws of each sample belong to. places: shards and rows. keep: in the cache."""
        failures: Counter[str] = Counter()
        found = self.reader.read(places, keep)
        samples = [self._sample(*sample, failures) for sample in zip(keys, places, found, strict=True)]
        images, captions, index, passed = zip(*samples, strict=True)
        return Batch(
            torch.from_numpy(np.stack(images)),
            self.tokenizer(list(captions)),
            torch.tensor(index, dtype=torch.int64),
            failures,
            sum(passed),
        )

    def _sample(
        self, key: int, place: tuple[int, int], stored: StoredSample, failures: Counter[str]
    ) -> tuple[np.ndarray, str, int, int]:
        """Pixels, caption, sample index, empty captions. Raises UserError when a whole shard cannot be decoded."""
        shard, row = place
        rows = int(self.reader.samples[shard])
        for candidate in ((row + attempt) % rows for attempt in range(rows)):
            if candidate != row:
                (stored,) = self.reader.read([(shard, candidate)])
            try:
                pixels = train_pixels(stored.image, self.image_size, self.config, _draws(self.seed, key, 0))
                caption, passed = choose_caption(stored, self.config.captions, _draws(self.seed, key, 1))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                failures[type(error).__name__] += 1
                continue
            return pixels, caption, self.reader.sample_index(shard, candidate), passed
        raise UserError(f"{self.reader.shard(shard).path}: not one of its {rows} samples can be decoded")


def build_order(config: LoaderConfig, seed: int, manifests: Sequence[Manifest]) -> MixtureOrder:
    """The order of samples over all corpora. The first shuffles by `seed`, the others by seeds derived from it."""
    seeds = [seed] + [
        int(np.random.SeedSequence(seed, spawn_key=(n,)).generate_state(1, np.uint64)[0])
        for n in range(1, len(manifests))
    ]
    orders = [
        SampleOrder(manifest.samples, own, config.lanes, config.shuffle_window, config.replacement)
        for manifest, own in zip(manifests, seeds, strict=True)
    ]
    weights = [source.weight for source in config.sources if source.weight is not None]
    return MixtureOrder(orders, weights or None)


def _draws(seed: int, key: int, stream: int) -> np.random.Generator:
    """Random numbers that are of a run position. stream: 0 for the image, 1 for the caption."""
    return np.random.Generator(np.random.Philox(key=[seed, key], counter=[0, 0, 0, stream]))


def _fingerprint(manifests: Sequence[Manifest]) -> str:
    prints = [manifest.fingerprint for manifest in manifests]
    return prints[0] if len(prints) == 1 else fingerprint(prints)


def _names(folders: list[str]) -> list[str]:
    """The folders' own names, numbered where they are the same."""
    names = [folder.rstrip("/").rpartition("/")[2] for folder in folders]
    return [f"{name}-{number}" if names.count(name) > 1 else name for number, name in enumerate(names)]


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
