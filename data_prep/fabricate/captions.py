"""The caption grammar: varied English that says nothing untrue of a scene."""

from __future__ import annotations

import random

from data_prep.fabricate.scenes import Background, Group, Scene

_PLURALS = {"cross": "crosses"}
_NUMBERS = {
    1: ("a", "a", "a", "one", "a single"),
    2: ("two", "two", "a pair of"),
    3: ("three",),
    4: ("four",),
}
_SIZES = {"small": ("small", "small", "tiny", "little"), "large": ("large", "large", "big")}
_TEXTURES = {
    "striped": ("striped", "with stripes"),
    "dotted": ("dotted", "with dots"),
    "checkered": ("checkered", "with checks"),
}
_RELATIONS = {  # (first to second, second to first)
    "left": (("left of", "to the left of"), ("right of", "to the right of")),
    "above": (("above", "over"), ("below", "under")),
}
_PLACES = {"left": ("on the left", "on the right"), "above": ("at the top", "at the bottom")}
_BACKGROUNDS = {
    "plain": ("a {} background", "a plain {} background"),
    "gradient": ("a {} gradient", "a {} gradient background"),
    "noisy": ("a noisy {} background", "a grainy {} background"),
    "lined": ("a lined {} background", "{} lined paper"),
}
_FRAMES = ("a picture of {}", "an image of {}", "a drawing of {}")


def caption(scene: Scene, rng: random.Random, detailed: bool = False) -> str:
    """One sentence or phrase about `scene`.

    detailed: name the size and texture of every group, so that the caption fits no similar scene; else
    each is left out now and then, as people do.
    """
    background = _phrase(rng, _BACKGROUNDS[scene.background.kind], scene.background)
    nouns = [_noun_phrase(rng, group, detailed) for group in scene.groups]
    body, clause = _one(rng, scene, nouns[0]) if scene.relation is None else _two(rng, scene, nouns)
    style = rng.random()
    if style < 0.35:
        text = f"{body} on {background}"
    elif style < 0.5 and not clause:
        text = f"{background} with {body}"
    elif style < 0.65 and not clause:
        text = rng.choice(_FRAMES).format(body)
    else:
        text = body
    return f"{text[0].upper()}{text[1:]}." if rng.random() < 0.2 else text


def captions(scene: Scene, total: int) -> list[str]:
    """`total` different detailed captions, a function of the scene."""
    rng = random.Random(f"captions/{scene.uid}")
    found: dict[str, None] = {}
    while len(found) < total:
        found.setdefault(caption(scene, rng, detailed=True))
    return list(found)


def training_caption(scene: Scene) -> str:
    """The caption a scene has in the corpus, a function of the scene."""
    return caption(scene, random.Random(f"caption/{scene.uid}"))


def _one(rng: random.Random, scene: Scene, noun: str) -> tuple[str, bool]:
    """Words about a single group, and whether they are a whole clause."""
    if rng.random() < 0.15:
        return f"there {_verb(scene.groups[0])} {noun}", True
    return noun, False


def _two(rng: random.Random, scene: Scene, nouns: list[str]) -> tuple[str, bool]:
    """Words about two groups and their relation, and whether they are a whole clause."""
    assert scene.relation is not None
    if rng.random() < 0.2:
        here, there = _PLACES[scene.relation]
        return f"{nouns[0]} {here} and {nouns[1]} {there}", False
    subject, other = (0, 1) if rng.random() < 0.5 else (1, 0)
    relation = rng.choice(_RELATIONS[scene.relation][subject])
    if rng.random() < 0.2:
        return f"{nouns[subject]} {_verb(scene.groups[subject])} {relation} {nouns[other]}", True
    return f"{nouns[subject]} {relation} {nouns[other]}", False


def _verb(group: Group) -> str:
    return "is" if group.count == 1 else "are"


def _noun_phrase(rng: random.Random, group: Group, detailed: bool) -> str:
    adjectives, suffix = [], ""
    if detailed or rng.random() < 0.6:
        adjectives.append(rng.choice(_SIZES[group.size]))
    if group.texture != "plain" and (detailed or rng.random() < 0.85):
        word, phrase = _TEXTURES[group.texture]
        if rng.random() < 0.2:
            suffix = f" {phrase}"
        else:
            adjectives.append(word)
    adjectives.append(group.colour)
    noun = group.shape if group.count == 1 else _PLURALS.get(group.shape, f"{group.shape}s")
    words = " ".join([*adjectives, noun])
    return f"{_with_article(rng.choice(_NUMBERS[group.count]), words)}{suffix}"


def _phrase(rng: random.Random, templates: tuple[str, ...], background: Background) -> str:
    return rng.choice(templates).format(background.colour)


def _with_article(number: str, words: str) -> str:
    """`number` before `words`, with "a" turned into "an" where a vowel follows."""
    return f"an {words}" if number == "a" and words[0] in "aeiou" else f"{number} {words}"
