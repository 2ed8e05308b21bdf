"""Proves that pictures show what their scenes say, by counting and measuring pixels; and that the same
scene gives the same bytes, of the format and size it names.
"""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data_prep.fabricate.render import draw, render
from data_prep.fabricate.scenes import (
    BACKGROUND_COLOURS,
    BACKGROUND_KINDS,
    COLOURS,
    SHAPES,
    TEXTURES,
    Background,
    Group,
    Scene,
    training_scene,
    unseen_scene,
)

# Plain objects on a plain background, so that a pixel's colour tells what it belongs to.
PLAIN = [
    replace(
        scene,
        background=replace(scene.background, kind="plain"),
        groups=tuple(replace(group, texture="plain") for group in scene.groups),
    )
    for scene in (training_scene(2, index) for index in range(400))
]


def pixels_of(scene: Scene, colour: str) -> np.ndarray:
    """(height, width) bool: pixels within 30 of an object's colour."""
    distance = np.linalg.norm(np.asarray(draw(scene)).astype(int) - COLOURS[colour], axis=-1)
    return distance < 30


def pieces(mask: np.ndarray) -> int:
    """Connected parts of more than 3 pixels (thin tips may come loose at 64 px), diagonals included."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return int((np.bincount(labels.ravel())[1:] > 3).sum())


def single(shape: str, texture: str = "plain", kind: str = "plain", colour: str = "red") -> Scene:
    group = Group(1, "large", texture, colour, shape)
    return Scene("0" * 32, (group,), None, Background(kind, "white"), 160, 160, "png")


def test_bytes_are_the_same_twice_and_differ_between_scenes() -> None:
    scenes = [training_scene(2, index) for index in range(60)]
    first, second = ([render(scene) for scene in scenes] for _ in range(2))
    assert first == second
    assert len(set(first)) == 60


def test_files_have_the_format_and_size_of_the_scene() -> None:
    names = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
    for index in range(60):
        scene = training_scene(2, index)
        with Image.open(io.BytesIO(render(scene))) as image:
            assert image.format == names[scene.format]
            assert image.size == (scene.width, scene.height)
            assert image.mode == "RGB"
            image.load()


def test_pictures_hold_as_many_objects_as_the_scene_says() -> None:
    exact = []
    for scene in PLAIN:
        if len({group.colour for group in scene.groups}) < len(scene.groups):
            continue
        for group in scene.groups:
            found = pieces(pixels_of(scene, group.colour))
            assert 1 <= found <= group.count, scene  # neighbours may touch
            exact.append(found == group.count)
    assert len(exact) > 400
    assert np.mean(exact) > 0.85


def test_groups_lie_as_the_relation_says() -> None:
    checked = 0
    for scene in PLAIN:
        if scene.relation is None or scene.groups[0].colour == scene.groups[1].colour:
            continue
        axis = 1 if scene.relation == "left" else 0
        first, second = (np.nonzero(pixels_of(scene, group.colour))[axis] for group in scene.groups)
        assert first.max() <= second.min() + 1, scene
        checked += 1
    assert checked > 100


def test_sizes_do_not_overlap() -> None:
    spans: dict[str, list[float]] = {"small": [], "large": []}
    for scene in PLAIN:
        group = scene.groups[0]
        if len(scene.groups) == 1 and group.count == 1:
            rows, columns = np.nonzero(pixels_of(scene, group.colour))
            span = max(np.ptp(rows), np.ptp(columns)) / min(scene.width, scene.height)
            spans[group.size].append(span)
    assert min(map(len, spans.values())) > 10
    assert max(spans["small"]) < 0.85 * min(spans["large"])


def test_objects_survive_a_centre_crop() -> None:
    for scene in PLAIN:
        side = min(scene.width, scene.height)
        left, top = (scene.width - side) // 2, (scene.height - side) // 2
        outside = np.ones((scene.height, scene.width), bool)
        outside[top : top + side, left : left + side] = False
        for group in scene.groups:
            assert not (pixels_of(scene, group.colour) & outside).any(), scene


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_differs_from_every_other_and_stays_whole(shape: str) -> None:
    masks = {}
    for name in SHAPES:
        rows, columns = np.nonzero(pixels_of(single(name), "red"))
        mask = pixels_of(single(name), "red")[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        masks[name] = np.asarray(Image.fromarray(mask).resize((64, 64)))
        assert pieces(mask) == 1
    own = masks.pop(shape)
    overlaps = {name: (own & mask).sum() / (own | mask).sum() for name, mask in masks.items()}
    assert max(overlaps.values()) < 0.88, overlaps


@pytest.mark.parametrize("texture", TEXTURES[1:])
def test_textures_show_and_leave_the_colour_in_the_majority(texture: str) -> None:
    for shape in SHAPES:
        plain, textured = (pixels_of(single(shape, name), "red").sum() for name in ("plain", texture))
        assert 0.5 * plain < textured < 0.97 * plain, shape


@pytest.mark.parametrize("kind", BACKGROUND_KINDS)
def test_backgrounds_keep_their_colour_and_differ(kind: str) -> None:
    scene = single("circle", kind=kind)
    small = replace(scene, groups=(replace(scene.groups[0], size="small"),))
    image = np.asarray(draw(small)).reshape(-1, 3)
    near = np.linalg.norm(image.astype(int) - BACKGROUND_COLOURS["white"], axis=-1) < 110
    assert near.mean() > 0.8
    assert (len(np.unique(image[near] // 4, axis=0)) > 12) == (kind in ("gradient", "noisy"))


def test_held_out_pairs_are_drawn_too() -> None:
    for index in range(20):
        scene, _ = unseen_scene(2, index)
        scene = replace(scene, groups=(replace(scene.groups[0], texture="plain"),))
        assert pixels_of(scene, scene.groups[0].colour).sum() > 20
