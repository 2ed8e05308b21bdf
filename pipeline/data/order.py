"""The order of samples: a pure function of (seed, manifest, lanes, window), random access by position.

Run position P is epoch P // N, position p = P % N of N samples. An epoch's shards are permuted and laid end to end
into one stream, which is cut into `lanes` equal pieces; position p is in lane p % lanes at step p // lanes, and the
samples of a lane are shuffled within windows. Neither ranks, workers nor time enter, so a resume is a seek and every
sample comes exactly once per epoch. Lanes exist for the disks: a rank that takes every K-th position reads
lanes/K shards at a time from front to back.

With replacement, every position of a window draws one of the window's samples, whatever the others draw: an epoch has
some samples several times and about 37 % of them not at all, and reading is as local as without.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


class SampleOrder:
    """Where each run position lies.

    samples: (S,) int64, samples per shard. seed, lanes, window, replacement: what the order depends on besides.
    """

    def __init__(
        self, samples: np.ndarray, seed: int, lanes: int = 64, window: int = 8192, replacement: bool = False
    ) -> None:
        self.samples = np.asarray(samples, dtype=np.int64)
        self.total = int(self.samples.sum())
        if self.total == 0:
            raise ValueError("an order needs at least one sample")
        self.seed = seed
        self.lanes = min(lanes, self.total)
        self.window = window
        self.replacement = replacement
        self._lane_length = self.total // self.lanes
        # An epoch's shard permutation is needed by all of its positions, a window's by `window` of one lane's.
        self._epoch = lru_cache(maxsize=2)(self._shuffled_shards)
        self._permutation = lru_cache(maxsize=4 * self.lanes)(self._shuffled_window)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) run positions -> (n,) shard numbers and (n,) rows within those shards, int64."""
        positions = np.asarray(positions, dtype=np.int64)
        shards = np.empty_like(positions)
        rows = np.empty_like(positions)
        epochs = positions // self.total
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            stream = self._stream_offsets(int(epoch), positions[chosen] % self.total)
            permuted, starts = self._epoch(int(epoch))
            place = np.searchsorted(starts, stream, side="right") - 1
            shards[chosen] = permuted[place]
            rows[chosen] = stream - starts[place]
        return shards, rows

    def _stream_offsets(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """(n,) positions of one epoch -> (n,) offsets in its stream. The last total % lanes positions have no lane."""
        offsets = positions.copy()
        (laned,) = np.nonzero(positions < self.lanes * self._lane_length)
        for i in laned:
            step, lane = divmod(int(positions[i]), self.lanes)
            window, within = divmod(step, self.window)
            permutation = self._permutation(epoch, lane, window)
            offsets[i] = lane * self._lane_length + window * self.window + permutation[within]
        return offsets

    def _shuffled_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(S,) shard numbers in this epoch's order and (S,) the stream offset at which each begins."""
        permuted = np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))
        starts = np.zeros(len(permuted), dtype=np.int64)
        np.cumsum(self.samples[permuted][:-1], out=starts[1:])
        return permuted, starts

    def _shuffled_window(self, epoch: int, lane: int, window: int) -> np.ndarray:
        """(length,) which sample of one window of one lane each of its positions has."""
        length = min(self.window, self._lane_length - window * self.window)
        generator = np.random.default_rng([self.seed, epoch, lane, window])
        if self.replacement:
            return generator.integers(length, size=length, dtype=np.int32)
        return generator.permutation(length).astype(np.int32)
