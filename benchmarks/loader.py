"""Our loader against open_clip's own: samples per second of one core, from the same shards to 224 px crops and tokens.

    python benchmarks/loader.py [--quick]

The peer is `open_clip_train.data.get_wds_dataset` with open_clip's training transform, of the installed package; both
run in this process, without workers, and processor time is counted. Images: photographs and figures of OpenStax
(../shared/data), enlarged to a short side of 256 or 512 pixels; drawn scenes where they are absent; JPEG at quality 90.
Ours are uint8: (x - mean) / std is the model's first operation, on its device; `with_normalisation` has the ratios with
it in our time. Prints one JSON line: {"ratio_256": ours / theirs, "ratio_512": ..} and writes
benchmarks/results/loader.json (not with --quick).
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip_train.data import get_wds_dataset
from PIL import Image

from lab.shards import all_shards, let_open_clip_read, pictures, write_corpus
from lab.study import RESULTS, machine
from pipeline.config.schema import LoaderConfig, ModelConfig
from pipeline.data.loader import Corpus, StepPositions, build_loader
from pipeline.files import write_json
from pipeline.models.two_tower import PREPROCESS, build_tokenizer, open_clip_config

BATCH, SIZE, SHARDS = 64, 224, 4
MODEL = "ViT-B-32"


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
        train_data=all_shards(folder, SHARDS),
        train_num_samples=samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=BATCH,
        workers=0,
        world_size=1,
        seed=0,
    )
    let_open_clip_read()
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
        write_corpus(folder, images, side, SHARDS)
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
