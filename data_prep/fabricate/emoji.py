"""A corpus of emoji in several drawing styles, from a folder of Parquet files; one style is held out.

    emoji_images.parquet        style, codepoint, image (bytes)
    emoji_annotations.parquet   codepoint, name, keywords, group, skin_tone, split (train, val, test)

Rows of the list point to rows of the Parquet file as `data_prep.serve` serves it: no image is copied.
Training sees concepts of `split = train` in every style but the held-out one; skin tones are left out.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_prep.fabricate.evaldata import EvalSample, EvalTask, write_tasks
from data_prep.fabricate.listing import write_listing
from data_prep.progress import Report, silent
from pipeline.errors import UserError

IMAGES_FILE = "emoji_images.parquet"
ANNOTATIONS_FILE = "emoji_annotations.parquet"
TEMPLATES = ("{c}", "{c} emoji", "an emoji of {c}", "an icon of {c}", "a drawing of {c}")
STYLE_CLASSES = 150
RETRIEVAL_IMAGES = 300
CONCEPTS_PER_GROUP = 30


@dataclass(frozen=True)
class Emoji:
    """One image: a row of IMAGES_FILE joined to its concept's annotations."""

    row: int
    image: bytes
    style: str
    codepoint: str
    name: str
    keywords: tuple[str, ...]
    group: str
    split: str

    def sample(self, **target: Any) -> EvalSample:
        """The image as a sample of a task; target: `label` and `group`, or `captions`."""
        return EvalSample(self.image, "png", **target)


def fabricate_emoji(
    corpus_folder: Path,
    evaldata: Path,
    *,
    data: Path,
    held_out_style: str,
    seed: int,
    base_url: str,
    progress: Report = silent,
) -> dict[str, Any]:
    """List the training images of `data`, to be served at `base_url`, and write the evaluation tasks.

    Leaves the tasks in `evaldata` and, last, `metadata/emoji.parquet` in `corpus_folder`. Captions vary with
    `seed`. progress: called with (rows done, rows in all).
    Returns {source, rows, behaviours: {"good": rows}, evaluation: {task: samples}}.
    Raises UserError when the folder lacks a file or a column, or the style is unknown.
    """
    corpus_folder, evaldata, data = Path(corpus_folder), Path(evaldata), Path(data)
    images = read_emoji(data)
    styles = sorted({emoji.style for emoji in images})
    if held_out_style not in styles:
        raise UserError(f"held_out_style={held_out_style!r} is not a style of {data}: it has {', '.join(styles)}")
    training = _training_images(images, held_out_style)
    tasks = _tasks(images, held_out_style, seed)
    write_tasks(evaldata, tasks)
    lines = [
        (_uid(emoji), f"{base_url.rstrip('/')}/{IMAGES_FILE}/{emoji.row}", _training_caption(emoji, seed))
        for emoji in training
    ]
    write_listing(corpus_folder / "metadata" / "emoji.parquet", lines)
    progress(len(lines), len(lines))
    return {
        "source": str(data),
        "rows": len(lines),
        "behaviours": {"good": len(lines)},
        "evaluation": {task.name: len(task.samples) for task in tasks},
    }


def read_emoji(data: Path) -> list[Emoji]:
    """Every image of `data` without skin tones, in the order of its rows. Raises UserError."""
    annotations = _read(data / ANNOTATIONS_FILE, ("codepoint", "name", "keywords", "group", "skin_tone", "split"))
    concepts = {concept.pop("codepoint"): concept for concept in annotations if not concept.pop("skin_tone")}
    images = []
    for row, entry in enumerate(_read(data / IMAGES_FILE, ("style", "codepoint", "image"))):
        concept = concepts.get(entry["codepoint"])
        if concept:
            keywords = tuple(word for word in concept["keywords"] if word not in concept["name"])
            images.append(Emoji(row=row, **entry, **{**concept, "keywords": keywords}))
    return images


