"""The miniature of DataComp's tasks: formats as their readers want them, labels that can be seen in the pictures, every
group present, the same bytes again; and CIFAR-10's real test set."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from data_prep.fabricate.datacomp import fabricate_datacomp
from data_prep.fabricate.scenes import COLOURS
from pipeline.errors import UserError
from pipeline.evaluation.tasks import datacomp_tasks, load_tasks, task_path
from tests.real_data import DATA

CIFAR10 = DATA / "cifar10_test.parquet"
IMAGE_KEYS = ["webp", "png", "jpg", "jpeg"]


def fabricated(folder: Path, **options: Any) -> Path:
    tasks = {name: task.model_dump() for name, task in datacomp_tasks().items()}
    fabricate_datacomp(folder, tasks, **{"processes": 1, "images": 20, **options})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricated(tmp_path_factory.mktemp("data"))


def read(data: Path, name: str, *keys: Any) -> list[tuple[Any, ...]]:
    """All samples of a task through webdataset, as the official reader builds its pipeline."""
    folder = task_path(data, name, load_tasks(data)[name])
    shards = int((folder / "test/nshards.txt").read_text())
    dataset = wds.WebDataset(str(folder / f"test/{{0..{shards - 1}}}.tar"), shardshuffle=False)
    dataset = dataset.decode(wds.autodecode.ImageHandler("pil", extensions=IMAGE_KEYS))
    return list(dataset.to_tuple(*keys))


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    folder = task_path(data, name, load_tasks(data)[name])
    return [row for path in sorted(folder.rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_all_forty_are_there_smaller_and_with_the_same_metrics(data: Path) -> None:
    small, real = load_tasks(data), datacomp_tasks()
    assert list(small) == list(real)
    for name, task in small.items():
        assert task.size == (10 if task.kind == "winogavil" else 20) < real[name].size
        assert (task.kind, task.main_metric, task.groups) == (
            real[name].kind,
            real[name].main_metric,
            real[name].groups,
        )
        assert (task.classes or 0) <= (real[name].classes or 0)
    assert [small[name].classes for name in ("vtab/pcam", "vtab/kitti_closest_vehicle_distance", "cars")] == [2, 4, 12]
    classes = [(data / f"wds_{name}_test/classnames.txt").read_text() for name in ("imagenet1k", "imagenetv2", "cars")]
    assert classes[0] == classes[1] != classes[2]


def colour_of(image: Image.Image) -> str:
    """The colour of the palette that most pixels are near to, in the middle of the picture."""
    width, height = image.size
    pixels = np.asarray(image, dtype=float)[height // 4 : -height // 4, width // 4 : -width // 4].reshape(-1, 3)
    near = {name: (np.linalg.norm(pixels - rgb, axis=1) < 40).sum() for name, rgb in COLOURS.items()}
    return max(near, key=lambda name: near[name])


@pytest.mark.parametrize("name", ["food101", "wilds/camelyon17", "fairness/dollar_street"])
def test_labels_can_be_seen_in_the_pictures(data: Path, name: str) -> None:
    folder = task_path(data, name, load_tasks(data)[name])
    classes = (folder / "classnames.txt").read_text().splitlines()
    samples = read(data, name, IMAGE_KEYS, "cls")
    found = [colour_of(image) == classes[label].split()[0] for image, label in samples]
    assert np.mean(found) > 0.8
    assert {label for _, label in samples} == set(range(len(classes)))


@pytest.mark.parametrize(
    ("name", "width", "column", "values"),
    [
        ("wilds/camelyon17", 4, 1, set(range(20, 30))),
        ("wilds/fmow", 4, 0, set(range(6))),
        ("wilds/fmow", 4, 1, {14, 15}),
        ("wilds/iwildcam", 10, 0, set(range(7))),
        ("fairness/dollar_street", 3, 0, set(range(4))),
        ("fairness/geode", 2, 0, set(range(6))),
        ("fairness/fairface", 4, 2, set(range(7))),
        ("fairness/utkface", 4, 2, set(range(5))),
        ("fairness/utkface", 4, 3, {0, 1}),
    ],
)
def test_metadata_have_every_group(data: Path, name: str, width: int, column: int, values: set[int]) -> None:
    metadata = np.stack([vector for (vector,) in read(data, name, "npy")])
    assert metadata.shape == (20, width)
    assert metadata.dtype == np.int64
    assert set(metadata[:, column]) == values
    if name.startswith("wilds"):  # the label is in the metadata too
        assert (metadata[:, -2] == [label for (label,) in read(data, name, "cls")]).all()


def test_not_every_species_of_iwildcam_occurs(data: Path) -> None:
    assert {label for (label,) in read(data, "wilds/iwildcam", "cls")} == set(range(11))


@pytest.mark.parametrize("name", ["fairness/fairface", "fairness/utkface"])
def test_every_race_and_gender_has_a_face(data: Path, name: str) -> None:
    metadata = np.stack([vector for (vector,) in read(data, name, "npy")])
    races = 7 if name.endswith("fairface") else 5
    assert {(r, g) for _, g, r, _ in metadata} == {(r, g) for r in range(races) for g in range(2)}
    assert (metadata[:, 3] == (metadata[:, 2] != 1)).all()


def test_retrieval_has_several_captions_and_the_hubs_column_types(data: Path) -> None:
    name = "retrieval/flickr_1k_test_image_text_retrieval"
    found = rows(data, name)
    assert {len(row["caption"]) for row in found} == {5, 6}
    assert Image.open(io.BytesIO(found[0]["image"]["bytes"])).mode == "RGB"
    other = rows(data, "retrieval/mscoco_2014_5k_test_image_text_retrieval")
    assert {text for row in found for text in row["caption"]}.isdisjoint(
        {text for row in other for text in row["caption"]}
    )
    schema = pq.read_schema(next((data / "nlphuji").rglob("*.parquet")))
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert {"_type": "Image"} in features.values() or any(
        f.get("feature") == {"_type": "Image"} for f in features.values()
    )


def test_associations_are_the_candidates_of_the_cues_colour(data: Path) -> None:
    found = rows(data, "misc/winogavil")
    assert {len(row["candidates"]) for row in found} == {5, 6, 10, 12}
    for row in found:
        associated = [name for name in row["candidates"] if name.split()[0] == row["cue"]]
        assert sorted(associated) == sorted(row["associations"])
        assert row["num_associations"] == len(associated) >= 2
        assert len(set(row["candidates"])) == len(row["candidates"]) == len(row["candidate_images"])
    seen = [
        colour_of(Image.open(io.BytesIO(image["bytes"]))) == name.split()[0]
        for row in found
        for name, image in zip(row["candidates"], row["candidate_images"], strict=True)
    ]
    assert np.mean(seen) > 0.8


def test_the_same_seed_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert files(fabricated(tmp_path / "a")) == files(data)
    other = files(fabricated(tmp_path / "b", seed=1))
    changed = {name for name, content in files(data).items() if other[name] != content}
    assert {Path(name).suffix for name in changed} == {".tar", ".parquet"}


def test_too_few_images_for_all_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="15 images of a task are too few for all groups: take 16"):
        fabricated(tmp_path, images=15)


@pytest.mark.skipif(not CIFAR10.is_file(), reason=f"no {CIFAR10}: set NEUCLIP_TEST_DATA")
def test_cifar10_is_the_real_test_set_as_published(tmp_path: Path) -> None:
    fabricated(tmp_path, cifar10=CIFAR10, images=16)
    task = load_tasks(tmp_path)["cifar10"]
    assert (task.size, task.classes, task.chance) == (10_000, 10, 0.1)
    folder = tmp_path / "wds_cifar10_test"
    assert (folder / "classnames.txt").stat().st_size == 60  # bytes of the published files
    assert (folder / "zeroshot_classification_templates.txt").stat().st_size == 480
    samples = read(tmp_path, "cifar10", IMAGE_KEYS, "cls")
    assert np.bincount([label for _, label in samples]).tolist() == [1000] * 10
    assert {image.size for image, _ in samples} == {(32, 32)}
    names = (folder / "classnames.txt").read_text().split()
    table = pq.read_table(CIFAR10, columns=["class_name"]).to_pylist()
    assert [names[label] for _, label in samples] == [row["class_name"] for row in table]


def test_what_is_not_cifar10_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"x\.parquet is not a Parquet file with the columns image, label"):
        fabricated(tmp_path / "data", cifar10=tmp_path / "x.parquet", images=16)
    with pytest.raises(UserError, match=r"no file .*y\.parquet"):
        fabricated(tmp_path / "data", cifar10=tmp_path / "y.parquet", images=16)
