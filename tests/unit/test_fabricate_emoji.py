"""Proves of the emoji corpus, on real emoji: training never sees the held-out style, held-out concepts or
skin tones; every URL leads to its image; captions vary and are true; the tasks are answerable, in
DataComp's form.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from data_prep.fabricate import fabricate_emoji
from data_prep.fabricate.emoji import ANNOTATIONS_FILE, IMAGES_FILE
from data_prep.serve import ImageServer
from pipeline.errors import UserError
from pipeline.evaluation.tasks import load_tasks
from tests.real_data import DATA

BASE = "http://127.0.0.1:9"
STYLE = "openmoji"
needs_data = pytest.mark.skipif(
    not (DATA / IMAGES_FILE).is_file(),
    reason=f"no {IMAGES_FILE} in {DATA}: set NEUCLIP_TEST_DATA to a folder that has it",
)


def fabricate(folder: Path, data: Path = DATA, style: str = STYLE, seed: int = 0) -> dict[str, Any]:
    return fabricate_emoji(
        folder / "corpus",
        folder / "evaldata",
        data=data,
        held_out_style=style,
        seed=seed,
        base_url=f"{BASE}/",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emoji")
    fabricate(path)
    return path


@pytest.fixture(scope="module")
def images() -> list[dict[str, str]]:
    return pq.read_table(DATA / IMAGES_FILE).to_pylist()


@pytest.fixture(scope="module")
def concepts() -> dict[str, dict[str, Any]]:
    return {row["codepoint"]: row for row in pq.read_table(DATA / ANNOTATIONS_FILE).to_pylist()}


def training_rows(folder: Path) -> list[dict[str, str]]:
    return pq.read_table(folder / "corpus" / "metadata" / "emoji.parquet").to_pylist()


def row_number(url: str) -> int:
    prefix, row = url.rsplit("/", 1)
    assert prefix == f"{BASE}/{IMAGES_FILE}"
    return int(row)


def spoken(style: str) -> str:
    return style.replace("_", " ")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def read(folder: Path, task: str, *keys: str) -> list[tuple[Any, ...]]:
    tests = folder / "evaldata" / f"wds_{task}_test" / "test"
    pattern = str(tests / f"{{0..{int(lines(tests / 'nshards.txt')[0]) - 1}}}.tar")
    return list(wds.WebDataset(pattern, shardshuffle=False).to_tuple(*keys))


@needs_data
def test_training_sees_what_it_may_and_all_of_it(folder: Path, images: Any, concepts: Any) -> None:
    expected = {
        row
        for row, image in enumerate(images)
        if image["style"] != STYLE
        and concepts[image["codepoint"]]["split"] == "train"
        and not concepts[image["codepoint"]]["skin_tone"]
    }
    rows = training_rows(folder)
    assert {row_number(row["url"]) for row in rows} == expected
    assert len(rows) == len({row["uid"] for row in rows}) == len(expected) > 8000
    assert all(len(row["uid"]) == 32 and int(row["uid"], 16) >= 0 for row in rows)


@needs_data
def test_captions_are_about_their_image(folder: Path, images: Any, concepts: Any) -> None:
    lengths, styled = set(), 0
    for row in training_rows(folder):
        image = images[row_number(row["url"])]
        concept = concepts[image["codepoint"]]
        assert concept["name"] in row["caption"]
        before, _, after = row["caption"].partition(concept["name"])
        assert before in ("", "an emoji of ", "an icon of ", "a drawing of ")
        words = [word.strip() for word in after.split(",")[1:] if word.strip()]
        assert set(words) <= set(concept["keywords"])
        lengths.add(len(words))
        style = after.split(",")[0]
        assert style in ("", " emoji") or style.removeprefix(" emoji") == f" in {spoken(image['style'])} style"
        styled += "style" in style
    assert styled > 1000
    assert lengths == {0, 1, 2, 3}


@needs_data
def test_captions_depend_on_the_seed_and_on_nothing_else(folder: Path, tmp_path: Path) -> None:
    fabricate(tmp_path / "again")
    fabricate(tmp_path / "other", seed=1)
    assert training_rows(tmp_path / "again") == training_rows(folder)
    for task in ("emoji-style", "emoji-retrieval", "emoji-concepts", "emoji-groups"):
        name = f"evaldata/wds_{task}_test/test/0.tar"
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    changed = [
        a["caption"] != b["caption"]
        for a, b in zip(training_rows(folder), training_rows(tmp_path / "other"), strict=True)
    ]
    assert np.mean(changed) > 0.8


@needs_data
def test_urls_lead_to_their_image(folder: Path, images: Any) -> None:
    rows = training_rows(folder)[::500]
    with ImageServer(DATA) as server:
        for row in rows:
            path = row["url"].removeprefix(BASE)
            assert server.store.read(path) == images[row_number(row["url"])]["image"]


@needs_data
def test_tasks_hold_images_that_training_never_sees(folder: Path, images: Any, concepts: Any) -> None:
    trained = {images[row_number(row["url"])]["image"] for row in training_rows(folder)}
    names: dict[bytes, set[str]] = {}
    for image in images:
        names.setdefault(image["image"], set()).add(concepts[image["codepoint"]]["name"])
    styles = {image["image"]: image["style"] for image in images}
    for task in ("emoji-style", "emoji-concepts", "emoji-groups"):
        classes = lines(folder / "evaldata" / f"wds_{task}_test" / "classnames.txt")
        assert len(set(classes)) == len(classes)
        samples = read(folder, task, "png", "cls")
        assert {label for _, label in samples} == {str(n).encode() for n in range(len(classes))}
        for image, label in samples:
            assert image not in trained
            assert classes[int(label)] in names[image]
            assert (styles[image] == STYLE) == (task != "emoji-concepts")
        assert len({image for image, _ in samples}) == len(samples)  # nothing drawn alike
    concept_splits = {concept["name"]: concept["split"] for concept in concepts.values()}
    unseen = lines(folder / "evaldata" / "wds_emoji-concepts_test" / "classnames.txt")
    assert {concept_splits[name] for name in unseen} == {"test"}


@needs_data
def test_retrieval_captions_identify_their_image(folder: Path, images: Any, concepts: Any) -> None:
    samples = [(image, text.decode().splitlines()) for image, text in read(folder, "emoji-retrieval", "png", "txt")]
    texts = [text for _, captions in samples for text in captions]
    owners: dict[str, set[int]] = {}
    for index, (_, captions) in enumerate(samples):
        for text in captions:
            owners.setdefault(text, set()).add(index)
    assert all(len(indices) == 1 for indices in owners.values())
    assert len(texts) == 3 * len(samples) == 900
    style = {image["image"]: image["style"] for image in images}
    assert {style[image] for image, _ in samples} == {STYLE}


@needs_data
def test_groups_are_the_emoji_groups(folder: Path, concepts: Any) -> None:
    entry = load_tasks(folder / "evaldata")["emoji-groups"]
    classes = lines(folder / "evaldata" / "wds_emoji-groups_test" / "classnames.txt")
    group_of = {concept["name"]: concept["group"] for concept in concepts.values()}
    counts: dict[str, int] = {}
    for label, content in read(folder, "emoji-groups", "cls", "npy"):
        group, target = np.frombuffer(content[-16:], np.int64)
        assert target == int(label)
        assert entry.group_names[group] == group_of[classes[target]]
        counts[entry.group_names[group]] = counts.get(entry.group_names[group], 0) + 1
    assert set(counts) == set(entry.group_names)
    assert set(counts.values()) == {30}
    assert len(counts) >= 8


@needs_data
def test_an_unknown_style_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"held_out_style='crayon' is not a style of .*emojitwo, fluent_3d"):
        fabricate(tmp_path, style="crayon")
    assert not list(tmp_path.iterdir())


def test_a_folder_without_emoji_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no {ANNOTATIONS_FILE} in .*data=PATH"):
        fabricate(tmp_path, data=tmp_path)
    pq.write_table(pa.table({"style": ["a"]}), tmp_path / ANNOTATIONS_FILE)
    with pytest.raises(UserError, match="is not a Parquet file with the columns codepoint, name"):
        fabricate(tmp_path, data=tmp_path)
    (tmp_path / ANNOTATIONS_FILE).write_bytes(b"torn")
    with pytest.raises(UserError, match="is not a Parquet file"):
        fabricate(tmp_path, data=tmp_path)
