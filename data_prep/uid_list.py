"""Which uids stay: a list in DataComp's form, which is never loaded as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.errors import UserError

_CHECK_ROWS = 1 << 20


class UidList:
    """The uids of a file in DataComp's form: .npy of pairs (dtype u8,u8), in ascending order. It stays on disk."""

    def __init__(self, path: Path) -> None:
        """Raises UserError when the file is of another form or not in order."""
        try:
            pairs = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is no .npy file of uids: {error}") from error
        if pairs.ndim != 1 or pairs.dtype != np.dtype("u8,u8"):
            raise UserError(f"{path} holds {pairs.dtype} of shape {pairs.shape}, not uids (dtype u8,u8, one per row)")
        self._upper, self._lower = pairs["f0"], pairs["f1"]
        for start in range(0, len(pairs) - 1, _CHECK_ROWS):
            upper, lower = self._upper[start : start + _CHECK_ROWS + 1], self._lower[start : start + _CHECK_ROWS + 1]
            if not _before(upper[:-1], lower[:-1], upper[1:], lower[1:], or_equal=True).all():
                raise UserError(
                    f"{path} is not in ascending order, as DataComp's lists are: sort it once, by "
                    "`np.save(path, np.sort(np.load(path)))`"
                )

    def __len__(self) -> int:
        return len(self._upper)

    def holds(self, uids: np.ndarray) -> np.ndarray:
        """Which of `uids` (uint64 [rows, 2], as in `rows.py`) are in the list, bool [rows]: all bisected at once."""
        low, high = np.zeros(len(uids), np.int64), np.full(len(uids), len(self), np.int64)
        upper, lower = uids[:, 0], uids[:, 1]
        for _ in range(len(self).bit_length()):
            middle = np.minimum((low + high) // 2, len(self) - 1)
            right = (low < high) & _before(self._upper[middle], self._lower[middle], upper, lower)
            low, high = np.where(right, middle + 1, low), np.where(right, high, np.minimum(high, middle))
        found = low < len(self)
        there = low[found]
        found[found] = (self._upper[there] == upper[found]) & (self._lower[there] == lower[found])
        return found


def _before(
    upper: np.ndarray, lower: np.ndarray, upper2: np.ndarray, lower2: np.ndarray, or_equal: bool = False
) -> np.ndarray:
    later = lower <= lower2 if or_equal else lower < lower2
    return (upper < upper2) | ((upper == upper2) & later)
