"""Screening: every row that is dropped has its reason, and what stays is normalised and named.

The reference is row by row, in Python's own words for white space, URLs and addresses.
"""

from __future__ import annotations

import hashlib
import ipaddress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.corpus import Columns, Corpus, CorpusDefinition
from data_prep.hosts import is_private, url_problem
from data_prep.rows import to_hex, work_item
from data_prep.screen import REASONS, UID, Screen
from data_prep.spill import Key
from data_prep.uid_list import UidList
from pipeline.errors import UserError

CONTROL = dict.fromkeys([*range(32), 127], " ")


def definition(**settings: object) -> CorpusDefinition:
    return CorpusDefinition(name="toy", title="Toy", licence="CC0-1.0", **settings)


def screened(
    rows: list[tuple[object, ...]], folder: Path = Path("/nowhere"), **settings: object
) -> list[str | tuple[str, str, str]]:
    """For every row the reason why it went, or (uid, url, caption). rows: url, caption and whatever else is read."""
    screen = Screen(Corpus(folder, definition(**settings)))
    columns = zip(*rows, strict=True)
    result = screen(pa.RecordBatch.from_arrays([pa.array(list(column)) for column in columns], names(screen)))
    uids = to_hex(np.stack([result.rows[name].to_numpy() for name in UID], axis=1)).to_pylist()
    kept = iter(zip(uids, result.rows["url"].to_pylist(), result.rows["caption"].to_pylist(), strict=True))
    return [REASONS[code - 1] if code else next(kept) for code in result.reasons]


def names(screen: Screen) -> list[str]:
    first = ["url", "caption"]
    return first + [name for name in screen.wanted if name not in first]


def reference(url: str, caption: str) -> tuple[str, str, str]:
    url, caption = url.strip(), " ".join(caption.translate(CONTROL).split())
    return hashlib.sha256(f"{url}\0{caption}".encode()).hexdigest()[:32], url, caption


@pytest.mark.parametrize(
    ("url", "caption", "reason"),
    [
        (None, "c", "no_url"),
        ("  ", "c", "no_url"),
        ("http://h/1", None, "no_caption"),
        ("http://h/1", " \n\u3000", "no_caption"),
        ("ftp://h/1", "c", "not_http"),
        ("file:///etc/passwd", "c", "not_http"),
        ("/1.jpg", "c", "not_http"),
        ("//h.org/1.jpg", "c", "not_http"),
        ("data:image/png;base64,AAAA", "c", "not_http"),
        ("http://", "c", "bad_url"),
        ("http:///1.jpg", "c", "bad_url"),
        ("http://[::1/x", "c", "bad_url"),
        ("http://h.org:70000/", "c", "bad_url"),
        ("http://h.org:x/", "c", "bad_url"),
        ("http://h.org/a\nb", "c", "bad_url"),
        ("http://h.org/a\0b", "c", "bad_url"),
        ("http://h.org%2f@/x", "c", "credentials"),
        ("http://me:word@h.org/1", "c", "credentials"),
        ("http://h.org\\@127.0.0.1/", "c", "credentials"),
        ("http://127.0.0.1/1", "c", "private_host"),
        ("https://localhost:8000/1", "c", "private_host"),
        ("https://a.b.LOCALHOST./1", "c", "private_host"),
        ("http://metadata.google.internal/computeMetadata", "c", "private_host"),
        ("http://h.org/" + "x" * 4096, "c", "long_url"),
        ("http://h.org/1", "x" * 10_001, "long_caption"),
    ],
)
def test_unusable_rows_have_a_reason(url: str | None, caption: str | None, reason: str) -> None:
    assert screened([(url, caption), ("http://h/1", "c")]) == [reason, reference("http://h/1", "c")]


