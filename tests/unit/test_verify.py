"""Verify: what is sound becomes the same shards, and what is not is quarantined or has its cause."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import data_prep.verify
from data_prep.cli import main
from data_prep.corpus import Corpus, CorpusDefinition
from data_prep.downloaded import is_finished, read_done, remove_unfinished, shard_files, write_done
from data_prep.manifest import read_manifest
from data_prep.plan import make_plan
from data_prep.publish import publish
from data_prep.shard import index_path, read_index
from data_prep.verify import verify
from data_prep.watch import UNSTATED_YIELD
from pipeline.errors import UserError
from tests.unit.downloads_support import (
    DOWNLOAD_SHARD,
    ROWS,
    Entry,
    Toy,
    downloaded,
    encoded,
    entries,
    outcomes,
    planned,
)


def test_every_row_ends_with_one_outcome(toy: Toy) -> None:
    corpus, plan, rows = toy
    rows[0] |= {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
    rows[1] |= {"image": encoded("PNG", 1)}
    rows[2] |= {"image": encoded("WEBP", 2)}
    rows[3] |= {"image": encoded("GIF", 3)}
    rows[4] |= {"image": encoded("JPEG", 4)[:-200]}
    rows[9] |= {"image": encoded("PNG", 9)[:-200]}
    rows[10] |= {"image": b"<html>"}
    rows[11] |= {"status": "failed", "unrecorded": True}
    downloaded(corpus, plan, 0, rows)
    (verdict,) = verify(corpus)
    assert verdict.new
    assert not verdict.damage
    expected = {row["uid"]: "ok" for row in rows}
    special = {
        0: "http_404",
        3: "unsupported_format",
        4: "truncated",
        9: "truncated",
        10: "not_an_image",
        11: "lost",
    }
    expected |= {rows[number]["uid"]: cause for number, cause in special.items()}
    assert outcomes(corpus) == expected
    summary, _ = publish(corpus)
    assert summary["rows"] == ROWS == sum(summary["outcomes"].values())
    assert summary["ok"] == summary["samples"] == ROWS - len(special)
    names = []
    manifest = read_manifest(corpus.folder)
    for shard in range(len(manifest.samples)):
        assert len(read_index(manifest.shard(shard).path)) == manifest.samples[shard]
        with tarfile.open(manifest.shard(shard).path) as tar:
            names += [name for name in tar.getnames() if name.endswith(("jpg", "png", "webp"))]
    assert names == sorted(names)
    assert f"{rows[1]['uid']}.png" in names
    assert f"{rows[2]['uid']}.webp" in names
    assert manifest.samples.tolist() == [8, 6]


def test_further_captions_reach_the_sample(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    rows = {"url": ["http://h/1"], "caption": ["c"], "alt": ["an  alt\ntext"]}
    pq.write_table(pa.table(rows), tmp_path / "metadata/0.parquet")
    corpus = Corpus(tmp_path, CorpusDefinition(name="toy", title="Toy", licence="x", captions=("alt",)))
    plan, _ = make_plan(corpus, tasks=1, samples_per_shard=DOWNLOAD_SHARD)
    downloaded(corpus, plan, 0, entries(corpus, plan, 0))
    verify(corpus)
    with tarfile.open(corpus.shard(0, 0)) as archive:
        names = [name for name in archive.getnames() if name.endswith(".json")]
        assert [json.load(archive.extractfile(name))["alt"] for name in names] == ["an alt text"]


def swap_captions(rows: list[Entry]) -> None:
    rows[0]["caption"], rows[1]["caption"] = rows[1]["caption"], rows[0]["caption"]


DAMAGE: dict[str, tuple[Callable[[list[Entry]], Any], str]] = {
    "no caption": (lambda rows: rows[3].update(without="txt"), r"has \['jpg', 'json'\]"),
    "no json": (lambda rows: rows[3].update(without="json"), r"has \['jpg', 'txt'\]"),
    "no image": (lambda rows: rows[3].update(without="jpg"), r"has \['json', 'txt'\]"),
    "other caption": (swap_captions, "is not the row that was planned"),
    "other url": (lambda rows: rows[2].update(url="http://elsewhere/"), "is not the row that was planned"),
    "repeated": (lambda rows: rows[1].update(rows[0]), "repeats rows"),
    "repeated across shards": (lambda rows: rows[9].update(rows[0]), "repeats rows of other shards"),
    "never planned": (lambda rows: rows[1].update(uid="0" * 32), "never planned"),
    "unrecorded success": (lambda rows: rows[1].update(unrecorded=True), "without a record of its success"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_shard_that_contradicts_itself_is_quarantined(toy: Toy, name: str) -> None:
    corpus, plan, rows = toy
    spoil, message = DAMAGE[name]
    sound = [dict(row) for row in rows]
    spoil(rows)
    downloaded(corpus, plan, 0, rows)
    (verdict,) = verify(corpus)
    assert len(verdict.damage) == 1
    assert re.search(message, verdict.damage[0])
    shard = 1 if "across" in name else 0
    assert read_done(corpus, 0, plan.fingerprint) is None
    assert (corpus.folder / f"quarantine/00000/{shard:05d}.tar").is_file()
    assert not corpus.verified_file(0).exists()
    with pytest.raises(UserError, match=r"1 of 1 work items still to download \(0\)"):
        publish(corpus)
    assert remove_unfinished(corpus.download(0), 3) == [shard], "only the damaged shard is to be made again"
    downloaded(corpus, plan, 0, sound)
    assert not verify(corpus)[0].damage
    assert publish(corpus)[0]["ok"] == ROWS


@pytest.mark.parametrize("spoil", ["cut", "flip", "remove", "cut before the record", "stats", "parquet"])
def test_a_changed_file_is_quarantined(toy: Toy, spoil: str) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    tar, records, stats = shard_files(corpus.download(0), 2)
    if spoil == "cut":
        os.truncate(tar, tar.stat().st_size // 2)
    elif spoil == "cut before the record":  # the record is of the torn file: only the content can tell
        os.truncate(tar, tar.stat().st_size // 2 // 512 * 512 + 100)
        write_done(corpus, plan, 0, UNSTATED_YIELD)
    elif spoil == "flip":
        content = bytearray(tar.read_bytes())
        content[700] ^= 1
        tar.write_bytes(content)
    elif spoil == "remove":
        tar.unlink()
    elif spoil == "stats":
        stats.write_text(json.dumps({"successes": 3, "status_dict": {}}))
        write_done(corpus, plan, 0, UNSTATED_YIELD)
    else:
        records.write_bytes(b"PAR1 no longer")
    (verdict,) = verify(corpus)
    assert len(verdict.damage) == 1
    assert verdict.record is None
    assert not is_finished(corpus.download(0), 2)
    assert is_finished(corpus.download(0), 1)


@pytest.mark.parametrize("moves", range(4))
def test_a_kill_during_quarantine_makes_no_damage_sound(toy: Toy, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    """Killed after so many moves (three files in all), then downloaded and verified as a user would go on."""
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    tar = shard_files(corpus.download(0), 1)[0]
    content = bytearray(tar.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 700] ^= 1  # in an image, which may well decode
    tar.write_bytes(content)
    done = iter(range(3))

    def move(source: Path, target: Path) -> None:
        if next(done) == moves:
            raise KeyboardInterrupt
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(data_prep.verify.shutil, "move", move)
        if moves == 3:
            patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            verify(corpus)
    if read_done(corpus, 0, plan.fingerprint) is None:  # the download takes stock of what it finds finished
        assert remove_unfinished(corpus.download(0), 3) == [1]
    else:
        assert verify(corpus)[0].damage
        assert remove_unfinished(corpus.download(0), 3) == [1]
    assert not tar.exists()


@pytest.mark.parametrize("spoil", ["shard", "index"])
def test_a_shard_that_changed_is_found_when_asked_and_made_again(toy: Toy, spoil: str) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    verify(corpus)
    published, _ = publish(corpus)
    assert not verify(corpus, again=True)[0].new
    shard = corpus.shard(0, 1)
    path = shard if spoil == "shard" else index_path(shard)
    sound, content = path.read_bytes(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, the size stays
    path.write_bytes(content)
    assert not verify(corpus)[0].new, "at first sight nothing is wrong"
    name = str(corpus.folder)
    result = CliRunner().invoke(main, ["verify", name, "--again"])
    assert result.exit_code == 2
    assert f"item 0: {shard.name} or its index is not what was verified" in result.output
    assert f"Run `data-prep verify {name}`" in result.output
    assert (corpus.folder / "quarantine/00000" / path.name).read_bytes() == content
    with pytest.raises(UserError, match=r"still to verify \(0\).*`data-prep verify toy`"):
        publish(corpus)
    assert verify(corpus)[0].new
    assert path.read_bytes() == sound
    assert publish(corpus) == (published, False)


@pytest.mark.parametrize("moment", ["write_shard", "_write_outcomes", "write_json"])
def test_a_killed_verification_is_done_again(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any, moment: str
) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    with monkeypatch.context() as patch:
        patch.setattr(data_prep.verify, moment, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            verify(corpus)
    (corpus.folder / "shards").mkdir(exist_ok=True)
    leftover = corpus.folder / "shards/.00000-002.tar.0123abcd.tmp"  # as kill -9 leaves it
    leftover.write_bytes(b"half")
    with pytest.raises(UserError, match="still to verify"):
        publish(corpus)
    assert verify(corpus)[0].new
    assert not leftover.exists()
    other, other_plan = planned(tmp_path_factory.mktemp("undisturbed"))
    downloaded(other, other_plan, 0, rows)
    verify(other)
    assert publish(corpus)[0] == publish(other)[0]
