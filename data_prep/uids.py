"""Sets of uids in DataComp's form, an array of two 64-bit halves each, at 16 bytes per uid."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.files import atomic_open

HALVES = np.dtype("u8,u8")  # of a uid's 32 hex digits: the first 16, the last 16
_KEY = np.dtype("S16")  # big-endian bytes: they sort as the hex digits do, and all have the same length


def keys(uids: Iterable[str]) -> np.ndarray:
    """(n,) S16: the bytes of n uids of 32 hex digits. Raises ValueError where one is not."""
    content = b"".join(bytes.fromhex(uid) for uid in uids)
    return np.frombuffer(content, _KEY)


def hex_uids(found: np.ndarray) -> list[str]:
    """The 32 hex digits of each of (n,) S16 keys."""
    content = np.ascontiguousarray(found).tobytes().hex()
    return [content[start : start + 32] for start in range(0, len(content), 32)]


def save_sorted(path: Path, target: Path) -> int:
    """Read a .npy of uids (dtype u8,u8, any order) and write them sorted, as S16 keys; returns how many.

    Holds 16 bytes per uid in memory. Raises UserError when the file holds something else.
    """
    try:
        halves = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no .npy file of uids: {error}") from error
    if halves.ndim != 1 or halves.dtype.itemsize != 16 or len(halves.dtype.descr) != 2:
        raise UserError(f"{path} holds {halves.dtype} of shape {halves.shape}, not uids (dtype u8,u8, one dimension)")
    ordered = halves.astype(np.dtype(">u8,>u8")).view(_KEY).reshape(-1)
    ordered.sort()
    with atomic_open(target) as stream:
        np.save(stream, ordered)
    return len(ordered)


def contained(found: np.ndarray, in_sorted: np.ndarray) -> np.ndarray:
    """(n,) bool: which of (n,) keys are among (m,) sorted ones."""
    if not len(in_sorted):
        return np.zeros(len(found), dtype=bool)
    places = np.searchsorted(in_sorted, found)
    return in_sorted[np.minimum(places, len(in_sorted) - 1)] == found