def test_normalised_row() -> None:
    row = screened([(" HTTPS://h.org/a b.jpg ", " two \t lines\nof text ")])[0]
    assert row == (reference("HTTPS://h.org/a b.jpg", "two lines of text"))
    assert screened([("http://h/1", "c", " " + "AB" * 16)], columns=Columns(uid="id")) == [
        ("ab" * 16, "http://h/1", "c")
    ]


@pytest.mark.parametrize("uid", ["123", "", "g" * 32, "a" * 33, None])
def test_a_given_uid_has_32_hex_digits(uid: str | None) -> None:
    rows = [("http://h/1", "c", uid), ("http://h/1", "c", "0" * 32)]
    assert screened(rows, columns=Columns(uid="id")) == ["bad_uid", ("0" * 32, "http://h/1", "c")]


ODD_SPACE = st.sampled_from(list(" \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"))
TEXT = st.text(st.characters(codec="utf-8") | ODD_SPACE | st.sampled_from("ab\0\x7f\u200b\ufeff🙂"), max_size=30)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=20))
def test_every_text_is_normalised_as_python_would(pairs: list[tuple[str, str]]) -> None:
    rows = [(f" http://h.org/{url}", caption) for url, caption in pairs]
    for result, row in zip(screened(rows), rows, strict=True):
        expected = reference(*row)
        if isinstance(result, tuple):
            assert result == expected
        else:
            control = any(letter in CONTROL for letter in map(ord, expected[1]))
            assert result == ("no_caption" if not expected[2] else "bad_url")
            assert control or not expected[2]


@settings(deadline=None, max_examples=60)
@given(TEXT, TEXT, TEXT, TEXT)
def test_no_separator_confusion_in_uids(url: str, caption: str, url2: str, caption2: str) -> None:
    """Rows that differ after normalisation have different uids: nothing moves from URL to caption."""
    one, two = screened([(f"http://h/{url}", caption), (f"http://h/{url2}", caption2)])
    if isinstance(one, tuple) and isinstance(two, tuple):
        assert (one[0] == two[0]) == (one == two)


HOSTS = st.sampled_from(
    ["h.org", "127.0.0.1", "[::1]", "8.8.8.8", "localhost", "x.local", "me@h.org", "h", "h.org:80", "h.org:99999", ""]
) | st.sampled_from(
    ["a..b", "h.org\\", "%31%32%37.0.0.1", "2130706433", "xn--bcher-kva.ch", "bücher.ch", "1.2.3.4.5", "h.lan:8", "-"]
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["http://", "HTTPS://", "ftp://", "http:/", ""]), HOSTS, TEXT, st.booleans())
def test_a_url_that_is_sound_at_first_sight_is_so_with_care(scheme: str, host: str, path: str, private: bool) -> None:
    """The fast look at all URLs at once lets none pass that the careful one would not."""
    url = f"{scheme}{host}/{path}".strip()
    result = screened([(url, "c")], fetch={"allow_private": private})[0]
    assert (url_problem(url, private) or reference(url, "c")) == result


