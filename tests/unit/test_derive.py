"""Corpora made out of others: against a plain reading of the tars, under kills, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import data_prep.selection
from data_prep.cli import main
from data_prep.derive import derive
from data_prep.manifest import read_manifest, shard_row, write_manifest
from data_prep.shard import Sample, read_index, read_samples, write_shard
from pipeline.errors import UserError
from tests.conftest import write_corpus


def members(folder: Path) -> list[list[tuple[str, dict[str, bytes]]]]:
    """By the manifest's order of shards: each sample's uid and members, as Python's tarfile reads them."""
    manifest, shards = read_manifest(folder), []
    for number in range(len(manifest.samples)):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(manifest.shard(number).path) as tar:
            for member in tar:
                uid, _, kind = member.name.partition(".")
                samples.setdefault(uid, {})[kind] = tar.extractfile(member).read()
        shards.append(list(samples.items()))
    return shards


def flat(folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    return [sample for shard in members(folder) for sample in shard]


def write_tiny(folder: Path, shards: list[list[int]]) -> Path:
    """A corpus whose uids are given, shard by shard (sorted here, as canonical shards are)."""
    rows = []
    for number, uids in enumerate(shards):
        path = folder / "shards" / f"{number:05d}-000.tar"
        write_shard(
            path,
            [
                Sample(f"{uid:032x}", bytes([uid % 256]) * (uid % 700), "jpg", f"c {uid}", {"uid": uid, "w": uid % 5})
                for uid in sorted(set(uids))
            ],
        )
        rows.append(shard_row(folder, path, len(set(uids)), number))
    write_manifest(folder, rows, {"title": folder.name, "licence": "none"})
    return folder


shards = st.lists(st.lists(st.integers(0, 2**17), min_size=1, max_size=12), min_size=1, max_size=5)


@given(shards, shards, st.integers(1, 9), st.integers(0, 4), st.sampled_from([3, 2**25]))
@settings(max_examples=40, deadline=None)
def test_what_stays_is_what_a_plain_reading_says(tmp_path_factory, one, other, size, width, part):
    """Samples in the order of sources, shards and uids, each uid once; all shards full but the last."""
    root = tmp_path_factory.mktemp("derive")
    sources = [write_tiny(root / "one", one), write_tiny(root / "other", other)]
    wanted: dict[str, dict[str, bytes]] = {}
    for uid, sample in [sample for source in sources for sample in flat(source)]:
        if int(uid, 16) % 5 >= width:
            wanted.setdefault(uid, sample)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_prep.selection, "PART_ROWS", part)

        def make():
            return derive(list(map(str, sources)), root / "new", where=f"w >= {width}", samples_per_shard=size)

        if not wanted:
            with pytest.raises(UserError, match=r"not one of .* is left"):
                make()
            return
        summary, new = make()
    made = members(root / "new")
    in_order = list(wanted)
    assert new
    assert summary["rows_read"] == summary["ok"] + sum(summary["dropped"].values())
    assert [len(shard) for shard in made] == [len(in_order[n : n + size]) for n in range(0, len(in_order), size)]
    for number, shard in enumerate(made):
        assert [uid for uid, _ in shard] == sorted(in_order[number * size : (number + 1) * size])
        assert all(sample == wanted[uid] for uid, sample in shard)
    assert not (root / "new" / "derive").exists()


def test_a_subset_by_uids_takes_exactly_those(noise_corpus, tmp_path):
    uids = [sample for number, (sample, _) in enumerate(flat(noise_corpus)) if number % 7 == 3]
    listed = [*uids, "f" * 32]  # one that the corpus does not have
    halves = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in listed], np.dtype("u8,u8"))
    np.save(tmp_path / "uids.npy", np.sort(halves))
    summary, _ = derive([str(noise_corpus)], tmp_path / "new", uids=tmp_path / "uids.npy", samples_per_shard=10)
    assert [uid for uid, _ in flat(tmp_path / "new")] == uids
    assert summary["dropped"] == {"not_in_uids": 203 - len(uids)}


def test_a_reshard_to_the_same_size_gives_the_same_bytes(tmp_path):
    source = write_corpus(tmp_path / "source", [20, 20, 7])
    derive([str(source)], tmp_path / "new", samples_per_shard=20)
    before, after = read_manifest(source), read_manifest(tmp_path / "new")
    assert after.table["sha256"].to_pylist() == before.table["sha256"].to_pylist()
    assert after.table["index_sha256"].to_pylist() == before.table["index_sha256"].to_pylist()


def test_the_number_of_processes_and_the_way_there_change_nothing(noise_corpus, tmp_path):
    kept = [
        derive([str(noise_corpus)], tmp_path / name / "new", where="n < 150", **options)[0]
        for name, options in {"a": {"samples_per_shard": 16}, "b": {"samples_per_shard": 16, "processes": 2}}.items()
    ]
    assert kept[0] == kept[1]
    derive([str(noise_corpus)], tmp_path / "odd", samples_per_shard=9)
    derive([str(tmp_path / "odd")], tmp_path / "c" / "new", where="n < 150", samples_per_shard=16)
    assert read_manifest(tmp_path / "c" / "new").fingerprint == kept[0]["fingerprint"]


