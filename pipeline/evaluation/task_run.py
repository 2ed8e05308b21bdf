"""A part of one task on one model: what every kind of evaluation is given, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.encoder import Encoder
from pipeline.evaluation.reading import Parse, read_batches
from pipeline.evaluation.task_folder import TaskFolder
from pipeline.evaluation.tasks import Task

Metrics = dict[str, float | None]
Rows = dict[str, Tensor]  # what the metrics need of n samples, by name: (n, ...)


@dataclass(frozen=True)
class TaskRun:
    """task, folder: what to evaluate. shards: of the folder, those of this part. encoder: the model.

    progress: called after every batch with the number of samples done.
    """

    task: Task
    folder: TaskFolder
    shards: Sequence[Path]
    encoder: Encoder
    batch_size: int
    workers: int
    progress: Callable[[int], None]

    def encoded_batches(self, parse: Parse, images_per_sample: int = 1) -> Iterator[tuple[Tensor, list[Any]]]:
        """Image features (I, D) and B parsed targets, batch by batch, over the part; I = B but for WinoGAViL.

        images_per_sample: at most; a batch has so many times fewer samples.
        Raises UserError for unreadable samples or files that change meanwhile.
        """
        done = 0
        samples = max(1, self.batch_size // images_per_sample)
        cuda = self.encoder.device.type == "cuda"
        for batch in read_batches(self.shards, self.encoder.preprocess, parse, samples, self.workers, pin_memory=cuda):
            yield self.encoder.encode_images(batch.images, batch.names), batch.targets
            done += len(batch.targets)
            self.progress(done)
        self.folder.refuse_changed()


def concatenated(pieces: Sequence[Rows]) -> Rows:
    """The rows of all pieces, in their order; those without a sample have no names either."""
    return {name: torch.cat([piece[name] for piece in pieces if piece]) for name in next(filter(None, pieces), {})}


def row_count(rows: Rows) -> int:
    """How many samples they are of."""
    return len(next(iter(rows.values()), ()))
