"""Undecoded samples of a task, from tars or Parquet files, one at a time, and the images that they hold.

A sample maps what it holds by name to its content: of a tar bytes by lower-case extension, of Parquet values by column;
`__key__` and `__url__` say which sample of which file it is.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from webdataset.tariterators import group_by_keys

from pipeline.errors import UserError
from pipeline.evaluation.tar_members import tar_members

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
ROWS_AT_ONCE = 16
Sample = dict[str, Any]


def read_samples(shards: Sequence[Path]) -> Iterator[Sample]:
    """All samples in the order of the shards. Raises UserError for a shard that cannot be read to its end."""
    for shard in shards:
        try:
            yield from _parquet_rows(shard) if shard.suffix == ".parquet" else _tar_members(shard)
        except Exception as error:
            reason = error.args[0] if error.args else error  # webdataset appends streams to the arguments
            raise UserError(f"{shard} cannot be read (torn, or no {shard.suffix[1:]} file?): {reason}") from error


def sample_name(sample: Sample) -> str:
    """What messages call a sample."""
    return f"{sample['__url__']}: sample {sample['__key__']}"


def member(sample: Sample, name: str) -> Any:
    """What a sample holds under a name; raises ValueError when it has nothing there."""
    if sample.get(name) is None:
        raise ValueError(f"no {name}")
    return sample[name]


def images(sample: Sample) -> list[Image.Image]:
    """The images of a sample: one, or WinoGAViL's candidates. Raises ValueError when there is none.

    Those of tars are made RGB here, those of Parquet by the model's preprocessing after it has resized them, as in
    the official evaluation: for a palette or transparency that is not the same.
    """
    opened = [open_image(content) for content in encoded_images(sample)]
    for image in opened:
        image.load()
    if _extension(sample):
        return [image if image.mode == "RGB" else image.convert("RGB") for image in opened]
    return opened


def encoded_images(sample: Sample) -> list[bytes]:
    """The same, as they are stored."""
    if extension := _extension(sample):
        return [sample[extension]]
    if "candidate_images" in sample:
        return [member(candidate, "bytes") for candidate in member(sample, "candidate_images")]
    if "image" in sample:
        return [member(member(sample, "image"), "bytes")]
    raise ValueError(f"no image ({', '.join(IMAGE_EXTENSIONS)})")


def open_image(content: bytes) -> Image.Image:
    """An image of which only the header was read. Raises ValueError for what is none that Pillow knows."""
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError(f"cannot identify its image: {len(content)} bytes of no known format") from None


def _extension(sample: Sample) -> str | None:
    return next((extension for extension in IMAGE_EXTENSIONS if extension in sample), None)


def _tar_members(shard: Path) -> Iterator[Sample]:
    url = str(shard)
    with open(shard, "rb") as stream:
        yield from group_by_keys({"fname": name, "data": data, "__url__": url} for name, data in tar_members(stream))


def _parquet_rows(shard: Path) -> Iterator[Sample]:
    row = 0
    with pq.ParquetFile(shard) as table:
        for batch in table.iter_batches(ROWS_AT_ONCE, use_threads=False):
            for values in batch.to_pylist():
                yield {**values, "__key__": f"in row {row}", "__url__": str(shard)}
                row += 1
