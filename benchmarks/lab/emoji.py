"""Real images: emoji in seven drawing styles, with CIFAR-10 and groceries to name.

In the folder NEUCLIP_TEST_DATA: the files of docs/corpora.md's emoji corpus, cifar10_test.parquet and groceries. Where
they are not, the laboratory draws scenes instead.

Two drawing styles and a tenth of the concepts are never trained on. Half of the concepts in the held-out styles and
the concepts of `split = val` are for tuning, the other half and `split = test` for reporting.
"""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pyarrow.parquet as pq
import torch

from data_prep.fabricate.emoji import Emoji, read_emoji
from lab.data import CAPTIONS, CONTEXT, VOCABULARY, Corpus, Task, Vocabulary, pixels

FOLDER = Path(os.environ.get("NEUCLIP_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
HELD_OUT_STYLES = ("twemoji", "openmoji")
TEMPLATES = ("{c}", "{c} emoji", "an emoji of {c}", "an icon of {c}", "a drawing of {c}")


def load_emoji(folder: Path = FOLDER) -> Corpus:
    """folder: the Parquet files. Raises UserError where they are missing."""
    tokens = Vocabulary()
    everything = read_emoji(folder)
    training = [e for e in everything if e.split == "train" and e.style not in HELD_OUT_STYLES]
    names = sorted({e.name for e in everything})
    tuning: dict[str, Task] = {}
    reporting: dict[str, Task] = {}
    for tasks, half, split in ((tuning, 0, "val"), (reporting, 1, "test")):
        for style in HELD_OUT_STYLES:
            images = [e for e in everything if e.style == style and e.split == "train" and _half(e) == half]
            tasks[style] = _emoji_task(images, names, tokens, pairs=True)
        concepts = [e for e in everything if e.split == split]
        tasks["concepts"] = _emoji_task(concepts, sorted({e.name for e in concepts}), tokens)
    reporting["cifar10"] = _cifar10(folder, tokens)
    reporting["grocery"] = _grocery(folder, tokens)
    captions = tokens([_caption(e, variant) for e in training for variant in range(CAPTIONS)])
    images_of_training = torch.stack([pixels(e.image) for e in training])
    return Corpus(images_of_training, captions.view(-1, CAPTIONS, CONTEXT), VOCABULARY, tuning, reporting)


def _half(emoji: Emoji) -> int:
    return hashlib.sha256(emoji.codepoint.encode()).digest()[0] % 2


def _emoji_task(emoji: list[Emoji], names: list[str], tokens: Vocabulary, pairs: bool = False) -> Task:
    number = {name: i for i, name in enumerate(names)}
    return Task(
        torch.stack([pixels(e.image) for e in emoji]),
        tokens(names),
        torch.tensor([number[e.name] for e in emoji]),
        tokens([", ".join([e.name, *e.keywords[:3]]) for e in emoji]) if pairs else None,
    )


def _cifar10(folder: Path, tokens: Vocabulary) -> Task:
    rows = pq.read_table(folder / "cifar10_test.parquet").to_pylist()
    names = sorted({row["class_name"] for row in rows})
    return Task(
        torch.stack([pixels(row["image"]) for row in rows]),
        tokens(names),
        torch.tensor([names.index(row["class_name"]) for row in rows]),
    )


def _grocery(folder: Path, tokens: Vocabulary) -> Task:
    table = pq.read_table(folder / "grocery.parquet", columns=["image_bytes", "class_name", "split"])
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    names = sorted({row["class_name"] for row in rows})
    return Task(
        torch.stack([pixels(row["image_bytes"]) for row in rows]),
        tokens([name.replace("-", " ").lower() for name in names]),
        torch.tensor([names.index(row["class_name"]) for row in rows]),
    )


def _caption(emoji: Emoji, variant: int) -> str:
    rng = random.Random(f"{emoji.style}/{emoji.codepoint}/{variant}")
    text = rng.choice(TEMPLATES).format(c=emoji.name)
    if rng.random() < 0.4:
        text += f" in {emoji.style.replace('_', ' ')} style"
    return ", ".join([text, *rng.sample(emoji.keywords, min(rng.randint(0, 3), len(emoji.keywords)))])
