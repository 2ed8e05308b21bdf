"""Samples of a task in their order in the shards, decoded in batches: none dropped, none twice, no shuffling.

Every one of W loader processes walks the shards and decodes every W-th batch, so the batches, and with them
the last bit of every score, do not depend on W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.errors import UserError
from pipeline.evaluation.preprocessing import Preprocess, in_two_parts
from pipeline.evaluation.samples import Sample, images, read_samples, sample_name

Parse = Callable[[Sample], Any]  # what the task needs of a sample besides its images


class Batch(NamedTuple):
    """B samples with I images (I = B but for WinoGAViL). names: of each image, for messages.

    images: (I, 3, H, W) fp32. targets: B results of `parse`.
    """

    names: list[str]
    images: Tensor
    targets: list[Any]


class _Failure(NamedTuple):
    """A UserError on its way out of a loader process: DataLoader would bury it in a traceback."""

    message: str


def read_batches(
    shards: Sequence[Path],
    preprocess: Preprocess,
    parse: Parse,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Batches of `batch_size` samples (the last may be smaller) over all shards.

    preprocess: image -> (3, H, W) fp32. parse: raises ValueError for a sample that it cannot take.
    workers: loader processes; 0 decodes in this process.
    Raises UserError that names shard and sample, for an unreadable shard, image or member.
    """
    dataset = _Batches(shards, preprocess, parse, batch_size)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=_as_is, pin_memory=pin_memory)
    for batch in loader:
        if isinstance(batch, _Failure):
            raise UserError(batch.message)
        yield batch


class _Batches(IterableDataset):
    def __init__(self, shards: Sequence[Path], preprocess: Preprocess, parse: Parse, batch_size: int) -> None:
        self.shards, self.parse, self.batch_size = shards, parse, batch_size
        self.each, self.together = in_two_parts(preprocess)

    def __iter__(self) -> Iterator[Batch | _Failure]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        samples = read_samples(self.shards)
        batches = iter(lambda: list(islice(samples, self.batch_size)), [])
        try:
            for batch in islice(batches, first, None, step):
                yield self._decode(batch)
        except UserError as error:
            yield _Failure(str(error))

    def _decode(self, raw: list[Sample]) -> Batch:
        names, pixels, targets = [], [], []
        for sample in raw:
            name = sample_name(sample)
            try:
                found = [self.each(image) for image in images(sample)]
                targets.append(self.parse(sample))
            except Exception as error:  # decoders raise what they like
                raise UserError(f"{name}: {error or type(error).__name__}") from error
            names += [name] * len(found)
            pixels += found
        return Batch(names, self.together(pixels), targets)


def _as_is(batch: Any) -> Any:
    return batch
