"""A tiny exported model, a writer of task folders, and runs of the suite on both, for the evaluation tests.

The writer is webdataset's own, so that what the tests read was not laid out by the code under test.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from data_prep.fabricate.datacomp import fabricate_datacomp
from pipeline.config.schema import ModelConfig
from pipeline.evaluation.results import Result
from pipeline.evaluation.suite import evaluate
from pipeline.evaluation.task_folder import TaskFolder, open_task_folder
from pipeline.evaluation.tasks import Task, datacomp_tasks
from pipeline.models.two_tower import WEIGHTS_FILE, build_two_tower, open_clip_config, write_model_config

MODEL = ModelConfig(
    name="tiny",
    config={
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 24, "width": 32, "heads": 2, "layers": 1},
    },
)
COCO = "retrieval/mscoco_2014_5k_test_image_text_retrieval"
OF_EVERY_KIND = [
    *("cifar10", "wilds/camelyon17", "fairness/dollar_street", "wilds/iwildcam", "wilds/fmow", "fairness/utkface"),
    *(COCO, "misc/winogavil"),
]
TASKS = ["colours", "some/groups", "captions"]  # of write_suite
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple")


def write_model(folder: Path, seed: int = 0, poison: str | None = None) -> Path:
    """Export a model with random weights. poison: a parameter whose first entry becomes NaN."""
    torch.manual_seed(seed)
    model = build_two_tower(MODEL, init_logit_scale=2.66)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    # Fresh towers map everything to nearly one point; spread their inputs, so that predictions differ.
    weights["visual.conv1.weight"] *= 8
    weights["token_embedding.weight"] *= 40
    if poison:
        weights[poison].view(-1)[0] = float("nan")
    folder.mkdir(parents=True, exist_ok=True)
    write_model_config(folder, open_clip_config(MODEL))
    save_file(weights, folder / WEIGHTS_FILE)
    return folder


def image_bytes(rng: np.random.Generator, kind: str = "png") -> bytes:
    """A noisy picture, 40 x 36 pixels, round a random colour."""
    pixels = rng.uniform(0, 255, size=3) + rng.normal(0, 60, size=(36, 40, 3))
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, format={"jpg": "jpeg"}.get(kind, kind))
    return stream.getvalue()


def write_folder(
    data: Path,
    task: str,
    samples: Sequence[dict[str, Any]],
    classnames: Iterable[str] = (),
    templates: Iterable[str] = (),
    shards: int = 2,
) -> Path:
    """Lay out `wds_<task>_test`. samples: members by extension, as webdataset's TarWriter takes them."""
    folder = data / f"wds_{task.replace('/', '-')}_test"
    (folder / "test").mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in classnames))
    (folder / "zeroshot_classification_templates.txt").write_text("".join(f"{text}\n" for text in templates))
    (folder / "test" / "nshards.txt").write_text(f"{shards}\n")
    cuts = np.linspace(0, len(samples), shards + 1).astype(int)
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / "test" / f"{shard}.tar")) as sink:
            for index in range(cuts[shard], cuts[shard + 1]):
                sink.write({"__key__": f"s{index:07d}", **samples[index]})
    return folder


def open_folder(data: Path, name: str, **keys: Any) -> TaskFolder:
    """The opened folder of a task of which nothing but the name matters, or what `keys` says."""
    task = {"kind": "classification", "title": "T", "size": 1, "classes": 2, "main_metric": "acc1", "chance": 0.5}
    return open_task_folder(data, name, Task.model_validate({**task, **keys}))


def write_tasks_file(data: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Write `tasks.yaml`."""
    (data / "tasks.yaml").write_text(yaml.safe_dump(entries, sort_keys=False))


def write_suite(data: Path, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """One small task of every kind (`colours`, `some/groups`, `captions`); returns their samples."""
    rng = np.random.default_rng(seed)
    kinds = ("png", "jpg", "webp", "jpeg")
    prompts = {"classnames": COLOURS, "templates": ("a photo of a {c} thing.", "{c}", "all of it is {c}")}
    tasks: dict[str, list[dict[str, Any]]] = {"colours": [], "some/groups": [], "captions": []}
    for index in range(29):
        kind = kinds[index % len(kinds)]
        image = image_bytes(rng, kind.replace("jpeg", "jpg"))
        label = int(rng.integers(len(COLOURS) - 1))  # the last class occurs in no sample
        group = 2 if index == 7 else int(rng.integers(2))  # one group of one, one of none
        captions = [f"{COLOURS[int(rng.integers(7))]} picture {index} {k}" for k in range(1 + index % 3)]
        tasks["colours"].append({kind: image, "cls": label})
        tasks["some/groups"].append({kind: image, "cls": label, "npy": np.array([group, label])})
        tasks["captions"].append({kind: image, "txt": "\n".join(captions)})
    write_folder(data, "colours", tasks["colours"], **prompts)
    write_folder(data, "some/groups", tasks["some/groups"], **prompts)
    write_folder(data, "captions", tasks["captions"], shards=3)
    size, classes = 29, len(COLOURS)
    write_tasks_file(
        data,
        {
            "colours": {
                "kind": "classification",
                "title": "Colours",
                "size": size,
                "classes": classes,
                "main_metric": "acc1",
                "chance": 1 / classes,
            },
            "some/groups": {
                "kind": "worst_group",
                "title": "Groups",
                "size": size,
                "classes": classes,
                "main_metric": "acc_wg",
                "chance": 1 / classes,
                "columns": ["place", "y"],
                "group_by": "place",
                "group_names": ["north", "south", "alone", "nobody"],
            },
            "captions": {
                "kind": "retrieval",
                "title": "Captions",
                "size": size,
                "main_metric": "mean_recall@1",
                "chance": 1 / size,
            },
        },
    )
    return tasks


def fabricated(data: Path, images: int = 24) -> None:
    """DataComp's 40 tasks in miniature."""
    tasks = {name: task.model_dump() for name, task in datacomp_tasks().items()}
    fabricate_datacomp(data, tasks, images=images, processes=1)


def run(root: Path, out: Path | None = None, **options: Any) -> list[Result]:
    """Evaluate root/model on root/data, to root/out."""
    options = {"batch_size": 8, "workers": 0, "device": "cpu", **options}
    return evaluate(root / "model", root / "data", out or root / "out", **options)


def ran(root: Path, **options: Any) -> list[str]:
    """The same; returns the tasks that were evaluated again: their progress comes in batches."""
    calls: list[str] = []
    run(root, progress=lambda task, *_: calls.append(task), **options)
    return sorted(task for task in set(calls) if calls.count(task) > 1)


def change_weights(root: Path) -> None:
    """Another model in the same folder."""
    weights = load_file(root / "model" / WEIGHTS_FILE)
    weights["text_projection"] = weights["text_projection"].flip(0).contiguous()
    save_file(weights, root / "model" / WEIGHTS_FILE)
