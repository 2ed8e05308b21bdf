"""Whatever stands in a file of a corpus, no command ends with a traceback: the file is named, or what it is a record
of is done again."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep import corpus_files, download, serve
from data_prep.downloaded import shard_files
from data_prep.manifest import read_manifest
from pipeline import run_files
from pipeline.errors import UserError
from pipeline.evaluation.download import recorded_files
from pipeline.typed_files import Kind
from tests.damaged_support import (
    DAMAGE,
    MISSING,
    Place,
    places,
    read_document,
    refusal,
    with_damage,
    write_document,
)
from tests.unit.damaged_corpora_support import CUT, MERGE, SMALL, data_prep, fabricate, succeed

WRONG = {**DAMAGE, "missing": MISSING}
MOST = 8  # damages of a file of which each is mended
STATISTICS, CLAIM = "toy/download/00000/00000_stats.json", "toy/download/00000/input.json"
FILES: dict[str, Kind] = {
    "toy/plan.json": corpus_files.PLAN,
    "toy/metadata.json": corpus_files.METADATA,
    CLAIM: corpus_files.CLAIM,
    STATISTICS: corpus_files.STATISTICS,
    "toy/download/00001/00000_stats.json": corpus_files.TIMED_STATISTICS,
    "toy/download/00000/done.json": corpus_files.DONE,
    "toy/verify/00000.json": corpus_files.VERIFIED,
    "toy/manifest.json": corpus_files.ACCOUNTED,
    "small/manifest.json": corpus_files.PUBLISHED,
    "small/derived.json": corpus_files.DERIVED,
    "half/derive/selected/00000000.json": corpus_files.SELECTION,
    "half/derive/written/00000000.json": corpus_files.WRITTEN,
    "parted/plan/parts/00000-of-00002/part.json": corpus_files.PART,
    "pictures/behaviours.json": corpus_files.BEHAVIOURS,
    "evaldata/download.json": run_files.DOWNLOADS,
}
READERS: dict[str, list[list[str]]] = {  # commands by the folder that they read
    "toy": [
        ["status", "toy"],
        ["plan", "toy", *CUT],
        ["plan", "toy", "--explain", "3"],
        ["metadata", "toy"],
        ["download", "toy"],
        ["verify", "toy", "--dry-run"],
        ["verify", "toy"],
        ["verify", "toy", "--again"],
        ["retry", "toy", "--dry-run"],
        ["manifest", "toy"],
        ["report", "toy", "--dry-run"],
        [*MERGE, "other", "--dry-run"],
        ["upload", "toy", "memory://corpora/toy", "--dry-run"],
    ],
    "small": [["status", "small"], ["report", "small", "--dry-run"], SMALL],
    "half": [["status", "half"], [*MERGE, "half"]],
    "parted": [["plan", "parted", *CUT, "--merge", "2"]],
    "pictures": [["serve", "pictures"]],
}
MENDED: dict[str, list[str]] = {  # by the command that does again what the file records
    STATISTICS: ["download", "toy"],
    "toy/download/00000/done.json": ["download", "toy"],
    "toy/verify/00000.json": ["verify", "toy"],
    "toy/manifest.json": ["manifest", "toy"],
    "small/manifest.json": SMALL,
    "half/derive/selected/00000000.json": [*MERGE, "half"],
    "half/derive/written/00000000.json": [*MERGE, "half"],
    "parted/plan/parts/00000-of-00002/part.json": ["plan", "parted", *CUT, "--part", "0/2"],
}
REFUSED: list[tuple[str, Place, Any, str, list[str]]] = [  # what is said, and by which command
    ("toy/plan.json", ("tasks",), 3, "is not as it was made (fingerprint)", ["verify", "toy"]),
    ("toy/plan.json", ("settings", "images"), 0, "is not as it was made (fingerprint)", ["status", "toy"]),
    ("toy/plan.json", ("items",), [5], "items[0]: expected `object`, got `int`, found 5", ["manifest", "toy"]),
    ("toy/plan.json", ("rows_planned",), MISSING, "rows_planned is missing", ["report", "toy"]),
    ("toy/metadata.json", ("commits",), 1, "commits: expected `object`, got `int`, found 1", ["metadata", "toy"]),
    ("toy/metadata.json", ("wanted",), None, "wanted: expected `array`, got `null`, found nothing (null)",
     ["plan", "toy", *CUT]),
    (CLAIM, (), [], "should be an object with fields, found a list", ["download", "toy"]),
    ("small/derived.json", ("where",), 5, "where: expected `str | null`, got `int`, found 5", SMALL),
    ("small/manifest.json", ("samples",), "9", "samples: expected `int`, got `str`, found '9'", ["status", "small"]),
    ("small/manifest.json", ("outcomes", "ok"), -1, "a value in outcomes: expected `int` >= 0", ["report", "small"]),
    ("parted/plan/parts/00000-of-00002/part.json", ("ranges",), True, "ranges: expected `int`, got `bool`, found True",
     ["plan", "parted", *CUT, "--merge", "2"]),
    ("pictures/behaviours.json", ("/a.png",), {"statsu": 404}, "a value in it: object contains unknown field `statsu`",
     ["serve", "pictures"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def root(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage, on a machine without a web: images that are asked for come from `whole`."""

    def fetch(shards: list[tuple[download.Shard, int]], *_: object) -> None:
        for shard, _rows in shards:
            for path in shard_files(shard.folder, shard.number):
                shutil.copy(whole / path.relative_to(tmp_path / "root"), path)
            shard.rows.unlink()

    def interrupted(_: serve.ImageServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "preflight", lambda *told: None)
    monkeypatch.setattr(download, "_download_shards", fetch)
    monkeypatch.setattr(serve.ImageServer, "serve_forever", interrupted)
    copy = shutil.copytree(whole, tmp_path / "root")
    monkeypatch.chdir(copy)
    return copy


