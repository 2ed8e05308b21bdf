"""Drawn scenes, where there are no real images: colour and shape combinations that were never trained on."""

from __future__ import annotations

import random

import torch

from data_prep.fabricate.captions import caption, captions
from data_prep.fabricate.render import render
from data_prep.fabricate.scenes import HELD_OUT, retrieval_scenes, training_scene, unseen_scene
from lab.data import CAPTIONS, CONTEXT, VOCABULARY, Corpus, Task, Vocabulary, pixels

TRAINING, HELD_OUT_SCENES = 6_000, 800
TUNING, REPORTING = 1, 2  # seeds of the held-out scenes


def load_scenes() -> Corpus:
    """Rendered anew each time, in about a minute; the same every time."""
    tokens = Vocabulary()
    scenes = [training_scene(0, index) for index in range(TRAINING)]
    texts = [caption(s, random.Random(f"{s.uid}/{variant}")) for s in scenes for variant in range(CAPTIONS)]
    drawn = torch.stack([pixels(render(scene)) for scene in scenes])
    variants = tokens(texts).view(-1, CAPTIONS, CONTEXT)
    return Corpus(drawn, variants, VOCABULARY, _tasks(TUNING, tokens), _tasks(REPORTING, tokens))


def _tasks(seed: int, tokens: Vocabulary) -> dict[str, Task]:
    names = [f"one {colour} {shape}" for colour, shape in HELD_OUT]
    unseen = [unseen_scene(seed, index) for index in range(HELD_OUT_SCENES)]
    pairs = retrieval_scenes(seed, HELD_OUT_SCENES)
    texts = [captions(scene, 1)[0] for scene in pairs]
    return {
        "unseen": Task(
            torch.stack([pixels(render(scene)) for scene, _ in unseen]),
            tokens(names),
            torch.tensor([label for _, label in unseen]),
        ),
        "two_groups": Task(
            torch.stack([pixels(render(scene)) for scene in pairs]),
            tokens(texts),
            torch.arange(len(pairs)),
            tokens(texts),
        ),
    }
