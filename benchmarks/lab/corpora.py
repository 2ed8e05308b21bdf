"""The laboratory's corpora by name."""

from __future__ import annotations

import functools

from data_prep.fabricate.emoji import IMAGES_FILE
from lab.data import Corpus
from lab.emoji import FOLDER, load_emoji
from lab.scenes import load_scenes

DEFAULT = "emoji" if (FOLDER / IMAGES_FILE).is_file() else "scenes"


@functools.cache
def load(name: str) -> Corpus:
    """`emoji` or `scenes`; loaded once per process."""
    return {"emoji": load_emoji, "scenes": load_scenes}[name]()