def damage(root: Path, file: str, place: Place, value: Any) -> None:
    """Also makes the download go over those of its files that it would not look at."""
    write_document(root / file, with_damage(read_document(root / file), place, value))
    if file in (CLAIM, STATISTICS):
        (root / "toy/download/00000/done.json").unlink(missing_ok=True)


def restore(root: Path, whole: Path, corpus: str) -> None:
    shutil.rmtree(root / corpus)
    shutil.copytree(whole / corpus, root / corpus)


@pytest.mark.parametrize("file", FILES)
def test_every_damage_to_every_field_is_read_or_named(whole: Path, tmp_path: Path, file: str) -> None:
    kind, path, document = FILES[file], tmp_path / Path(file).name, read_document(whole / file)
    assert kind.read(whole / file) == document
    for place, (name, value) in itertools.product(places(document), WRONG.items()):
        write_document(path, with_damage(document, place, value))
        said = refusal(kind, path)
        assert not said or (said.startswith(f"{path}: ") and said.endswith(kind.mend)), (place, name)
        assert bool(said) or place or name in ("object", "missing"), name


@pytest.mark.parametrize("file", [file for file in FILES if file != "evaldata/download.json"])
def test_no_command_ends_with_a_traceback(root: Path, whole: Path, file: str) -> None:
    corpus = file.partition("/")[0]
    commands, wrong = itertools.cycle(READERS[corpus]), itertools.cycle(WRONG.items())
    for place in places(read_document(whole / file)):
        name, value = next(wrong)
        for arguments in itertools.islice(commands, 3):
            damage(root, file, place, value)
            try:
                data_prep(root, *arguments)
            except Exception as error:
                raise AssertionError(f"{arguments} with {file}: {place} being {name}") from error
            restore(root, whole, corpus)


@pytest.mark.parametrize("file", MENDED)
def test_what_a_damaged_file_was_a_record_of_is_done_again(root: Path, whole: Path, file: str) -> None:
    corpus, document = file.partition("/")[0], read_document(whole / file)
    some = [
        (place, value)
        for place, value in zip(places(document), itertools.cycle(WRONG.values()), strict=False)
        if FILES[file].problem(with_damage(document, place, value))
    ]
    for place, value in some[:: len(some) // MOST + 1]:
        damage(root, file, place, value)
        succeed(root, *MENDED[file])
        if corpus == "half":
            assert read_manifest(root / corpus).summary["fingerprint"] == read_manifest(root / "both").fingerprint
        else:
            assert read_document(root / file) == document, place
        restore(root, whole, corpus)


@pytest.mark.parametrize(("file", "place", "value", "words", "command"), REFUSED)
def test_a_command_says_what_is_wrong_and_what_to_do(
    root: Path, file: str, place: Place, value: Any, words: str, command: list[str]
) -> None:
    damage(root, file, place, value)
    done = data_prep(root, *command)
    assert done.exit_code == 2
    assert f"{file}: {words}. {FILES[file].mend}\n" in done.stderr


def test_a_damaged_record_of_downloaded_tasks_is_named(whole: Path, tmp_path: Path) -> None:
    assert recorded_files(tmp_path) == {}
    document = read_document(whole / "evaldata/download.json")
    assert recorded_files(whole / "evaldata") == document["files"]
    write_document(tmp_path / "download.json", {**document, "files": {"0.tar": {"size": "3", "sha256": "0" * 64}}})
    with pytest.raises(UserError, match=r"download\.json: a value in files: expected `int`, got `str`\. It says what"):
        recorded_files(tmp_path)


def test_what_another_version_says_besides_is_passed_over(root: Path) -> None:
    commands = ["status", "toy"], ["report", "toy", "--dry-run"], ["download", "toy"], ["verify", "toy"]
    said = [succeed(root, *command).stdout for command in commands]
    for path in root.glob("toy/**/*.json"):
        write_document(path, {**read_document(path), "another": [None, {"a": 1}]})
    assert [succeed(root, *command).stdout for command in commands] == said
