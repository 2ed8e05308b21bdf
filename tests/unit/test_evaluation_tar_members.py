"""Tars are read as webdataset reads them, whatever their format, names, compression, and where they are cut."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from webdataset.tariterators import tar_file_iterator

from pipeline.evaluation.tar_members import tar_members

LETTERS = st.sampled_from("a.Z_0/é ")
NAMES = st.text(LETTERS, min_size=1, max_size=12) | st.text(LETTERS, min_size=95, max_size=280)
TYPES = st.sampled_from([tarfile.REGTYPE] * 4 + [tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
MEMBERS = st.lists(st.tuples(NAMES, st.binary(max_size=1500), TYPES), max_size=6)
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def tar(members: list[tuple[str, bytes, bytes]], form: int, compression: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compression}", format=form) as target:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content) if kind in tarfile.REGULAR_TYPES else 0
            try:
                target.addfile(member, io.BytesIO(content))
            except ValueError:  # a name that is too long for this format
                continue
    return stream.getvalue()


def ours(content: bytes) -> list[tuple[str, bytes]] | str:
    try:
        return list(tar_members(io.BytesIO(content)))
    except tarfile.TarError:
        return "error"


def webdatasets(content: bytes) -> list[tuple[str, bytes]] | str:
    try:
        return [(member["fname"], member["data"]) for member in tar_file_iterator(io.BytesIO(content))]
    except tarfile.TarError:
        return "error"


@given(members=MEMBERS, form=FORMATS, compression=st.sampled_from(["", "gz"]))
@example([(name, b"", tarfile.REGTYPE) for name in ("__", "___", "____", "__a__", "__/a", "__a", "__a__/b")], 0, "")
def test_as_webdataset_reads_them(members: list[tuple[str, bytes, bytes]], form: int, compression: str) -> None:
    content = tar(members, form, compression)
    assert ours(content) == webdatasets(content)


def entries(content: bytes) -> int:
    """How many tarfile comes to, folders and links included."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r|*") as found:
        return sum(1 for _ in found)


def same_or_refused(damaged: bytes, whole: bytes) -> bool:
    """tarfile ends without a word where a header is damaged, and webdataset with it: there we may say so."""
    found = ours(damaged)
    return found == webdatasets(damaged) or (found == "error" and entries(damaged) < entries(whole))


@given(members=MEMBERS, form=FORMATS, place=st.integers(0, 2**16))
@example([("a", b"", tarfile.REGTYPE), ("/", b"", tarfile.AREGTYPE)], tarfile.USTAR_FORMAT, 513)  # only a folder torn
def test_cut_anywhere(members: list[tuple[str, bytes, bytes]], form: int, place: int) -> None:
    whole = tar(members, form)
    cut = place % (len(whole.rstrip(b"\0")) + 1)
    assert same_or_refused(whole[:cut], whole)


@given(content=st.binary(max_size=600), position=st.integers(0, 511), value=st.integers(0, 255))
def test_a_header_with_another_byte(content: bytes, position: int, value: int) -> None:
    whole = tar([("a.cls", b"1", tarfile.REGTYPE), ("a.png", content, tarfile.REGTYPE)], tarfile.GNU_FORMAT)
    damaged = bytearray(whole)
    damaged[1024 + position] = value
    assert same_or_refused(bytes(damaged), whole)


@pytest.mark.parametrize("name", ["__meta__", "__meta__/a.png", "__a", "x/__meta__"])
def test_descriptions_of_a_shard_are_no_samples(name: str) -> None:
    content = tar([(name, b"1", tarfile.REGTYPE), ("a.png", b"2", tarfile.REGTYPE)], tarfile.USTAR_FORMAT)
    assert ours(content) == webdatasets(content)
    assert len(ours(content)) == (1 if name.startswith("__meta__") else 2)
