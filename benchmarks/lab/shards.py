"""Real pictures as JPEGs in shards, for the benchmarks that read or train from them."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import open_clip_train.data
import pyarrow.parquet as pq
from PIL import Image
from webdataset.tariterators import tar_file_expander

from data_prep.fabricate.captions import captions
from data_prep.fabricate.render import render
from data_prep.fabricate.scenes import training_scene
from data_prep.manifest import shard_row, write_manifest
from data_prep.shard import Sample, write_shard

OPENSTAX = Path(__file__).resolve().parents[3] / "shared" / "data" / "openstax.parquet"


def pictures(count: int) -> list[tuple[Image.Image, str]]:
    """Images with captions."""
    if OPENSTAX.is_file():
        rows = pq.read_table(OPENSTAX, columns=["image_bytes", "caption"]).slice(0, count).to_pylist()
        return [(Image.open(io.BytesIO(row["image_bytes"])).convert("RGB"), row["caption"]) for row in rows]
    scenes = [training_scene(0, number) for number in range(count)]
    return [(Image.open(io.BytesIO(render(scene))).convert("RGB"), captions(scene, 1)[0]) for scene in scenes]


def write_corpus(folder: Path, images: list[tuple[Image.Image, str]], side: int, shards: int) -> None:
    """Shards with their manifest; the short side of every image is `side`."""
    samples = [Sample(f"{n:032x}", _jpeg(image, side), "jpg", text, {}) for n, (image, text) in enumerate(images)]
    rows = []
    for shard in range(shards):
        path = folder / "shards" / f"{shard:05d}-000.tar"
        write_shard(path, samples[shard::shards])
        rows.append(shard_row(folder, path, len(samples[shard::shards]), shard))
    write_manifest(folder, rows, {"title": "benchmark"})


def _jpeg(image: Image.Image, side: int) -> bytes:
    scale = side / min(image.size)
    size = max(side, round(image.width * scale)), max(side, round(image.height * scale))
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def let_open_clip_read() -> None:
    """open_clip 3.3.0 does not expect the end-of-shard marks of webdataset 0.2.111, and fails: none for it."""
    open_clip_train.data.tar_file_expander = functools.partial(tar_file_expander, eof_value=None)


def all_shards(folder: Path, shards: int) -> str:
    """Of `write_corpus`, as open_clip's --train-data."""
    return str(folder / "shards" / f"{{00000..{shards - 1:05d}}}-000.tar")
