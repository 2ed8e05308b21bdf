"""Fixtures that several suites share."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from PIL import Image

from data_prep.manifest import shard_row, write_manifest
from data_prep.shard import Sample, write_shard

# A busy machine is no fault of what is tested. Where a change is judged, it is by the same examples each time; new ones
# are drawn wherever else the tests run.
hypothesis.settings.register_profile("ours", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("ours")


def image_bytes(number: int, size: int = 24, form: str = "PNG") -> bytes:
    """A small image that only `number` decides."""
    pixels = np.random.default_rng(number).integers(0, 255, (size, size + number % 5, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def write_corpus(
    folder: Path,
    shard_sizes: list[int],
    broken: tuple[int, ...] = (),
    metadata: Callable[[int], dict[str, Any]] = lambda number: {"n": number},
    caption: Callable[[int], str] = "caption {}".format,
) -> Path:
    """A published corpus of noise images; sample i has the caption `caption i`. broken: samples without an image."""
    rows, number = [], 0
    for shard, size in enumerate(shard_sizes):
        path = folder / "shards" / f"{shard:05d}-000.tar"
        samples = []
        for _ in range(size):
            content = b"no image" if number in broken else image_bytes(number)
            samples.append(Sample(f"{number:032x}", content, "png", caption(number), metadata(number)))
            number += 1
        write_shard(path, samples)
        rows.append(shard_row(folder, path, size, shard))
    write_manifest(folder, rows, {"title": "noise"})
    return folder


@pytest.fixture(scope="session")
def noise_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """203 samples in 5 uneven shards."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), [50, 37, 60, 1, 55])
