"""Outlines of the shapes, on the square [-1, 1] x [-1, 1], y downward: a polygon, and a hole or None.

Tilted by up to 12 degrees they stay on the square.
"""

from __future__ import annotations

import math

Point = tuple[float, float]
Polygon = list[Point]


def _ellipse(centre_x: float = 0.0, radius: float = 1.0, corners: int = 48) -> Polygon:
    angles = (2 * math.pi * corner / corners for corner in range(corners))
    return [(centre_x + radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _star(points: int = 5, inner: float = 0.42) -> Polygon:
    polygon = []
    for corner in range(2 * points):
        angle = math.pi * corner / points - math.pi / 2
        radius = inner if corner % 2 else 1.0
        polygon.append((radius * math.cos(angle), 0.06 + radius * math.sin(angle)))
    return polygon


def _heart(corners: int = 48) -> Polygon:
    polygon = []
    for corner in range(corners):
        t = 2 * math.pi * corner / corners
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        polygon.append((math.sin(t) ** 3, -(y + 2.5) / 14.5))
    return polygon


_ARM, _REACH = 0.33, 0.94
_CROSS: Polygon = [
    (-_ARM, -_REACH),
    (_ARM, -_REACH),
    (_ARM, -_ARM),
    (_REACH, -_ARM),
    (_REACH, _ARM),
    (_ARM, _ARM),
    (_ARM, _REACH),
    (-_ARM, _REACH),
    (-_ARM, _ARM),
    (-_REACH, _ARM),
    (-_REACH, -_ARM),
    (-_ARM, -_ARM),
]
_ARROW: Polygon = [(-1, -0.3), (0.05, -0.3), (0.05, -0.85), (1, 0), (0.05, 0.85), (0.05, 0.3), (-1, 0.3)]

OUTLINES: dict[str, tuple[Polygon, Polygon | None]] = {
    "circle": (_ellipse(), None),
    "square": ([(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)], None),
    "triangle": ([(0, -0.95), (0.86, 0.75), (-0.86, 0.75)], None),
    "star": (_star(), None),
    "heart": (_heart(), None),
    "diamond": ([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)], None),
    "cross": (_CROSS, None),
    "ring": (_ellipse(), _ellipse(radius=0.52)),
    "crescent": (_ellipse(), _ellipse(centre_x=0.52, radius=0.8)),
    "arrow": (_ARROW, None),
}
