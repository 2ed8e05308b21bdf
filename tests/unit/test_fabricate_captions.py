"""Proves that captions are true: a parser of its own reads each one back and finds only what the scene
holds; that articles, plurals and verbs are right; and that detailed captions leave nothing out.
"""

import re

import pytest

from data_prep.fabricate.captions import captions, training_caption
from data_prep.fabricate.scenes import Group, Scene, retrieval_scenes, training_scene

COLOURS = "red|orange|yellow|green|cyan|blue|purple|pink|brown|black"
SHAPES = "circle|square|triangle|star|heart|diamond|cross|ring|crescent|arrow"
NUMBERS = {"a": 1, "an": 1, "one": 1, "a single": 1, "two": 2, "a pair of": 2, "three": 3, "four": 4}
SIZES = {"small": "small", "tiny": "small", "little": "small", "large": "large", "big": "large"}
TEXTURES = {"stripes": "striped", "dots": "dotted", "checks": "checkered"}
NOUN = re.compile(
    rf"(?P<number>{'|'.join(sorted(NUMBERS, key=len, reverse=True))}) (?:(?P<size>{'|'.join(SIZES)}) )?"
    rf"(?:(?P<texture>striped|dotted|checkered) )?(?P<colour>{COLOURS}) (?P<shape>{SHAPES})(?P<plural>e?s)?"
    rf"(?: with (?P<texture2>{'|'.join(TEXTURES)}))?"
    r"(?: (?P<place>on the left|on the right|at the top|at the bottom))?"
)
GROUND = re.compile(
    r"(?:(?P<plain>a plain|a) (?P<c1>\w+) background)|(?:a (?P<c2>\w+) gradient(?: background)?)"
    r"|(?:a (?:noisy|grainy) (?P<c3>\w+) background)"
    r"|(?:a lined (?P<c4>\w+) background)|(?:(?P<c5>\w+) lined paper)"
)
# Where the first one named lies from the second.
DIRECTIONS = {"left of": "left", "right of": "right", "above": "above", "over": "above"} | {
    "below": "below",
    "under": "below",
}
TRAINING = [training_scene(5, index) for index in range(2500)]
RETRIEVAL = retrieval_scenes(5, 250)


def check(scene: Scene, caption: str, complete: bool) -> None:
    """Fail unless `caption` is true of `scene`; with `complete`, unless it also tells all of its groups."""
    text = re.sub(r"^[A-Z]", lambda match: match[0].lower(), caption).removesuffix(".")
    text = re.sub(r"^(a picture of|an image of|a drawing of) ", "", text)
    text = re.sub(r"^there (is|are) ", "", text)
    found = list(NOUN.finditer(text))
    assert len(found) == len(scene.groups), caption
    swapped = len(found) == 2 and not says(found[0], scene.groups[0])
    told = list(reversed(found)) if swapped else found
    for noun, group in zip(told, scene.groups, strict=True):
        assert says(noun, group), (caption, group)
        if complete:
            assert noun["size"], caption
            assert group.texture == "plain" or noun["texture"] or noun["texture2"], caption
    between = text[found[0].end() : found[1].start()] if len(found) == 2 else ""
    if len(found) == 2:
        assert direction(found, between) == expected_direction(scene, swapped), caption
    rest = (text[: found[0].start()] + text[found[-1].end() :]).strip()
    ground = re.sub(r"^on | with$", "", rest)
    if ground:
        check_ground(scene, ground)


def says(noun: re.Match[str], group: Group) -> bool:
    """Whether every word of a noun phrase is true of `group`; fails on bad grammar."""
    count = NUMBERS[noun["number"]]
    assert bool(noun["plural"]) == (count > 1), noun[0]
    assert (noun["plural"] == "es") == (noun["shape"] == "cross" and count > 1), noun[0]
    if noun["number"] in ("a", "an"):
        following = noun[0].split()[1]
        assert (noun["number"] == "an") == (following[0] in "aeiou"), noun[0]
    texture = noun["texture"] or TEXTURES.get(noun["texture2"], group.texture)
    size = SIZES.get(noun["size"], group.size)
    return (count, size, texture, noun["colour"], noun["shape"]) == (
        group.count,
        group.size,
        group.texture,
        group.colour,
        group.shape,
    )


def direction(found: list[re.Match[str]], between: str) -> str:
    if found[0]["place"]:
        assert between == " and "
        opposite = {"on the left": "on the right", "at the top": "at the bottom"}
        assert found[1]["place"] == opposite[found[0]["place"]]
        return {"on the left": "left", "at the top": "above"}[found[0]["place"]]
    match = re.fullmatch(
        r" (?P<verb>is |are )?(?:to the )?(?P<relation>left of|right of|above|over|below|under) ", between
    )
    assert match, between
    if match["verb"]:
        assert (match["verb"] == "are ") == (NUMBERS[found[0]["number"]] > 1), between
    return DIRECTIONS[match["relation"]]


def expected_direction(scene: Scene, swapped: bool) -> str:
    assert scene.relation is not None
    return {"left": "right", "above": "below"}[scene.relation] if swapped else scene.relation


def check_ground(scene: Scene, text: str) -> None:
    match = GROUND.fullmatch(text)
    assert match, text
    colour = next(value for key, value in match.groupdict().items() if key.startswith("c") and value)
    kind = ("plain", "gradient", "noisy", "lined", "lined")[[bool(match[f"c{n}"]) for n in range(1, 6)].index(True)]
    assert (kind, colour) == (scene.background.kind, scene.background.colour), text


def test_every_training_caption_is_true() -> None:
    for scene in TRAINING:
        check(scene, training_caption(scene), complete=False)


def test_detailed_captions_are_true_and_complete() -> None:
    for scene in RETRIEVAL:
        for caption in captions(scene, 3):
            check(scene, caption, complete=True)


def test_detailed_captions_are_unique_across_images() -> None:
    said = [caption for scene in RETRIEVAL for caption in captions(scene, 3)]
    assert len(set(said)) == 3 * len(RETRIEVAL)


def test_the_reader_sees_a_lie() -> None:
    scene = next(s for s in TRAINING if s.relation == "left" and s.groups[0].count == 1)
    caption = captions(scene, 1)[0]
    lies = [
        caption.replace(scene.groups[1].colour, "nocolour"),
        re.sub(r"left|right", lambda match: {"left": "right", "right": "left"}[match[0]], caption),
        re.sub("small|tiny|little|large|big", lambda m: "big" if SIZES[m[0]] == "small" else "tiny", caption),
    ]
    for lie in lies:
        assert lie != caption
        with pytest.raises((AssertionError, KeyError)):
            check(scene, lie, complete=True)


def test_captions_are_varied() -> None:
    openings = {" ".join(training_caption(scene).lower().split()[:2]) for scene in TRAINING}
    assert {"there is", "there are", "a picture", "a grainy", "a pair", "one large", "an orange"} <= openings
    assert len({training_caption(scene) for scene in TRAINING}) > 0.85 * len(TRAINING)


def test_captions_fit_a_short_context() -> None:
    assert max(len(c.split()) for scene in RETRIEVAL for c in captions(scene, 3)) <= 26
