"""A scene to the bytes of an image file. Masks are drawn `_OVERSAMPLING` times too large and averaged down.

Objects keep to the central square, so that a centre crop of a wide or tall picture loses none of them.
"""

from __future__ import annotations

import io
import math
import random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from data_prep.fabricate.scenes import BACKGROUND_COLOURS, COLOURS, Background, Group, Scene
from data_prep.fabricate.shapes import OUTLINES, Polygon

Box = tuple[float, float, float, float]  # left, top, right, bottom
Colour = tuple[int, int, int]

_OVERSAMPLING = 4
_MARGIN = 0.03  # of the central square, around it and between two groups
# Of the central square's side. An object that has the picture to itself may be larger.
_DIAMETER = {"small": (0.24, 0.28), "large": (0.38, 0.445)}
_LONE_DIAMETER = {"small": (0.26, 0.34), "large": (0.48, 0.7)}
_RIM = 0.12  # of an object's diameter, half of it inside the outline
_TILT = math.radians(12)
_ENCODING: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 90},
    "png": {"format": "PNG", "compress_level": 3},
    "webp": {"format": "WEBP", "quality": 88, "method": 1},
}


def render(scene: Scene) -> bytes:
    """The picture of `scene` in its format; the same scene always gives the same bytes."""
    buffer = io.BytesIO()
    draw(scene).save(buffer, **_ENCODING[scene.format])
    return buffer.getvalue()


def draw(scene: Scene) -> Image.Image:
    """The picture of `scene`, RGB, (height, width)."""
    rng = random.Random(scene.uid)
    image = _background(rng, scene.background, scene.width, scene.height)
    side = min(scene.width, scene.height)
    left, top = (scene.width - side) / 2, (scene.height - side) / 2
    for group, region in zip(scene.groups, _regions(scene.relation), strict=True):
        lone = scene.relation is None and group.count == 1
        diameter = rng.uniform(*(_LONE_DIAMETER if lone else _DIAMETER)[group.size])
        for x, y in _places(rng, group.count, region, diameter):
            _paste(image, rng, group, left + x * side, top + y * side, diameter * side)
    return image


def _regions(relation: str | None) -> list[Box]:
    """Where each group goes, on the unit square."""
    low, high, middle = _MARGIN, 1 - _MARGIN, 0.5
    if relation is None:
        return [(low, low, high, high)]
    near, far = middle - _MARGIN / 2, middle + _MARGIN / 2
    if relation == "left":
        return [(low, low, near, high), (far, low, high, high)]
    return [(low, low, high, near), (low, far, high, high)]


def _places(rng: random.Random, count: int, region: Box, diameter: float) -> list[tuple[float, float]]:
    """Centres of `count` objects in cells of the region, none overlapping."""
    left, top, right, bottom = region
    grids = [
        (columns, rows)
        for columns in (1, 2, 3)
        for rows in (1, 2, 3)
        if count <= columns * rows <= count + 2
        and diameter <= (right - left) / columns
        and diameter <= (bottom - top) / rows
    ]
    columns, rows = rng.choice(grids)
    width, height = (right - left) / columns, (bottom - top) / rows
    centres = []
    for cell in rng.sample(range(columns * rows), count):
        row, column = divmod(cell, columns)
        x = left + (column + 0.5) * width + rng.uniform(-1, 1) * (width - diameter) / 2
        y = top + (row + 0.5) * height + rng.uniform(-1, 1) * (height - diameter) / 2
        centres.append((x, y))
    return centres


def _paste(image: Image.Image, rng: random.Random, group: Group, x: float, y: float, diameter: float) -> None:
    """Draw one object with its centre at pixel (x, y)."""
    size = round(diameter)
    side, tilt = size * _OVERSAMPLING, rng.uniform(-_TILT, _TILT)
    polygons = [_to_pixels(polygon, side, tilt) for polygon in OUTLINES[group.shape] if polygon]
    colour = COLOURS[group.colour]
    skin = Image.new("RGB", (size, size), colour)
    if group.texture != "plain":
        skin.paste(_mix(colour, (255, 255, 255), 0.65), mask=_texture(group.texture, polygons, side))
    image.paste(skin, (round(x - size / 2), round(y - size / 2)), _coverage(polygons, side))


def _to_pixels(polygon: Polygon, side: int, tilt: float) -> Polygon:
    radius, cosine, sine = side / 2, math.cos(tilt), math.sin(tilt)
    return [(radius * (1 + x * cosine - y * sine), radius * (1 + x * sine + y * cosine)) for x, y in polygon]


def _coverage(polygons: list[Polygon], side: int) -> Image.Image:
    """Where an outline covers its tile, and its hole does not; L, averaged down from (side, side)."""
    tile = Image.new("L", (side, side))
    pen = ImageDraw.Draw(tile)
    for polygon, value in zip(polygons, (255, 0), strict=False):
        pen.polygon(polygon, fill=value)
    return tile.reduce(_OVERSAMPLING)


def _texture(texture: str, polygons: list[Polygon], side: int) -> Image.Image:
    """Where the accent shows on the tile, L. Coarse, and with a rim left plain: the shape must stay clear."""
    tile = Image.new("L", (side, side))
    pen = ImageDraw.Draw(tile)
    if texture == "striped":
        step = side / 7
        for stripe in (1, 3, 5):
            pen.rectangle((0, stripe * step, side, (stripe + 0.9) * step), fill=255)
    else:
        cells = 5
        step, radius = side / cells, side / 13
        for row in range(cells):
            for column in range(row % 2, cells, 2) if texture == "checkered" else range(cells):
                left, top = column * step, row * step
                if texture == "checkered":
                    pen.rectangle((left, top, left + step, top + step), fill=255)
                else:
                    x, y = left + step / 2, top + step / 2
                    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    for polygon in polygons:
        pen.line([*polygon, polygon[0]], fill=0, width=round(side * _RIM), joint="curve")
    return tile.reduce(_OVERSAMPLING)


def _mix(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _background(rng: random.Random, background: Background, width: int, height: int) -> Image.Image:
    colour = BACKGROUND_COLOURS[background.colour]
    bright = sum(colour) > 3 * 128
    shade = _mix(colour, (0, 0, 0) if bright else (255, 255, 255), 0.24)
    image = Image.new("RGB", (width, height), colour)
    if background.kind == "gradient":
        ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((width, height))
        image.paste(shade, mask=ramp)
    elif background.kind == "noisy":
        # Grain of about a fiftieth of the picture, which a reduction to 64 pixels keeps.
        grain = max(1, min(width, height) // 50)
        noise = np.random.default_rng(rng.getrandbits(64)).random((height // grain, width // grain)) ** 2
        image.paste(shade, mask=Image.fromarray((noise * 255).astype(np.uint8)).resize((width, height)))
    elif background.kind == "lined":
        step = min(width, height) / 9
        pen = ImageDraw.Draw(image)
        thickness = max(1, round(step / 6))
        for line in range(1, math.ceil(height / step)):
            top = round(line * step)
            pen.rectangle((0, top, width, top + thickness - 1), fill=shade)
    return image
