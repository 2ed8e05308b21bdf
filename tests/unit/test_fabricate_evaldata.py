"""Proves that evaluation folders are DataComp's: read with webdataset in the way of clip_benchmark's
`build_wds_dataset` and DataComp's `wilds_eval`, every image, label, group and caption comes out as drawn; and
that `tasks.yaml` tells the truth, chance included."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
import yaml
from PIL import Image

from data_prep.fabricate.captions import captions
from data_prep.fabricate.evaldata import EvalSample, EvalTask, write_tasks
from data_prep.fabricate.pool import parallel_map
from data_prep.fabricate.render import render
from data_prep.fabricate.scenes import COLOURS, HELD_OUT, group_scene, retrieval_scenes, unseen_scene
from data_prep.fabricate.tasks import scene_tasks
from pipeline.evaluation.tasks import load_tasks

TOTAL = 200
IMAGE_KEYS = ["webp", "png", "jpg", "jpeg"]


@pytest.fixture(scope="module")
def evaldata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaldata")
    write_tasks(folder, scene_tasks(9, TOTAL, lambda scenes: list(parallel_map(render, scenes, 1))))
    return folder


def read(folder: Path, *keys: Any) -> list[tuple[Any, ...]]:
    """All samples of a task folder, through webdataset, as the official reader builds its pipeline."""
    shards = int((folder / "test" / "nshards.txt").read_text())
    pattern = str(folder / "test" / f"{{0..{shards - 1}}}.tar")
    dataset = wds.WebDataset(pattern, shardshuffle=False)
    dataset = dataset.decode(wds.autodecode.ImageHandler("pil", extensions=IMAGE_KEYS))
    return list(dataset.to_tuple(*keys))


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_unseen_combinations(evaldata: Path) -> None:
    folder = evaldata / "wds_scenes-unseen_test"
    samples = read(folder, IMAGE_KEYS, "cls")
    names = lines(folder / "classnames.txt")
    assert names == [" ".join(pair) for pair in HELD_OUT]
    assert len(samples) == 67
    for index, (image, label) in enumerate(samples):
        scene, _ = unseen_scene(9, index)
        assert image.size == (scene.width, scene.height)
        assert names[label] == f"{scene.groups[0].colour} {scene.groups[0].shape}"
    assert max(Counter(label for _, label in samples).values()) <= 4


def test_worst_group(evaldata: Path) -> None:
    folder = evaldata / "wds_scenes-groups_test"
    samples = read(folder, "cls", "npy", IMAGE_KEYS)
    assert lines(folder / "classnames.txt") == list(COLOURS)
    groups = yaml.safe_load((evaldata / "tasks.yaml").read_text())["scenes-groups"]["group_names"]
    metadata = np.stack([row for _, row, _ in samples])  # as torch.cat of the official loader's batches
    assert metadata.shape == (66, 2)
    assert metadata.dtype == np.int64
    assert (metadata[:, 1] == [label for label, _, _ in samples]).all()
    for index, (_, (group, label), image) in enumerate(samples):
        scene, _, _ = group_scene(9, index)
        assert groups[group] == scene.background.kind
        assert list(COLOURS)[label] == scene.groups[0].pair[0]
        assert image.mode == "RGB"


def test_retrieval(evaldata: Path) -> None:
    folder = evaldata / "wds_scenes-retrieval_test"
    assert lines(folder / "dataset_type.txt") == ["retrieval"]
    samples = [(image, text.splitlines()) for image, text in read(folder, IMAGE_KEYS, "txt")]
    scenes = retrieval_scenes(9, 67)
    assert [texts for _, texts in samples] == [captions(scene, 3) for scene in scenes]
    assert len({text for _, texts in samples for text in texts}) == 3 * 67
    assert all(isinstance(image, Image.Image) for image, _ in samples)


@pytest.mark.parametrize("task", ["scenes-unseen", "scenes-groups"])
def test_templates_make_english_prompts(evaldata: Path, task: str) -> None:
    folder = evaldata / f"wds_{task}_test"
    for template in lines(folder / "zeroshot_classification_templates.txt"):
        assert template.count("{c}") == 1
        for name in lines(folder / "classnames.txt"):
            prompt = template.format(c=name)
            assert not any(f" a {vowel}" in f" {prompt}" for vowel in "aeiou"), prompt
            assert not any(f" an {letter}" in f" {prompt}" for letter in "bcdfghjklmnpqrstvwxyz"), prompt


def test_tasks_yaml_tells_what_the_folders_hold(evaldata: Path) -> None:
    tasks = load_tasks(evaldata)  # as evaluation reads it
    assert {name: (task.kind, task.main_metric) for name, task in tasks.items()} == {
        "scenes-unseen": ("classification", "acc1"),
        "scenes-retrieval": ("retrieval", "mean_recall@1"),
        "scenes-groups": ("worst_group", "acc_wg"),
    }
    assert sum(task.size for task in tasks.values()) == TOTAL
    for name, task in tasks.items():
        folder = evaldata / f"wds_{name}_test"
        assert task.size == len(read(folder, IMAGE_KEYS))
        if task.kind != "retrieval":
            assert task.classes == len(lines(folder / "classnames.txt")) == round(1 / task.chance)
            assert task.templates == len(lines(folder / "zeroshot_classification_templates.txt"))


def test_chance_of_retrieval_is_what_guessing_scores() -> None:
    """Against a simulation of random rankings, with unequal numbers of captions."""
    counts = [1, 5, 3, 2, 1, 4]
    task = EvalTask("t", "T", [EvalSample(b"", "png", captions=["x"] * count) for count in counts])
    owners = [image for image, count in enumerate(counts) for _ in range(count)]
    rng = random.Random(0)
    rounds = 4000
    text_to_image = np.mean([rng.randrange(6) == owner for owner in owners for _ in range(rounds)])
    image_to_text = np.mean([rng.choice(owners) == image for image in range(6) for _ in range(rounds)])
    assert task.describe()["chance"] == pytest.approx((text_to_image + image_to_text) / 2, rel=0.03)


def test_many_samples_take_several_tars_and_keep_their_order(tmp_path: Path) -> None:
    image = render(unseen_scene(0, 0)[0])
    samples = [EvalSample(image, "png", label=index % 7) for index in range(1100)]
    write_tasks(tmp_path, [EvalTask("many", "Many", samples, [f"c{n}" for n in range(7)], ["{c}"])])
    folder = tmp_path / "wds_many_test"
    assert lines(folder / "test" / "nshards.txt") == ["3"]
    assert [label for (label,) in read(folder, "cls")] == [index % 7 for index in range(1100)]
    before = [path.read_bytes() for path in sorted(folder.rglob("*.tar"))]
    write_tasks(tmp_path, [EvalTask("many", "Many", samples, [f"c{n}" for n in range(7)], ["{c}"])])
    assert [path.read_bytes() for path in sorted(folder.rglob("*.tar"))] == before
