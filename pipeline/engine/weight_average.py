"""The exponential moving average of the trained weights, each rank keeping a part.

Where every rank has whole parameters (ZeRO 0 to 2), rank r keeps its cut of all of them laid end to end; under stage 3
its average is of the part of each parameter that it has anyway. On disk it is one flat file per rank, 00000.npy and so
on, and the parameters' sizes in order; what lies where follows from them, the number of ranks and the stage, so that a
run of any other shape, and the export, find their pieces.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.distributed import World
from pipeline.errors import UserError
from pipeline.files import read_json

AVERAGE = "weight-average"  # the folder within a checkpoint
SIZES = "sizes.json"


class Piece(NamedTuple):
    """Elements [start, stop) of a parameter, flattened."""

    name: str
    start: int
    stop: int


class WeightAverage:
    """average <- d average + (1 - d) weights after every update; d = min(decay, (1 + t) / (10 + t)) at update t.

    decay: d in the long run; early on the average forgets the random start faster (as TensorFlow's
    ExponentialMovingAverage does).
    """

    def __init__(self, module: nn.Module, decay: float, world: World) -> None:
        """module: as DeepSpeed left it, with its parameters partitioned under stage 3."""
        self._decay, self._rank = decay, world.rank
        self._parameters: dict[str, Any] = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._sizes = {name: getattr(p, "ds_numel", p.numel()) for name, p in self._parameters.items()}
        partitioned = any(hasattr(p, "ds_tensor") for p in self._parameters.values())
        self._pieces = list(pieces_of(self._sizes, partitioned, world.rank, world.size))
        self._averages = [part.clone() for part in self._parts()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """step: updates made so far, this one included."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._parts(), weight)

    def files(self) -> dict[str, Any]:
        """Copies of what this rank saves, by file name: its pieces end to end, (n,) fp32; rank 0 also the sizes."""
        flat = torch.cat([average.cpu() for average in self._averages] or [torch.zeros(0)]).numpy()
        return {_file_name(self._rank): flat, **({SIZES: dict(self._sizes)} if self._rank == 0 else {})}

    def load(self, folder: Path, ranks: int, zero_stage: int) -> None:
        """Read this rank's pieces of what `ranks` ranks saved under `zero_stage`.

        Raises UserError when the folder does not hold the average of this model.
        """
        saved = SavedAverage(folder, ranks, zero_stage)
        if saved.sizes != self._sizes:
            raise UserError(f"{folder} holds the average of another model, or of one with other parts locked")
        for piece, average in zip(self._pieces, self._averages, strict=True):
            average.copy_(saved.read(piece))

    def _parts(self) -> list[Tensor]:
        return [_part(self._parameters[piece.name], piece) for piece in self._pieces]


class SavedAverage:
    """The files of one checkpoint, mapped."""

    def __init__(self, folder: Path, ranks: int, zero_stage: int) -> None:
        """Raises UserError when files are missing or do not fit."""
        self.sizes: dict[str, int] = _read(folder / SIZES, read_json)
        self._where: dict[str, list[tuple[Piece, np.ndarray]]] = {name: [] for name in self.sizes}
        for rank in range(ranks):
            pieces = list(pieces_of(self.sizes, zero_stage == 3, rank, ranks))
            lengths = [piece.stop - piece.start for piece in pieces]
            path = folder / _file_name(rank)
            flat = _read(path, partial(np.load, mmap_mode="r", allow_pickle=False))
            if flat.shape != (sum(lengths),):
                raise UserError(f"{path} holds {flat.shape} averages, not the {sum(lengths)} of this model")
            for piece, end in zip(pieces, itertools.accumulate(lengths), strict=True):
                self._where[piece.name].append((piece, flat[end - (piece.stop - piece.start) : end]))

    def read(self, wanted: Piece) -> Tensor:
        """(stop - start,) fp32."""
        out = np.empty(wanted.stop - wanted.start, np.float32)
        for piece, values in self._where[wanted.name]:
            low, high = max(piece.start, wanted.start), min(piece.stop, wanted.stop)
            if low < high:
                out[low - wanted.start : high - wanted.start] = values[low - piece.start : high - piece.start]
        return torch.from_numpy(out)


def _file_name(rank: int) -> str:
    return f"{rank:05d}.npy"


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}, of the average of the weights, cannot be read: {error}") from error


def pieces_of(sizes: Mapping[str, int], partitioned: bool, rank: int, ranks: int) -> Iterator[Piece]:
    """What a rank keeps, in the order of its file. partitioned: as ZeRO-3 does, every parameter by itself."""
    if partitioned:
        for name, size in sizes.items():
            part = -(-size // ranks)
            yield Piece(name, min(rank * part, size), min((rank + 1) * part, size))
        return
    total, first = sum(sizes.values()), 0
    start, stop = total * rank // ranks, total * (rank + 1) // ranks
    for name, size in sizes.items():
        low, high = max(start - first, 0), min(stop - first, size)
        if low < high:
            yield Piece(name, low, high)
        first += size


def _part(parameter: Any, piece: Piece) -> Tensor:
    """The piece of a parameter that this rank has."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor[: piece.stop - piece.start]
    return parameter.data.flatten()[piece.start : piece.stop]
