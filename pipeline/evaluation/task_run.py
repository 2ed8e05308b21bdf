"""One task on one model: what every kind of evaluation is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluation.encoder import Encoder
from pipeline.evaluation.reading import Parse, read_batches
from pipeline.evaluation.task_folder import TaskFolder
from pipeline.evaluation.tasks import Task

Progress = Callable[[str, int, int], None]  # task, images done, images in all
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class TaskRun:
    """name, task, folder: what to evaluate. encoder: the model. progress: called after every batch."""

    name: str
    task: Task
    folder: TaskFolder
    encoder: Encoder
    batch_size: int
    workers: int
    progress: Progress

    def encoded_batches(self, parse: Parse, images_per_sample: int = 1) -> Iterator[tuple[Tensor, list[Any]]]:
        """Image features (I, D) and B parsed targets, batch by batch, over the whole task; I = B but for WinoGAViL.

        images_per_sample: at most; a batch has so many times fewer samples.
        Raises UserError for unreadable samples or files that change meanwhile, and unless the shards hold exactly
        `task.size` of them.
        """
        done, size = 0, self.task.size
        samples = max(1, self.batch_size // images_per_sample)
        cuda = self.encoder.device.type == "cuda"
        for batch in read_batches(
            self.folder.shards, self.encoder.preprocess, parse, samples, self.workers, pin_memory=cuda
        ):
            done += len(batch.targets)
            if done > size:
                raise UserError(f"{self.folder.path} holds more than the {size} samples of the task")
            yield self.encoder.encode_images(batch.images, batch.names), batch.targets
            self.progress(self.name, done, size)
        self.folder.refuse_changed()
        if done < size:
            raise UserError(f"{self.folder.path} ends after {done} of {size} samples: a shard is cut short or missing")
