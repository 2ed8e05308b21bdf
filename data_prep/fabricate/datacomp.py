"""DataComp's 40 evaluation tasks in miniature: drawn scenes in exactly their formats, with labels that can be learned.

Classes are colours and shapes ("red star"), groups the background; where a task's metadata has more columns, they hold
numbers such as the real ones. Faces of FairFace become objects: race is the colour, gender the shape, age texture and
size.
"""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from data_prep.fabricate.captions import captions
from data_prep.fabricate.evaldata import EvalSample, write_folder
from data_prep.fabricate.pool import parallel_map
from data_prep.fabricate.render import render
from data_prep.fabricate.scenes import (
    BACKGROUND_KINDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    lone_scene,
    retrieval_scenes,
)
from data_prep.progress import Report, silent
from pipeline.errors import UserError
from pipeline.files import atomic_open

IMAGES = 48  # of a task
MOST_CLASSES = 12
CAPTIONS = (5, 5, 6)  # of the images of retrieval, in turn: most have five, some six, as in MSCOCO
CANDIDATES = (5, 6, 10, 12)  # of WinoGAViL's instances, in turn
TEMPLATES = ("{c}", "a picture of one {c}", "one {c} on a plain background", "a drawing of a single {c}.")
_COLUMNS: dict[str, Callable[[int, int], tuple[int, ...]]] = {  # (index, label) -> metadata, as wide as the real one
    "wilds/iwildcam": lambda i, y: (i % 7, i // 3, 2013, 1 + i % 12, 1 + i % 28, i % 24, i % 60, i % 60, y, 0),
    "wilds/camelyon17": lambda i, y: (2, 20 + i % 10, y, 0),
    "wilds/fmow": lambda i, y: (5 if i == 7 else i % 5, 14 + i // 5 % 2, y, 0),  # one image of the region "Other"
    "fairness/dollar_street": lambda i, y: (i % 4, i // 2 % 4, i // 4 % 4),
    "fairness/geode": lambda i, y: (i % 6, i % 18),
}
_GROUP_COLUMN = {"wilds/camelyon17": 1}  # of the metadata: the one that decides the background; 0 where not said
_SAME_CLASSES = {"imagenet_sketch": "imagenet1k", "imagenetv2": "imagenet1k"}
_RACES = {"fairness/fairface": 7, "fairness/utkface": 5}
_AGES = [f"{size} {texture} object" for texture in TEXTURES for size in SIZES]  # FairFace has nine, one is absent
_HARMFUL = ["empty picture", "noisy picture", "shade", "lined sheet", "torn picture", "scribble", "stain"]
_CIFAR10_TEMPLATES = [
    f"a {kind}photo of {article} {size}{{c}}."
    for article in ("a", "the")
    for kind, size in (
        *((f"{word} " if word else "", "") for word in ("", "blurry", "black and white")),
        *((f"{word} contrast ", "") for word in ("low", "high")),
        *((f"{word} ", "") for word in ("bad", "good")),
        *(("", f"{word} ") for word in ("small", "big")),
    )
]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A task to be drawn. scenes: of its images. finish: writes the task's folder from their encoded images.

    entry: what differs from the real task's definition.
    """

    scenes: Sequence[Scene]
    finish: Callable[[Path, list[bytes]], None]
    entry: Row


def fabricate_datacomp(
    evaldata: Path,
    tasks: Mapping[str, Mapping[str, Any]],
    seed: int = 0,
    images: int = IMAGES,
    cifar10: Path | None = None,
    processes: int | None = None,
    progress: Report = silent,
) -> dict[str, int]:
    """Write a folder per task and, last, `tasks.yaml`; returns the number of samples by task.

    tasks: DataComp's, by name (kind, classes, format, folder). images: per task. cifar10: a Parquet file of its real
    test set (columns image, label, class_name), laid out as the task of that name. The same arguments give the same
    bytes. Raises UserError for too few images, and when that file is not such a file.
    """
    if images < 2 * max(_RACES.values()) + 2:
        raise UserError(f"{images} images of a task are too few for all groups: take {2 * max(_RACES.values()) + 2}")
    real = _read_cifar10(cifar10) if cifar10 else []
    drawn = {name: _draw(name, task, seed, images) for name, task in tasks.items() if not (real and name == "cifar10")}
    scenes = [scene for task in drawn.values() for scene in task.scenes]
    rendered = parallel_map(render, scenes, processes)
    entries: dict[str, Row] = {}
    done = 0
    for name, task in drawn.items():
        pictures = [next(rendered) for _ in task.scenes]
        task.finish(evaldata / _folder(name, tasks[name]), pictures)
        entries[name] = task.entry
        progress(done := done + len(pictures), len(scenes))
    if real:
        entries["cifar10"] = _lay_out_cifar10(evaldata / _folder("cifar10", tasks["cifar10"]), real)
    with atomic_open(evaldata / "tasks.yaml", "w") as stream:
        yaml.safe_dump({"extends": "datacomp", **entries}, stream, sort_keys=False)
    return {name: entries[name]["size"] for name in tasks}


def _folder(name: str, task: Mapping[str, Any]) -> str:
    return task["folder"] or f"wds_{name.replace('/', '-')}_test"


def _draw(name: str, task: Mapping[str, Any], seed: int, images: int) -> Drawn:
    if task["kind"] == "fairface":
        return _faces(name, seed, images)
    if task["kind"] == "retrieval":
        return _retrieval(name, seed, images)
    if task["kind"] == "winogavil":
        return _associations(name, seed, images // 2)
    return _classification(name, task, seed, images)


def _classification(name: str, task: Mapping[str, Any], seed: int, images: int) -> Drawn:
    classes = min(task["classes"], MOST_CLASSES)
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    pairs = random.Random(f"classes/{_SAME_CLASSES.get(name, name)}").sample(pairs, classes)
    rng = random.Random(f"labels/{seed}/{name}")
    occurring = classes - 1 if task["kind"] == "iwildcam" else classes  # there, not every species was seen
    labels = rng.sample([index % occurring for index in range(images)], images)
    columns = _COLUMNS.get(name)
    rows = [columns(index, label) if columns else () for index, label in enumerate(labels)]
    backgrounds = [
        BACKGROUND_KINDS[row[_GROUP_COLUMN.get(name, 0)] % len(BACKGROUND_KINDS)] if row else None for row in rows
    ]
    scenes = [
        lone_scene(seed, name, i, pairs[y], kind) for i, (y, kind) in enumerate(zip(labels, backgrounds, strict=True))
    ]

    def finish(folder: Path, pictures: list[bytes]) -> None:
        samples = [
            EvalSample(picture, scene.format, label=label, metadata=row)
            for picture, scene, label, row in zip(pictures, scenes, labels, rows, strict=True)
        ]
        write_folder(folder, samples, [" ".join(pair) for pair in pairs], TEMPLATES, _per_tar(images))

    chance = min(1.0, (task["top"] or 1) / classes)
    return Drawn(scenes, finish, {"size": images, "classes": classes, "templates": len(TEMPLATES), "chance": chance})


def _faces(name: str, seed: int, images: int) -> Drawn:
    races, rng = _RACES[name], random.Random(f"faces/{seed}/{name}")
    colours, genders = list(COLOURS)[:7], SHAPES[:2]
    rows, scenes = [], []
    for index in range(images):
        race, gender = index % races, index // races % len(genders)
        age = rng.randrange(len(_AGES))
        scene = lone_scene(seed, name, index, (colours[race], genders[gender]))
        texture, size = TEXTURES[age // len(SIZES)], SIZES[age % len(SIZES)]
        face = dataclasses.replace(scene.groups[0], texture=texture, size=size)
        scenes.append(dataclasses.replace(scene, groups=(face,)))
        rows.append((age, gender, race, int(race != 1)))
    people = [f"{colour} {gender}" for colour in colours for gender in genders]
    classes = {
        "race": colours[:races],
        "gender": genders,
        "age": [*_AGES, "faded object"],
        "toxic": [*people, *_HARMFUL],
    }

    def finish(folder: Path, pictures: list[bytes]) -> None:
        samples = [
            EvalSample(picture, scene.format, metadata=row)
            for picture, scene, row in zip(pictures, scenes, rows, strict=True)
        ]
        names = [f"{question}:{text}" for question, texts in classes.items() for text in texts]
        templates = [f"{question}:{text}" for question in classes for text in TEMPLATES[:2]]
        write_folder(folder, samples, names, templates, _per_tar(images))

    return Drawn(scenes, finish, {"size": images})


def _per_tar(images: int) -> int:
    """Four tars a task: the official loader has four processes, and wants one for each."""
    return -(-images // 4)


def _retrieval(name: str, seed: int, images: int) -> Drawn:
    scenes = retrieval_scenes(random.Random(f"retrieval/{seed}/{name}").getrandbits(32), images)
    texts = [captions(scene, CAPTIONS[index % len(CAPTIONS)]) for index, scene in enumerate(scenes)]

    def finish(folder: Path, pictures: list[bytes]) -> None:
        rows = [
            {"image": _image(picture, index, scene), "caption": text, "filename": f"{index}.{scene.format}"}
            for index, (picture, scene, text) in enumerate(zip(pictures, scenes, texts, strict=True))
        ]
        _write_parquet(folder, rows, {"image": _IMAGE, "caption": _texts(), "filename": _TEXT})

    return Drawn(scenes, finish, {"size": images, "captions": sum(map(len, texts)), "chance": 1 / images})


def _associations(name: str, seed: int, instances: int) -> Drawn:
    """Cues are colours: the candidates of that colour go with them. All instances draw on one set of images."""
    rng = random.Random(f"associations/{seed}")
    by_colour = {colour: [(colour, shape) for shape in rng.sample(SHAPES, 6)] for colour in COLOURS}
    pairs = [pair for found in by_colour.values() for pair in found]
    scenes = [lone_scene(seed, name, index, pair) for index, pair in enumerate(pairs)]
    chosen = []
    for index in range(instances):
        colour, count = rng.choice(list(COLOURS)), CANDIDATES[index % len(CANDIDATES)]
        associated = rng.sample(by_colour[colour], rng.randint(2, count // 2))
        others = rng.sample([pair for pair in pairs if pair[0] != colour], count - len(associated))
        chosen.append((colour, associated, rng.sample([*associated, *others], count)))

    def finish(folder: Path, pictures: list[bytes]) -> None:
        images = {
            pair: _image(picture, index, scene)
            for index, (pair, picture, scene) in enumerate(zip(pairs, pictures, scenes, strict=True))
        }
        rows = [
            {
                "candidates": [" ".join(pair) for pair in candidates],
                "cue": cue,
                "associations": [" ".join(pair) for pair in associated],
                "num_associations": len(associated),
                "candidate_images": [images[pair] for pair in candidates],
            }
            for cue, associated, candidates in chosen
        ]
        features = {
            "candidates": _texts(),
            "cue": _TEXT,
            "associations": _texts(),
            "num_associations": {"dtype": "int64", "_type": "Value"},
            "candidate_images": {"feature": _IMAGE, "_type": "Sequence"},
        }
        _write_parquet(folder, rows, features)

    return Drawn(scenes, finish, {"size": instances})


_TEXT, _IMAGE = {"dtype": "string", "_type": "Value"}, {"_type": "Image"}


def _texts() -> Row:
    return {"feature": dict(_TEXT), "_type": "Sequence"}


def _image(content: bytes, index: int, scene: Scene) -> Row:
    return {"bytes": content, "path": f"{index}.{scene.format}"}


def _write_parquet(folder: Path, rows: list[Row], features: Row) -> None:
    """Two files such as the hub converts data sets to. features: as the library datasets describes the columns."""
    table = pa.Table.from_pylist(rows)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    half = (len(rows) + 1) // 2
    for number, start in enumerate((0, half)):
        with atomic_open(folder / "TEST" / "test" / f"{number:04}.parquet") as stream:
            pq.write_table(table.slice(start, half), stream)


def _read_cifar10(path: Path) -> list[Row]:
    try:
        rows = pq.read_table(path, columns=["image", "label", "class_name"]).to_pylist()
    except FileNotFoundError as error:
        raise UserError(f"no file {path}: --cifar10 wants CIFAR-10's test set as Parquet") from error
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors and KeyErrors
        raise UserError(f"{path} is not a Parquet file with the columns image, label, class_name: {error}") from error
    if sorted({row["label"] for row in rows}) != list(range(10)):
        raise UserError(f"{path} should have the labels 0 to 9")
    return rows


def _lay_out_cifar10(folder: Path, rows: list[Row]) -> Row:
    names = {row["label"]: row["class_name"] for row in rows}
    with Image.open(io.BytesIO(rows[0]["image"])) as image:
        extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[str(image.format)]
    samples = [EvalSample(row["image"], extension, label=row["label"]) for row in rows]
    write_folder(folder, samples, [names[label] for label in range(10)], _CIFAR10_TEMPLATES, len(rows))
    return {"size": len(rows), "classes": len(names), "templates": len(_CIFAR10_TEMPLATES)}