def _read(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        return pq.read_table(path, columns=list(columns)).select(columns).to_pylist()
    except FileNotFoundError as error:
        raise UserError(
            f"no {path.name} in {path.parent}: the emoji corpus is made from {IMAGES_FILE} and "
            f"{ANNOTATIONS_FILE}; name their folder with data=PATH"
        ) from error
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors and KeyErrors
        raise UserError(f"{path} is not a Parquet file with the columns {', '.join(columns)}: {error}") from error


def _training_images(images: list[Emoji], held_out_style: str) -> list[Emoji]:
    return [emoji for emoji in images if emoji.split == "train" and emoji.style != held_out_style]


def _uid(emoji: Emoji) -> str:
    return hashlib.sha256(f"emoji/{emoji.style}/{emoji.codepoint}".encode()).hexdigest()[:32]


def _training_caption(emoji: Emoji, seed: int) -> str:
    """A template with the name, now and then the style, and up to three keywords."""
    rng = random.Random(f"caption/{seed}/{emoji.style}/{emoji.codepoint}")
    text = rng.choice(TEMPLATES).format(c=emoji.name)
    if rng.random() < 0.4:
        text += f" in {emoji.style.replace('_', ' ')} style"
    return ", ".join([text, *_some_keywords(rng, emoji, rng.randint(0, 3))])


def _some_keywords(rng: random.Random, emoji: Emoji, most: int) -> list[str]:
    return rng.sample(emoji.keywords, min(most, len(emoji.keywords)))


def _tasks(images: list[Emoji], held_out_style: str, seed: int) -> list[EvalTask]:
    rng = random.Random(f"emoji tasks/{seed}")
    training = _training_images(images, held_out_style)
    new_style = _distinct((e for e in images if e.split == "train" and e.style == held_out_style), training)
    new_concepts = _distinct((e for e in images if e.split == "test" and e.style != held_out_style), training)
    classes = _sample(rng, new_style, STYLE_CLASSES)
    queries = _sample(rng, new_style, RETRIEVAL_IMAGES)
    style = held_out_style.replace("_", " ")
    return [
        EvalTask(
            name="emoji-style",
            title=f"Names of emoji in an unseen style ({style})",
            samples=[emoji.sample(label=label) for label, emoji in enumerate(classes)],
            classnames=[emoji.name for emoji in classes],
            templates=TEMPLATES,
        ),
        EvalTask(
            name="emoji-retrieval",
            title=f"Retrieval of emoji in an unseen style ({style})",
            samples=[emoji.sample(captions=_captions(rng, emoji)) for emoji in queries],
        ),
        _concepts_task(new_concepts),
        _groups_task(rng, new_style, style),
    ]


def _captions(rng: random.Random, emoji: Emoji) -> list[str]:
    """Three captions, each with the name, which no other concept has."""
    words = _some_keywords(rng, emoji, 3)
    return [
        f"{emoji.name} emoji",
        ", ".join([emoji.name, *words]),
        ", ".join([f"an icon of {emoji.name}", *words]),
    ]


def _concepts_task(images: list[Emoji]) -> EvalTask:
    names = sorted({emoji.name for emoji in images})
    labels = {name: label for label, name in enumerate(names)}
    return EvalTask(
        name="emoji-concepts",
        title="Names of unseen emoji in seen styles",
        samples=[emoji.sample(label=labels[emoji.name]) for emoji in images],
        classnames=names,
        templates=TEMPLATES,
    )


def _groups_task(rng: random.Random, images: list[Emoji], style: str) -> EvalTask:
    """Equally many concepts of every Unicode group that has enough of them."""
    by_group: dict[str, list[Emoji]] = {}
    for emoji in images:
        by_group.setdefault(emoji.group, []).append(emoji)
    groups = sorted(name for name, members in by_group.items() if len(members) >= CONCEPTS_PER_GROUP)
    chosen = [emoji for name in groups for emoji in _sample(rng, by_group[name], CONCEPTS_PER_GROUP)]
    return EvalTask(
        name="emoji-groups",
        title=f"Names in an unseen style ({style}), worst emoji group",
        samples=[e.sample(label=label, metadata=(groups.index(e.group), label)) for label, e in enumerate(chosen)],
        classnames=[emoji.name for emoji in chosen],
        templates=TEMPLATES,
        columns=("group", "y"),
        group_names=groups,
    )


def _distinct(images: Iterable[Emoji], known: Iterable[Emoji]) -> list[Emoji]:
    """The first image of each drawing that is not among `known`: drawings alike have several names."""
    new: dict[bytes, Emoji] = {}
    for emoji in images:
        new.setdefault(emoji.image, emoji)
    for emoji in known:
        new.pop(emoji.image, None)
    return list(new.values())


def _sample(rng: random.Random, images: list[Emoji], most: int) -> list[Emoji]:
    return rng.sample(images, min(most, len(images)))