PRIVATE = ["127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "127.0.0.1.", "%31%32%37.0.0.1", "１２７.0.0.1"]
PRIVATE += [
    "127。0。0。1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.100.100.200",
    "0.0.0.0",
    "0",
]
PRIVATE += ["::1", "::", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "224.0.0.1"]
PRIVATE += ["64:ff9b::7f00:1", "2002:7f00:1::", "localhost", "LOCALHOST.", "a.localhost", "metadata", "printer.local"]


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_in_every_form(host: str) -> None:
    assert is_private(host)
    url = f"http://[{host}]/" if ":" in host else f"http://{host}/"
    assert screened([(url, "c")]) == ["private_host"]
    assert isinstance(screened([(url, "c")], fetch={"allow_private": True})[0], tuple)


@pytest.mark.parametrize(
    "host", ["8.8.8.8", "1.1", "2606:4700::1", "h", "localhost.com", "local.de", "127.example.org"]
)
def test_public_hosts_are_not_private(host: str) -> None:
    assert not is_private(host)


@settings(deadline=None, max_examples=60)
@given(st.ip_addresses(v=4))
def test_an_address_is_private_as_the_standard_says(address: ipaddress.IPv4Address) -> None:
    assert is_private(str(address)) == (not address.is_global or address.is_multicast)
    assert is_private(str(int(address))) == is_private(str(address))


def test_caption_rules() -> None:
    rows = [("http://h/1", text) for text in ("ab", "abc def", "a b c", "IMG_12.jpg of x", "größe über 1")]
    screen = {"min_caption_length": 3, "min_caption_words": 2, "max_caption_length": 12, "unwanted_captions": ["^a b"]}
    assert [row if isinstance(row, str) else "" for row in screened(rows, screen=screen)] == [
        "short_caption",
        "",
        "unwanted_caption",
        "long_caption",
        "",
    ]
    with pytest.raises(UserError, match=r"unwanted_captions: .*missing"):
        screened(rows, screen={"unwanted_captions": ["(a"]})


def test_a_condition_drops_what_it_does_not_hold_for() -> None:
    rows = [("http://h/1", "c", value) for value in (0.3, 0.28, 0.1, None, float("nan"))]
    kept = [isinstance(row, tuple) for row in screened(rows, where="similarity >= 0.28")]
    assert kept == [True, True, False, False, False]


def save_uids(path: Path, uids: list[int]) -> Path:
    np.save(path, np.array([(uid >> 64, uid & 2**64 - 1) for uid in uids], np.dtype("u8,u8")))
    return path


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 2**128 - 1) | st.integers(2**64 - 3, 2**64 + 3), max_size=50), st.data())
def test_a_uid_list_holds_what_a_set_does(tmp_path_factory: pytest.TempPathFactory, held: set[int], data) -> None:
    path = save_uids(tmp_path_factory.mktemp("uids") / "list.npy", sorted(held))
    others = data.draw(st.lists(st.integers(0, 2**128 - 1) | st.integers(2**64 - 5, 2**64 + 5), max_size=20))
    asked = [*others, *held]
    pairs = np.array([(uid >> 64, uid & 2**64 - 1) for uid in asked], np.uint64).reshape(-1, 2)
    assert UidList(path).holds(pairs).tolist() == [uid in held for uid in asked]


def test_only_listed_uids_stay(tmp_path: Path) -> None:
    save_uids(tmp_path / "keep.npy", [1, 7 << 64])
    rows = [("http://h/1", "c", f"{uid:032x}") for uid in (1, 2, 7 << 64)]
    results = screened(rows, tmp_path, columns=Columns(uid="id"), uids="keep.npy")
    assert [result if isinstance(result, str) else int(result[0], 16) for result in results] == [
        1,
        "not_in_uids",
        7 << 64,
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([(2, 0), (1, 0)], "u8,u8"), "not in ascending order.*np.sort"),
        (np.array([(1, 1), (1, 0)], "u8,u8"), "not in ascending order"),
        (np.arange(4, dtype="u8"), "holds uint64 of shape \\(4,\\), not uids"),
        (None, "is no .npy file of uids"),
    ],
)
def test_other_lists_are_refused(tmp_path: Path, content: np.ndarray | None, message: str) -> None:
    path = tmp_path / "list.npy"
    path.write_bytes(b"uids") if content is None else np.save(path, content)
    with pytest.raises(UserError, match=message):
        UidList(path)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2**128 - 1), min_size=1), st.integers(1, 100_000))
def test_work_items_of_many_are_those_of_each(uids: list[int], tasks: int) -> None:
    pairs = np.array([(uid >> 64, uid & 2**64 - 1) for uid in uids], np.uint64)
    assert to_hex(pairs).to_pylist() == [f"{uid:032x}" for uid in uids]
    assert Key("", lambda rows: pairs, tasks).items(pairs).tolist() == [work_item(f"{uid:032x}", tasks) for uid in uids]
