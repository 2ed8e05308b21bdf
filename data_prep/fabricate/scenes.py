"""The scene grammar: what may stand in a picture. Each scene is a function of (seed, split, index).

A scene holds one or two groups of equal objects on a background. Twenty (colour, shape) pairs, two of every
colour and two of every shape, never occur in training: they are the classes of the unseen-combinations task.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

GRAMMAR = 1  # part of every scene's identity: raise it when the grammar or the renderer changes

COLOURS = {
    "red": (220, 30, 35),
    "orange": (255, 140, 0),
    "yellow": (250, 215, 20),
    "green": (30, 150, 60),
    "cyan": (0, 190, 215),
    "blue": (30, 70, 220),
    "purple": (125, 40, 170),
    "pink": (240, 90, 170),
    "brown": (120, 72, 35),
    "black": (20, 20, 22),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "crescent", "arrow")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "large")
BACKGROUND_COLOURS = {
    "white": (250, 250, 248),
    "grey": (170, 170, 172),
    "beige": (232, 216, 186),
    "mint": (190, 232, 208),
    "lavender": (212, 202, 240),
    "navy": (28, 36, 84),
}
BACKGROUND_KINDS = ("plain", "gradient", "noisy", "lined")
FORMATS = ("jpg", "png", "webp")
LIMITS = (64, 320)  # pixels

Pair = tuple[str, str]  # (colour, shape)
# Two diagonals of the colour x shape square.
HELD_OUT: tuple[Pair, ...] = tuple(
    (colour, SHAPES[(row + shift) % len(SHAPES)]) for shift in (3, 7) for row, colour in enumerate(COLOURS)
)
SEEN: tuple[Pair, ...] = tuple(
    (colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT
)

_LEGIBLE_DISTANCE = 115  # RGB distance below which an object drowns in its background
_ASPECTS = (1.0, 1.0, 4 / 3, 3 / 2)
# Lone plain objects are the commonest: those are what shapes are learned from.
_COUNT_WEIGHTS = {1: 0.6, 2: 0.2, 3: 0.1, 4: 0.1}
_TEXTURE_WEIGHTS = (0.55, 0.15, 0.15, 0.15)
_FORMAT_WEIGHTS = (0.6, 0.2, 0.2)


@dataclass(frozen=True)
class Group:
    """`count` equal objects: 1 to 4, alone in a picture; 1 to 3 in half of one."""

    count: int
    size: str
    texture: str
    colour: str
    shape: str

    @property
    def pair(self) -> Pair:
        return self.colour, self.shape


@dataclass(frozen=True)
class Background:
    """A colour, and what is done with it (one of BACKGROUND_KINDS)."""

    kind: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows. uid: 32 hex digits, from the scene's identity. width, height: pixels.

    relation: where `groups[0]` lies from `groups[1]`; None for a single group.
    """

    uid: str
    groups: tuple[Group, ...]
    relation: Literal["left", "above"] | None
    background: Background
    width: int
    height: int
    format: str


def training_scene(seed: int, index: int) -> Scene:
    """One or two groups of pairs from SEEN."""
    uid, rng = _identity(seed, "train", index)
    pairs = rng.sample(SEEN, rng.choice((1, 2)))
    return _scene(uid, rng, pairs)


def unseen_scene(seed: int, index: int) -> tuple[Scene, int]:
    """A single object of a pair from HELD_OUT; with its class, an index into HELD_OUT."""
    uid, rng = _identity(seed, "unseen", index)
    label = index % len(HELD_OUT)
    return _scene(uid, rng, [HELD_OUT[label]], counts=(1,)), label


def group_scene(seed: int, index: int) -> tuple[Scene, int, int]:
    """A single object; its class, an index into COLOURS; and its group, an index into BACKGROUND_KINDS."""
    uid, rng = _identity(seed, "groups", index)
    label = index % len(COLOURS)
    # 10 and 4 share a factor: the extra shift makes every (class, group) pair occur once in 40 scenes.
    group = (index + index // 20) % len(BACKGROUND_KINDS)
    pair = rng.choice([pair for pair in SEEN if pair[0] == list(COLOURS)[label]])
    return _scene(uid, rng, [pair], counts=(1,), kinds=(BACKGROUND_KINDS[group],)), label, group


def lone_scene(seed: int, split: str, index: int, pair: Pair, kind: str | None = None) -> Scene:
    """A single object of any pair, on a background of that kind, or of any."""
    uid, rng = _identity(seed, split, index)
    return _scene(uid, rng, [pair], counts=(1,), kinds=(kind,) if kind else BACKGROUND_KINDS)


def retrieval_scenes(seed: int, total: int) -> list[Scene]:
    """Scenes of two groups of SEEN pairs, no two alike in counts, sizes, colours, shapes and relation."""
    scenes: dict[tuple[object, ...], Scene] = {}
    index = 0
    while len(scenes) < total:
        uid, rng = _identity(seed, "retrieval", index)
        scene = _scene(uid, rng, rng.sample(SEEN, 2))
        key = (scene.relation, *((group.count, group.size, *group.pair) for group in scene.groups))
        scenes.setdefault(key, scene)
        index += 1
    return list(scenes.values())


def legible(colour: str, background: str) -> bool:
    """Whether an object of `colour` stands out from a background of that colour."""
    return math.dist(COLOURS[colour], BACKGROUND_COLOURS[background]) >= _LEGIBLE_DISTANCE


def _identity(seed: int, split: str, index: int) -> tuple[str, random.Random]:
    identity = f"scene/{GRAMMAR}/{seed}/{split}/{index}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32], random.Random(identity)


def _scene(
    uid: str,
    rng: random.Random,
    pairs: Sequence[Pair],
    counts: Sequence[int] = (1, 2, 3, 4),
    kinds: Sequence[str] = BACKGROUND_KINDS,
) -> Scene:
    groups = tuple(_group(rng, pair, counts, crowded=len(pairs) > 1) for pair in pairs)
    legible_on = [name for name in BACKGROUND_COLOURS if all(legible(colour, name) for colour, _ in pairs)]
    width, height = _dimensions(rng)
    return Scene(
        uid=uid,
        groups=groups,
        relation=rng.choice(("left", "above")) if len(groups) > 1 else None,
        background=Background(rng.choice(kinds), rng.choice(legible_on)),
        width=width,
        height=height,
        format=rng.choices(FORMATS, _FORMAT_WEIGHTS)[0],
    )


def _group(rng: random.Random, pair: Pair, counts: Sequence[int], crowded: bool) -> Group:
    size = rng.choice(SIZES)
    if crowded:  # half a picture has room for so many
        counts = [count for count in counts if count <= {"small": 3, "large": 2}[size]]
    count = rng.choices(counts, [_COUNT_WEIGHTS[count] for count in counts])[0]
    return Group(count, size, rng.choices(TEXTURES, _TEXTURE_WEIGHTS)[0], *pair)


def _dimensions(rng: random.Random) -> tuple[int, int]:
    """Width and height in pixels, both within LIMITS, smaller ones more often."""
    smallest, largest = LIMITS
    aspect = rng.choice(_ASPECTS)
    longest = round(rng.triangular(smallest, largest, 128))
    shortest = max(smallest, round(longest / aspect))
    return (longest, shortest) if rng.random() < 0.5 else (shortest, longest)
