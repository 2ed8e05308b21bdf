"""Our loader against open_clip's own: samples per second of one core, from the same shards to 224 px crops and tokens.

    python benchmarks/loader.py [--quick]

The peer is `open_clip_train.data.get_wds_dataset` with open_clip's training transform, of the installed package; both
run in this process, without workers, and processor time is counted. Images: photographs and figures of OpenStax
(../shared/data), enlarged to a short side of 256 or 512 pixels; drawn scenes where they are absent; JPEG at quality 90.
Ours are uint8: (x - mean) / std is the model's first operation, on its device; `with_normalisation` has the ratios with
it in our time. open_clip 3.3.0 does not expect the
end-of-shard marks of webdataset 0.2.111 and fails, so they are switched off for it. Prints one JSON line:
{"ratio_256": ours / theirs, "ratio_512": ..} and writes benchmarks/results/loader.json (not with --quick).
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import json
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import open_clip
import open_clip_train.data
import pyarrow.parquet as pq
import torch
from open_clip_train.data import get_wds_dataset
from PIL import Image
from webdataset.tariterators import tar_file_expander

from data_prep.fabricate.captions import captions
from data_prep.fabricate.render import render
from data_prep.fabricate.scenes import training_scene
from data_prep.manifest import write_manifest
from data_prep.shard import Sample, index_path, write_shard
from lab.study import RESULTS, machine
from pipeline.config.schema import LoaderConfig, ModelConfig
from pipeline.data.loader import Corpus, StepPositions, build_loader
from pipeline.files import sha256_file, write_json
from pipeline.models.two_tower import PREPROCESS, build_tokenizer, open_clip_config

OPENSTAX = Path(__file__).resolve().parents[2] / "shared" / "data" / "openstax.parquet"
BATCH, SIZE, SHARDS = 64, 224, 4
MODEL = "ViT-B-32"


def pictures(count: int) -> list[tuple[Image.Image, str]]:
    """Images with captions."""
    if OPENSTAX.is_file():
        rows = pq.read_table(OPENSTAX, columns=["image_bytes", "caption"]).slice(0, count).to_pylist()
        return [(Image.open(io.BytesIO(row["image_bytes"])).convert("RGB"), row["caption"]) for row in rows]
    scenes = [training_scene(0, number) for number in range(count)]
    return [(Image.open(io.BytesIO(render(scene))).convert("RGB"), captions(scene, 1)[0]) for scene in scenes]


def write_corpus(folder: Path, images: list[tuple[Image.Image, str]], side: int) -> None:
    """Shards with their manifest; the short side of every image is `side`."""
    samples = [Sample(f"{n:032x}", _jpeg(image, side), "jpg", text, {}) for n, (image, text) in enumerate(images)]
    rows = []
    for shard in range(SHARDS):
        path = folder / "shards" / f"{shard:05d}-000.tar"
        part = samples[shard::SHARDS]
        write_shard(path, part)
        rows.append(
            {
                "path": str(path.relative_to(folder)),
                "samples": len(part),
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
                "index_sha256": sha256_file(index_path(path)),
                "work_item": shard,
                "attempt": 0,
            }
        )
    write_manifest(folder, rows, {"title": "benchmark"})


def _jpeg(image: Image.Image, side: int) -> bytes:
    scale = side / min(image.size)
    size = max(side, round(image.width * scale)), max(side, round(image.height * scale))
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def ours(folder: Path, batches: int, normalise: bool = False) -> Iterable[Any]:
    """Batches of pixels and tokens."""
    config = LoaderConfig(manifest=str(folder), workers=0, crop_scale=(0.9, 1.0))
    corpus = Corpus(config, 0, SIZE, build_tokenizer(open_clip_config(ModelConfig(name=MODEL))))
    loader = build_loader(corpus, StepPositions(BATCH, 0, 1, 0, batches), config, pin_memory=False)
    if not normalise:
        return ((batch.images, batch.tokens) for batch in loader)
    mean, std = (255 * torch.tensor(PREPROCESS[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (((batch.images - mean) / std, batch.tokens) for batch in loader)


def theirs(folder: Path, samples: int) -> Iterable[Any]:
    """The same of open_clip."""
    arguments = Namespace(
        train_data=str(folder / "shards" / f"{{00000..{SHARDS - 1:05d}}}-000.tar"),
        train_num_samples=samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=BATCH,
        workers=0,
        world_size=1,
        seed=0,
    )
    open_clip_train.data.tar_file_expander = functools.partial(tar_file_expander, eof_value=None)
    transform = open_clip.image_transform(SIZE, is_train=True)
    tokenizer = open_clip.get_tokenizer(MODEL)
    return get_wds_dataset(arguments, transform, is_train=True, tokenizer=tokenizer).dataloader


def rate(batches: Iterable[Any], count: int) -> float:
    """Samples per second of processor time over `count` batches, opening of files included."""
    started = time.process_time()
    seen = sum(len(images) for images, _ in itertools.islice(batches, count))
    return seen / (time.process_time() - started)


def measure(side: int, images: list[tuple[Image.Image, str]], repeats: int) -> dict[str, float]:
    """Rates of both, the best of `repeats` taken in turn."""
    count = len(images) // BATCH
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, images, side)
        rate(ours(folder, 1), 1)  # imports and caches of both
        rate(theirs(folder, len(images)), 1)
        rates: dict[str, float] = {}
        for _ in range(repeats):  # in turn, so that what else the machine does falls on all
            for name, batches in (
                ("ours", ours(folder, count)),
                ("ours_normalised", ours(folder, count, normalise=True)),
                ("theirs", theirs(folder, len(images))),
            ):
                rates[name] = max(rates.get(name, 0.0), rate(batches, count))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    images = pictures(384 if quick else 1472)
    rates = {side: measure(side, images, 2 if quick else 3) for side in (256, 512)}
    ratios = {f"ratio_{side}": round(r["ours"] / r["theirs"], 2) for side, r in rates.items()}
    if not quick:
        normalised = {f"ratio_{side}": round(r["ours_normalised"] / r["theirs"], 2) for side, r in rates.items()}
        per_second = {side: {name: round(value, 1) for name, value in r.items()} for side, r in rates.items()}
        result = {**ratios, "with_normalisation": normalised, "samples_per_second": per_second, "machine": machine()}
        write_json(RESULTS / "loader.json", result)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
