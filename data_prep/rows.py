"""What makes a row: its texts, normalised, and its uid.

A uid is 128 bits: 32 hex digits in files, and in arrays of shape [rows, 2] (uint64) its upper and lower 64 bits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ROW_SCHEMA = pa.schema([("uid", pa.string()), ("url", pa.string()), ("caption", pa.string())])
# Names that every sample's JSON, or the plan, has for something else.
TAKEN = {*ROW_SCHEMA.names, "width", "height", "sha256", "original_width", "original_height", "original_sha256"}
_SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_CONTROL = "".join(map(chr, range(0x20))) + "\x7f"
_ODD = "".join(f"\\x{{{ord(letter):x}}}" for letter in sorted({*_SPACE, *_CONTROL} - {" "}))
_ODD_SPACE = f"[ {_ODD}]{{2,}}|[{_ODD}]"
_DIGITS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)
_UID = "^[0-9a-f]{32}$"


def trimmed(texts: pa.Array) -> pa.Array:
    """Without white space at both ends; null becomes the empty text."""
    return pc.utf8_trim(pc.fill_null(texts, ""), _SPACE)


def one_line(texts: pa.Array) -> pa.Array:
    """Every run of white space and control characters is one space, none at the ends; null becomes the empty text."""
    return pc.utf8_trim(pc.replace_substring_regex(pc.fill_null(texts, ""), _ODD_SPACE, " "), " ")


def own_uids(urls: pa.Array | pa.ChunkedArray, captions: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The uid of a row whose corpus gives none: the first 128 bits of sha256(url, NUL, caption)."""
    wide = pa.large_binary()
    joined = pc.binary_join_element_wise(urls.cast(wide), captions.cast(wide), pa.scalar(b"\0", wide))
    return hashed(joined.to_pylist())


def given_uids(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The uids that a corpus gives, and which rows have one: bool [rows]."""
    digits = pc.utf8_lower(trimmed(texts))
    sound = pc.match_substring_regex(digits, _UID)
    content = bytes.fromhex("".join(pc.if_else(sound, digits, "0" * 32).to_pylist()))
    return _from_bytes(content), sound.to_numpy(zero_copy_only=False)


def hashed(contents: Iterable[bytes]) -> np.ndarray:
    """The first 128 bits of each content's sha256, uint64 [contents, 2]."""
    return _from_bytes(b"".join([hashlib.sha256(content).digest()[:16] for content in contents]))


def to_hex(uids: np.ndarray) -> pa.Array:
    """The 32 hex digits of each uid, a string array."""
    digits = _DIGITS[np.ascontiguousarray(uids.astype(">u8")).view(np.uint8).reshape(-1)]
    offsets = np.arange(len(uids) + 1, dtype=np.int32) * 32
    return pa.Array.from_buffers(pa.string(), len(uids), [None, pa.py_buffer(offsets), pa.py_buffer(digits)])


def is_uid(text: str) -> bool:
    """Whether a text is a uid's 32 hex digits."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def work_item(uid: str, tasks: int) -> int:
    """Which of `tasks` work items a uid is dealt to: a function of the uid, so duplicates always meet."""
    return int(uid[16:], 16) % tasks


def _from_bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, ">u8").reshape(-1, 2).astype(np.uint64)