def test_the_index_finds_every_sample(noise_corpus, tmp_path):
    derive([str(noise_corpus)], tmp_path / "new", samples_per_shard=50)
    manifest = read_manifest(tmp_path / "new")
    file = manifest.shard(1)
    found = list(read_samples(file.path, file.bytes, [49, 0]))
    assert [sample.uid for sample in found] == [f"{99:032x}", f"{50:032x}"]
    with tarfile.open(file.path) as tar:
        first = tar.next()
        assert read_index(file.path)[0]["image_offset"] == first.offset_data
        assert found[1].image == tar.extractfile(first).read()


def test_killed_anywhere_the_same_command_ends_at_the_same_manifest(noise_corpus, tmp_path):
    command = [sys.executable, "-m", "data_prep", "--root", str(tmp_path), "subset", str(noise_corpus)]
    command += ["--where", "n != 7", "--out", "new", "--samples-per-shard", "2"]
    derive([str(noise_corpus)], tmp_path / "undisturbed", where="n != 7", samples_per_shard=2)
    wanted = read_manifest(tmp_path / "undisturbed").fingerprint
    interrupted = 0
    for number in range(8):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (tmp_path / "new" / "derived.json").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.08 * number)  # the first at once: on a fast machine it would be done soon
        process.send_signal(signal.SIGKILL)
        interrupted += process.wait() == -signal.SIGKILL
        if (tmp_path / "new" / "manifest.json").exists():
            assert read_manifest(tmp_path / "new").fingerprint == wanted
            break
    assert interrupted
    for torn in ("shards/.00000-000.tar.0123abcd.tmp", ".manifest.json.0123abcd.tmp"):
        (tmp_path / "new/shards").mkdir(exist_ok=True)
        (tmp_path / "new" / torn).touch()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    manifest = read_manifest(tmp_path / "new")
    assert manifest.fingerprint == wanted
    assert not list((tmp_path / "new").rglob("*.tmp"))
    for number in range(len(manifest.samples)):
        file = manifest.shard(number)
        assert hashlib.sha256(Path(file.path).read_bytes()).hexdigest() == file.sha256


def test_a_source_that_is_not_what_its_manifest_says_is_refused(tmp_path):
    source = write_corpus(tmp_path / "source", [5, 5])
    shard = source / "shards" / "00001-000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"00001-000\.tar is missing or not what its manifest says"):
        derive([str(source)], tmp_path / "new")
    assert not (tmp_path / "new" / "manifest.json").exists()


def test_another_request_into_the_same_corpus_is_refused(noise_corpus, tmp_path):
    derive([str(noise_corpus)], tmp_path / "new", samples_per_shard=50)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "new").rglob("*.tar")}
    summary, new = derive([str(noise_corpus)], tmp_path / "new", samples_per_shard=50)
    assert not new
    with pytest.raises(UserError, match="where: None -> 'n < 3'"):
        derive([str(noise_corpus)], tmp_path / "new", where="n < 3", samples_per_shard=50)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "new").rglob("*.tar")} == before
    os.unlink(tmp_path / "new" / "shards" / "00001-000.tar")
    again, new = derive([str(noise_corpus)], tmp_path / "new", samples_per_shard=50)
    assert new
    assert again["fingerprint"] == summary["fingerprint"]


def test_a_folder_that_was_downloaded_is_not_written_into(noise_corpus, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="is a corpus that was downloaded"):
        derive([str(noise_corpus)], tmp_path / "new")


@pytest.mark.parametrize("content", [np.zeros(3), np.zeros((2, 2), "u8,u8"), None])
def test_a_list_that_holds_no_uids_is_a_message(noise_corpus, tmp_path, content):
    path = tmp_path / "uids.npy"
    np.save(path, content) if content is not None else path.write_bytes(b"no array")
    with pytest.raises(UserError, match=r"uids\.npy (holds .*, not uids|is no \.npy file of uids)"):
        derive([str(noise_corpus)], tmp_path / "new", uids=path)


def test_the_commands(noise_corpus, tmp_path):
    def call(*arguments: str):
        return CliRunner().invoke(main, ["--root", str(tmp_path), *arguments])

    dry = call("subset", str(noise_corpus), "--where", "n < 20", "--out", "few", "--dry-run")
    assert "would keep 20 of 203 samples" in dry.output
    assert not (tmp_path / "few").exists()
    assert "kept 20 of 203 samples" in call("subset", str(noise_corpus), "--where", "n < 20", "--out", "few").output
    merged = call("merge", "few", str(noise_corpus), "--out", "both")
    assert "kept 203 of 223 samples" in merged.output
    assert "20 duplicate_uid" in merged.output
    assert json.loads(call("status", "few", "--json").output) == {"published": 20}
    assert '"shards": 4' in call("reshard", "few", "--samples-per-shard", "5", "--out", "small", "--json").output
    assert call("subset", "few", "--out", "x").exit_code == 2
    wrong = call("reshard", "few", "--samples-per-shard", "5", "--out", "No Name")
    assert wrong.exit_code == 2
    assert "the name of the new corpus, 'No Name'" in wrong.output
