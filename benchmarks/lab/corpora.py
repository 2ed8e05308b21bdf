"""The laboratory's corpora by name."""

from __future__ import annotations

import functools

from benchmarks.lab.data import Corpus
from benchmarks.lab.emoji import FOLDER, load_emoji
from benchmarks.lab.scenes import load_scenes
from data_prep.fabricate.emoji import IMAGES_FILE

DEFAULT = "emoji" if (FOLDER / IMAGES_FILE).is_file() else "scenes"


@functools.cache
def load(name: str) -> Corpus:
    """`emoji` or `scenes`; loaded once per process."""
    return {"emoji": load_emoji, "scenes": load_scenes}[name]()
