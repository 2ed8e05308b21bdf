"""The canonical shard: its bytes are a function of its samples, and the index finds every sample in it."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.shard import Sample, StoredSample, index_path, read_at, read_index, sample_range, write_shard
from pipeline.files import sha256_file

SAMPLES = st.lists(
    st.builds(
        Sample,
        uid=st.text("0123456789abcdef", min_size=32, max_size=32),
        image=st.binary(min_size=1, max_size=2000),
        extension=st.sampled_from(["jpg", "png", "webp"]),
        caption=st.text(st.characters(blacklist_categories=["Cs"]), max_size=300),
        metadata=st.dictionaries(st.sampled_from(["url", "width", "ключ"]), st.integers() | st.text("aé"), max_size=3),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda sample: sample.uid,
).map(lambda samples: sorted(samples, key=lambda sample: sample.uid))


def a_sample(number: int, extension: str = "jpg") -> Sample:
    return Sample(f"{number:032x}", bytes([number]) * 700, extension, f"caption {number}", {"url": f"u{number}"})


@settings(max_examples=50, deadline=None)
@given(SAMPLES)
def test_index_and_tar_agree_on_every_sample(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> None:
    path = tmp_path_factory.mktemp("shard") / "00000-000.tar"
    assert write_shard(path, samples) == len(samples)
    index = read_index(path)
    assert index.shape == (len(samples),)
    with tarfile.open(path) as tar, open(path, "rb") as stream:
        assert len(tar.getnames()) == 3 * len(samples)
        for row, (sample, entry) in enumerate(zip(samples, index, strict=True)):
            image = read_at(stream.fileno(), int(entry["image_offset"]), int(entry["image_bytes"]))
            caption = read_at(stream.fileno(), int(entry["text_offset"]), int(entry["text_bytes"]))
            assert image == sample.image == tar.extractfile(f"{sample.uid}.{sample.extension}").read()
            start, stop = sample_range(index, row, path.stat().st_size)
            stored = StoredSample(read_at(stream.fileno(), start, stop - start), entry)
            assert (stored.image, stored.caption, stored.metadata) == (sample.image, sample.caption, sample.metadata)
            assert caption.decode() == sample.caption == tar.extractfile(f"{sample.uid}.txt").read().decode()


def test_webdataset_reads_the_shard(tmp_path: Path) -> None:
    """Readers other than our own find complete samples, in order."""
    samples = [a_sample(1), a_sample(2, "png"), a_sample(3, "webp")]
    write_shard(tmp_path / "s.tar", samples)
    read = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [sample.uid for sample in samples]
    assert [sample["txt"].decode() for sample in read] == [sample.caption for sample in samples]
    assert read[1]["png"] == samples[1].image


def test_same_samples_same_bytes_whenever_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "a.tar", [a_sample(1), a_sample(2)])
    monkeypatch.setattr("time.time", lambda: 4e9)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    write_shard(tmp_path / "b.tar", iter([a_sample(1), a_sample(2)]))
    write_shard(tmp_path / "c.tar", [a_sample(1), a_sample(3)])
    digests = [sha256_file(tmp_path / f"{name}.tar") for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


@pytest.mark.parametrize(
    "samples", [[a_sample(2), a_sample(1)], [a_sample(1), a_sample(1)], [a_sample(1, "gif")]], ids=str
)
def test_unsorted_repeated_or_unknown_samples_leave_nothing(tmp_path: Path, samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="unsorted, or no image"):
        write_shard(tmp_path / "s.tar", samples)
    assert list(tmp_path.iterdir()) == []


def test_failure_half_way_leaves_the_old_shard(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    write_shard(path, [a_sample(1)])
    before = sha256_file(path), np.array(read_index(path))

    def broken():
        yield a_sample(1)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_shard(path, broken())
    assert sha256_file(path) == before[0]
    assert (read_index(path) == before[1]).all()
    assert sorted(tmp_path.iterdir()) == sorted([path, index_path(path)])


def test_reading_past_the_end_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [a_sample(1)])
    size = (tmp_path / "s.tar").stat().st_size
    with open(tmp_path / "s.tar", "rb") as stream, pytest.raises(OSError, match="truncated"):
        read_at(stream.fileno(), size - 10, 11)
    assert read_at(io.FileIO(tmp_path / "s.tar").fileno(), size - 10, 10) == bytes(10)
