"""The three evaluation tasks of drawn scenes."""

from __future__ import annotations

from collections.abc import Callable

from data_prep.fabricate.captions import captions
from data_prep.fabricate.evaldata import EvalSample, EvalTask
from data_prep.fabricate.scenes import (
    BACKGROUND_KINDS,
    COLOURS,
    HELD_OUT,
    Scene,
    group_scene,
    retrieval_scenes,
    unseen_scene,
)

SMALLEST = 3 * len(HELD_OUT)  # scenes in all, so that every class occurs
CAPTIONS_PER_IMAGE = 3
# No template puts an article before {c}: "an orange star" would want another one.
UNSEEN_TEMPLATES = (
    "one {c}",
    "a single {c}",
    "a small {c}",
    "a large {c}",
    "a picture of a large {c}",
    "a tiny {c} on a white background",
    "a big {c} on a grey background",
)
COLOUR_TEMPLATES = (
    "one {c} circle",
    "a single {c} square",
    "a small {c} triangle",
    "a large {c} star",
    "a large {c} heart",
    "a small {c} diamond",
    "a single {c} cross",
)


def scene_tasks(seed: int, total: int, render_all: Callable[[list[Scene]], list[bytes]]) -> list[EvalTask]:
    """`total` held-out scenes, a third for each task.

    render_all: scenes to the bytes of their images, in order.
    """
    sizes = [(total + extra) // 3 for extra in (2, 1, 0)]
    unseen = [unseen_scene(seed, index) for index in range(sizes[0])]
    retrieval = retrieval_scenes(seed, sizes[1])
    grouped = [group_scene(seed, index) for index in range(sizes[2])]
    scenes = [*(scene for scene, _ in unseen), *retrieval, *(scene for scene, _, _ in grouped)]
    drawn = iter(zip(render_all(scenes), (scene.format for scene in scenes), strict=True))
    return [
        EvalTask(
            name="scenes-unseen",
            title="Unseen colour-shape combinations",
            samples=[EvalSample(*next(drawn), label=label) for _, label in unseen],
            classnames=[f"{colour} {shape}" for colour, shape in HELD_OUT],
            templates=UNSEEN_TEMPLATES,
        ),
        EvalTask(
            name="scenes-retrieval",
            title="Retrieval of two-group scenes",
            samples=[EvalSample(*next(drawn), captions=captions(scene, CAPTIONS_PER_IMAGE)) for scene in retrieval],
        ),
        EvalTask(
            name="scenes-groups",
            title="Colours, worst background",
            samples=[EvalSample(*next(drawn), label=label, metadata=(group, label)) for _, label, group in grouped],
            classnames=tuple(COLOURS),
            templates=COLOUR_TEMPLATES,
            columns=("background", "y"),
            group_names=BACKGROUND_KINDS,
        ),
    ]
