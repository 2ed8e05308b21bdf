"""Samples of a task in their order in the shards, decoded in batches: none dropped, none twice, no shuffling.

Every one of W loader processes walks the shards and decodes every W-th batch, so the batches, and with them
the last bit of every score, do not depend on W.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.errors import UserError

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
Parse = Callable[[dict[str, Any]], Any]  # a sample's members, by extension -> what the task needs besides the image


class Batch(NamedTuple):
    """B samples. samples: B names for messages. images: (B, 3, H, W) fp32. targets: B results of `parse`."""

    samples: list[str]
    images: Tensor
    targets: list[Any]


class _Failure(NamedTuple):
    """A UserError on its way out of a loader process: DataLoader would bury it in a traceback."""

    message: str


def read_batches(
    shards: Sequence[Path],
    preprocess: Callable[[Image.Image], Tensor],
    parse: Parse,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Batches of `batch_size` samples (the last may be smaller) over all shards.

    preprocess: RGB image -> (3, H, W) fp32. parse: raises ValueError for members that it cannot take.
    workers: loader processes; 0 decodes in this process.
    Raises UserError that names shard and sample, for an unreadable shard, image or member.
    """
    dataset = _Batches(shards, preprocess, parse, batch_size)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=_as_is, pin_memory=pin_memory)
    for batch in loader:
        if isinstance(batch, _Failure):
            raise UserError(batch.message)
        yield batch


def read_samples(shards: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Undecoded samples: `__key__`, `__url__` (the shard) and bytes by lower-case extension.

    Raises UserError for a shard that cannot be read to its end.
    """
    for shard in shards:
        try:
            with open(shard, "rb") as stream:
                yield from group_by_keys(tar_file_expander([{"url": str(shard), "stream": stream}]))
        except Exception as error:
            reason = error.args[0] if error.args else error  # webdataset appends streams to the arguments
            raise UserError(f"{shard} cannot be read (torn or no tar?): {reason}") from error


def member(sample: dict[str, Any], extension: str) -> bytes:
    """The bytes of one member of a sample; raises ValueError when it has none of that extension."""
    if extension not in sample:
        raise ValueError(f"no {extension}")
    return sample[extension]


class _Batches(IterableDataset):
    def __init__(self, shards: Sequence[Path], preprocess: Callable, parse: Parse, batch_size: int) -> None:
        self.shards, self.preprocess, self.parse, self.batch_size = shards, preprocess, parse, batch_size

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

    def _decode(self, raw: list[dict[str, Any]]) -> Batch:
        names = [f"{sample['__url__']}: sample {sample['__key__']}" for sample in raw]
        images, targets = [], []
        for name, sample in zip(names, raw, strict=True):
            try:
                images.append(self.preprocess(_decode_image(sample)))
                targets.append(self.parse(sample))
            except Exception as error:  # decoders raise what they like
                raise UserError(f"{name}: {error or type(error).__name__}") from error
        return Batch(names, torch.stack(images), targets)


def _decode_image(sample: dict[str, Any]) -> Image.Image:
    extension = next((extension for extension in IMAGE_EXTENSIONS if extension in sample), None)
    if extension is None:
        raise ValueError(f"no image ({', '.join(IMAGE_EXTENSIONS)})")
    with Image.open(io.BytesIO(sample[extension])) as image:
        return image.convert("RGB")


def _as_is(batch: Any) -> Any:
    return batch
