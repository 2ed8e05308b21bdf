"""Tables with a row per sample of the dataset, of which every rank holds `own_slice(N)`, as files.

    <folder>/<table>.<first row>.npy     one per table and rank; together the rows 0 to N, in any cut

No rank ever holds, sends or reads a whole table: each writes its rows, and maps what it needs of the files that
overlap its rows at load, whatever number of ranks wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.collectives import all_reduce, own_slice
from pipeline.errors import UserError


def table_files(tables: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copies of this rank's rows of each table, by file name; collective.

    tables: by name, the same names on every rank, (n, ...).
    """
    files = {}
    for name, rows in tables.items():
        own = own_slice(_total_rows(rows))
        if own.stop > own.start:  # an empty slice would take the next one's file name
            files[_file_name(name, own.start)] = rows.to("cpu", copy=True).numpy()
    return files


def load_tables(folder: Path, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This rank's rows of each table, on the CPU; collective. tables: as allocated, the same names and shapes.

    Raises UserError when the folder holds other tables, tables of another number of rows, or damaged files.
    """
    starts: dict[str, list[int]] = {}
    for path in folder.glob("*.npy"):
        name, start = path.stem.rsplit(".", 1)
        starts.setdefault(name, []).append(int(start))
    if set(starts) != set(tables):
        raise UserError(
            f"{folder} holds the tables {sorted(starts)} and this run's objective keeps {sorted(tables)}: set the "
            "objective and its options as they were, or start a new run"
        )
    return {name: _load(folder, name, sorted(starts[name]), rows) for name, rows in tables.items()}


def _load(folder: Path, name: str, starts: list[int], allocated: Tensor) -> Tensor:
    total = _total_rows(allocated)
    own = own_slice(total)
    last = _map(folder / _file_name(name, starts[-1]))
    saved_total = starts[-1] + last.shape[0]
    if starts[0] != 0 or saved_total != total or last.shape[1:] != allocated.shape[1:]:
        raise UserError(
            f"{folder} holds rows {starts[0]} to {saved_total} of {name}, {last.shape[1:]} each, and this run needs "
            f"0 to {total}, {tuple(allocated.shape[1:])} each: resume on the same dataset, or start a new run"
        )
    rows = torch.empty_like(allocated, device="cpu")
    for start, stop in zip(starts, [*starts[1:], total], strict=True):
        first, end = max(start, own.start), min(stop, own.stop)
        if first >= end:
            continue
        path = folder / _file_name(name, start)
        part = _map(path)
        if part.shape[0] != stop - start:
            raise UserError(
                f"{path} holds {part.shape[0]} rows, and the next file begins {stop - start} after it: a file is "
                "missing or from another save. Restore the folder from a copy, or resume from an older checkpoint"
            )
        rows[first - own.start : end - own.start] = torch.from_numpy(part[first - start : end - start].copy())
    return rows


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is not a whole .npy file ({error}): restore it from a copy, or resume from an older checkpoint"
        ) from error


def _file_name(name: str, first_row: int) -> str:
    return f"{name}.{first_row}.npy"


def _total_rows(rows: Tensor) -> int:
    return int(all_reduce(torch.tensor([rows.shape[0]], device=rows.device), "sum"))
