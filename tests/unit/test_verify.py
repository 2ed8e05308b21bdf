"""Verify and publish, on download folders written by hand: what is sound becomes the same shards, what is not
is quarantined or has its cause, and no manifest appears before everything is proven.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

import data_prep.verify
from data_prep.cli import main
from data_prep.corpus import Corpus, CorpusDefinition
from data_prep.downloaded import claim, is_finished, read_done, remove_unfinished, shard_files, write_done
from data_prep.manifest import read_manifest
from data_prep.plan import Plan, make_plan, read_item, read_plan
from data_prep.publish import publish
from data_prep.shard import index_path, read_index
from data_prep.stored import BadImage, check_image
from data_prep.verify import verify
from data_prep.watch import UNSTATED_YIELD
from pipeline.errors import UserError
from pipeline.files import sha256_file
from pipeline.locks import exclusive

ROWS, DOWNLOAD_SHARD = 20, 8
Entry = dict[str, Any]  # a planned row with its record, and what img2dataset stored of it


def encoded(kind: str, number: int = 0, **options: Any) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def planned(folder: Path, rows: int = ROWS, tasks: int = 1) -> tuple[Corpus, Plan]:
    (folder / "metadata").mkdir(parents=True)
    table = {"url": [f"http://h/{i}" for i in range(rows)], "caption": [f"caption {i}" for i in range(rows)]}
    pq.write_table(pa.table(table), folder / "metadata/0.parquet")
    corpus = Corpus(folder, CorpusDefinition(name="toy", title="Toy", licence="CC0-1.0", source="a test"))
    return corpus, make_plan(corpus, tasks=tasks, samples_per_shard=DOWNLOAD_SHARD)[0]


def entries(corpus: Corpus, plan: Plan, item: int) -> list[Entry]:
    """All rows of an item, downloaded well."""
    return [
        {**row, "image": encoded("JPEG", number), "status": "success", "error_message": None}
        for number, row in enumerate(read_item(corpus, plan, item).to_pylist())
    ]


def write_shard_files(folder: Path, shard: int, rows: list[Entry], order: int = 1) -> None:
    """One shard as img2dataset leaves it. order: -1 as if the downloads had ended the other way round."""
    tar, records, stats = shard_files(folder, shard)
    with tarfile.open(tar, "w") as archive:
        for number, row in list(enumerate(rows))[::order]:
            if row["status"] != "success":
                continue
            facts = {key: row[key] for key in ("uid", "url", "caption")}
            facts |= {"sha256": "0" * 64, "original_width": 50, "original_height": 40}
            parts = {"jpg": row["image"], "txt": row["caption"].encode(), "json": json.dumps(facts).encode()}
            for kind, content in parts.items():
                member = tarfile.TarInfo(f"{shard:05d}{number:04d}.{kind}")
                member.size, member.mtime = len(content), 1e9 + order
                if kind != row.get("without"):
                    archive.addfile(member, io.BytesIO(content))
    columns = ("uid", "url", "status", "error_message")
    schema = pa.schema([(name, pa.string()) for name in columns])
    recorded = [{name: row[name] for name in columns} for row in rows if not row.get("unrecorded")]
    pq.write_table(pa.Table.from_pylist(recorded, schema), records)
    successes = sum(row["status"] == "success" for row in rows)
    stats.write_text(json.dumps({"count": len(rows), "successes": successes, "status_dict": {}}))


def downloaded(corpus: Corpus, plan: Plan, item: int, rows: list[Entry], order: int = 1) -> None:
    folder = corpus.download(item)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(rows), DOWNLOAD_SHARD)
    for shard, start in enumerate(starts):
        write_shard_files(folder, shard, rows[start : start + DOWNLOAD_SHARD], order)
    write_done(corpus, plan, item, UNSTATED_YIELD)


def outcomes(corpus: Corpus, item: int = 0) -> dict[str, str]:
    table = pq.read_table(corpus.outcomes(item))
    return dict(zip(table["uid"].to_pylist(), table["outcome"].to_pylist(), strict=True))


@pytest.fixture
def toy(tmp_path: Path) -> tuple[Corpus, Plan, list[Entry]]:
    corpus, plan = planned(tmp_path)
    return corpus, plan, entries(corpus, plan, 0)


def test_the_order_of_downloads_leaves_no_trace(tmp_path: Path) -> None:
    fingerprints, digests = [], []
    for order in (1, -1):
        corpus, plan = planned(tmp_path / str(order), tasks=2)
        for item in range(2):
            downloaded(corpus, plan, item, entries(corpus, plan, item)[::order], order)
        verify(corpus)
        summary, new = publish(corpus)
        assert new
        fingerprints.append(summary["fingerprint"])
        digests.append([sha256_file(path) for path in sorted((corpus.folder / "shards").iterdir())])
    assert fingerprints[0] == fingerprints[1]
    assert digests[0] == digests[1]


def test_every_row_ends_with_one_outcome(toy: tuple[Corpus, Plan, list[Entry]]) -> None:
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
def test_a_shard_that_contradicts_itself_is_quarantined(toy: tuple[Corpus, Plan, list[Entry]], name: str) -> None:
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
def test_a_changed_file_is_quarantined(toy: tuple[Corpus, Plan, list[Entry]], spoil: str) -> None:
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
        stats.write_text(json.dumps({"successes": 3}))
        write_done(corpus, plan, 0, UNSTATED_YIELD)
    else:
        records.write_bytes(b"PAR1 no longer")
    (verdict,) = verify(corpus)
    assert len(verdict.damage) == 1
    assert verdict.record is None
    assert not is_finished(corpus.download(0), 2)
    assert is_finished(corpus.download(0), 1)


@pytest.mark.parametrize("moves", range(4))
def test_a_kill_during_quarantine_makes_no_damage_sound(
    toy: tuple[Corpus, Plan, list[Entry]], monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
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
def test_a_shard_that_changed_is_found_when_asked_and_made_again(
    toy: tuple[Corpus, Plan, list[Entry]], spoil: str
) -> None:
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


def test_verifying_again_does_nothing_until_the_download_changes(
    toy: tuple[Corpus, Plan, list[Entry]],
) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    verify(corpus)
    first, _ = publish(corpus)
    stamps = {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*.tar")}
    (again,) = verify(corpus)
    assert not again.new
    assert publish(corpus) == (first, False)
    assert {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*.tar")} == stamps
    for row in rows[:15]:  # a later download got less: the shards of the earlier one must go
        row |= {"status": "failed_to_download", "error_message": "HTTP Error 410: Gone"}
    downloaded(corpus, plan, 0, rows)
    with pytest.raises(UserError, match=r"1 of 1 work items still to verify \(0\)"):
        publish(corpus)
    assert verify(corpus)[0].new
    assert publish(corpus)[0]["ok"] == 5
    assert [path.name for path in sorted((corpus.folder / "shards").glob("*.tar"))] == ["00000-000.tar"]


@pytest.mark.parametrize("moment", ["write_shard", "_write_outcomes", "write_json"])
def test_a_killed_verification_is_done_again(
    toy: tuple[Corpus, Plan, list[Entry]], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any, moment: str
) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    with monkeypatch.context() as patch:
        patch.setattr(data_prep.verify, moment, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            verify(corpus)
    (corpus.folder / "shards").mkdir(exist_ok=True)
    leftover = corpus.folder / "shards/.00000-002.tar.77.tmp"  # as kill -9 leaves it
    leftover.write_bytes(b"half")
    with pytest.raises(UserError, match="still to verify"):
        publish(corpus)
    assert verify(corpus)[0].new
    assert not leftover.exists()
    other, other_plan = planned(tmp_path_factory.mktemp("undisturbed"))
    downloaded(other, other_plan, 0, rows)
    verify(other)
    assert publish(corpus)[0] == publish(other)[0]


def test_items_that_are_missing_are_named(tmp_path: Path) -> None:
    corpus, plan = planned(tmp_path, tasks=3)
    with pytest.raises(UserError, match="nothing is downloaded"):
        verify(corpus)
    downloaded(corpus, plan, 1, entries(corpus, plan, 1))
    with pytest.raises(UserError, match="work item 2 is not downloaded"):
        verify(corpus, [1, 2])
    assert [verdict.item for verdict in verify(corpus)] == [1]
    downloaded(corpus, plan, 2, entries(corpus, plan, 2))
    with pytest.raises(UserError, match=r"1 of 3 .* download \(0\); 1 of 3 .* verify \(2\)"):
        publish(corpus)


def test_publishing_refuses_outcomes_that_do_not_add_up(toy: tuple[Corpus, Plan, list[Entry]]) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    verify(corpus)
    sound = pq.read_table(corpus.outcomes(0))
    for damaged in (sound.slice(1), pa.concat_tables([sound.slice(1), sound.slice(5, 1)])):
        pq.write_table(damaged, corpus.outcomes(0))
        with pytest.raises(UserError, match="does not account for work item 0"):
            publish(corpus)
    corpus.outcomes(0).write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        publish(corpus)
    assert not (corpus.folder / "manifest.json").exists()


def test_a_dry_run_says_what_would_be_and_writes_nothing(tmp_path: Path) -> None:
    corpus, plan = planned(tmp_path / "toy", tasks=2)
    corpus.save_definition()

    def call(command: str) -> dict[str, Any]:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        result = CliRunner().invoke(main, ["--root", str(tmp_path), command, "toy", "--dry-run", "--json"])
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    sizes = [plan.items[item]["rows"] for item in range(2)]
    for item in range(2):
        downloaded(corpus, plan, item, entries(corpus, plan, item))
    verify(corpus, [1])
    assert call("verify") == {"to_verify": [0], "rows": sizes[0], "already_verified": [1]}
    with pytest.raises(UserError, match="1 of 2 work items still to verify"):
        publish(corpus, dry_run=True)
    verify(corpus)
    next(corpus.folder.glob("shards/00000-*.tar")).unlink()
    assert call("verify")["to_verify"] == [0], "its shard is gone"
    verify(corpus)
    would = call("manifest")
    seen: list[tuple[int, int]] = []
    summary, new = publish(corpus, lambda done, total: seen.append((done, total)))
    assert (would.pop("new"), would) == (new, summary)
    assert seen == [(1, 2), (2, 2)]
    assert call("manifest")["new"] is False


def test_a_torn_manifest_is_published_again(toy: tuple[Corpus, Plan, list[Entry]]) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    verify(corpus)
    first, _ = publish(corpus)
    for name in ("manifest.parquet", "manifest.json"):
        content = (corpus.folder / name).read_bytes()
        (corpus.folder / name).write_bytes(content[:50])
        assert publish(corpus) == (first, True)
        assert (corpus.folder / name).read_bytes() == content


def test_a_failed_item_is_not_done_and_can_be_tried_again(toy: tuple[Corpus, Plan, list[Entry]]) -> None:
    corpus, plan, rows = toy
    message = "<urlopen error [Errno 111] Connection refused>"
    dead = [{**row, "status": "failed_to_download", "error_message": message} for row in rows]
    with pytest.raises(UserError, match=r"0 of 20 rows .* \(20 connection\)\. Is the server running"):
        downloaded(corpus, plan, 0, dead)
    assert read_done(corpus, 0, plan.fingerprint) is None
    assert remove_unfinished(corpus.download(0), 3) == [0, 1, 2]


def test_only_finished_shards_survive_a_kill(toy: tuple[Corpus, Plan, list[Entry]]) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    folder = corpus.download(0)
    claim(folder, plan.fingerprint)
    (folder / "_tmp").mkdir()
    (folder / "_tmp/1.arrow").write_bytes(b"x")
    stats = shard_files(folder, 1)[2]
    stats.write_text(stats.read_text()[:10])  # img2dataset writes it in place
    shard_files(folder, 2)[1].write_bytes(b"")  # a power cut, before its data reached the disk
    assert remove_unfinished(folder, 3) == [1, 2]
    kept = {path for shard in (0,) for path in shard_files(folder, shard)}
    assert set(folder.iterdir()) == kept | {folder / "input.json"}
    claim(folder, plan.fingerprint)
    with pytest.raises(UserError, match="downloads of another plan"):
        claim(folder, "f" * 64)


def test_records_of_another_plan_do_not_count(toy: tuple[Corpus, Plan, list[Entry]]) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    assert read_done(corpus, 0, plan.fingerprint).ok == ROWS
    assert read_done(corpus, 0, "f" * 64) is None
    corpus.done_file(0).write_text("{")
    assert read_done(corpus, 0, plan.fingerprint) is None
    assert read_plan(corpus) == plan


def test_images_are_judged_by_their_bytes() -> None:
    for kind, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        facts = check_image(encoded(kind))
        assert (facts.extension, facts.width, facts.height) == (extension, 50, 40)
    for content, cause in (
        (encoded("BMP"), "unsupported_format"),
        (b"", "not_an_image"),
        (encoded("JPEG")[:300], "truncated"),
        (encoded("PNG")[:-400], "truncated"),
    ):
        with pytest.raises(BadImage) as bad:
            check_image(content)
        assert bad.value.cause == cause


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_no_cut_image_passes(kind: str) -> None:
    content = encoded(kind, 5)
    for length in range(0, len(content) - 16, len(content) // 40):
        with pytest.raises(BadImage):
            check_image(content[:length])


def test_a_lock_has_one_holder_and_ends_with_it(tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match=f"it is in use by process {os.getpid()} on")
    with exclusive(tmp_path / "lock", "it"), refused, exclusive(tmp_path / "lock", "it"):
        pytest.fail("two holders")
    with exclusive(tmp_path / "lock", "it"):
        pass
