"""The whole fp32 weights of a checkpoint, one tensor at a time, from the files of any number of ranks.

Files are mapped, not read: memory holds one tensor, whatever the model's size. No code in them is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.engine.safe_loading import loading
from pipeline.errors import UserError


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of this shape and type, which `read` brings into memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def consolidated(tag_folder: Path) -> dict[str, LazyTensor]:
    """Parameters and buffers by name. tag_folder: as DeepSpeed saved it under any ZeRO stage.

    Raises UserError for files that are not such a checkpoint's.
    """
    whole = tag_folder / "mp_rank_00_model_states.pt"
    try:
        with loading(tag_folder):
            return _whole(_load(whole)["module"]) if whole.is_file() else _partitioned(tag_folder)
    except (OSError, RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{tag_folder} is no checkpoint of this program: {reason}") from error


def _whole(state: dict[str, Tensor]) -> dict[str, LazyTensor]:
    """Under the stages 0 to 2 rank 0 saves everything."""
    return {name: _lazy(tensor) for name, tensor in state.items()}


def _lazy(tensor: Tensor) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), tensor.dtype, tensor.detach)


def _partitioned(tag_folder: Path) -> dict[str, LazyTensor]:
    """Under stage 3 each rank saves its part of every parameter: trained ones laid end to end, locked ones by name."""
    models = [_load(path) for path in _by_rank(tag_folder, "model")]
    flat = [_load(path)["optimizer_state_dict"]["fp32_flat_groups"] for path in _by_rank(tag_folder, "optim")]
    tensors = {name: _lazy(models[0]["module"][name]) for name in models[0]["buffer_names"]}
    for name, shape in (models[0]["frozen_param_shapes"] or {}).items():
        tensors[name] = _joined(shape, [model["frozen_param_fragments"][name] for model in models])
    start = 0
    for name, shape in ((name, shape) for group in models[0]["param_shapes"] for name, shape in group.items()):
        length = -(-shape.numel() // len(flat))
        parts = [_cut(groups, start, length) for groups in flat]
        tensors[name] = LazyTensor(tuple(shape), torch.float32, partial(_read_and_join, shape, parts))
        start += length
    return tensors


def _joined(shape: torch.Size, parts: list[Tensor]) -> LazyTensor:
    return LazyTensor(tuple(shape), parts[0].dtype, lambda: _join(shape, parts))


def _join(shape: torch.Size, parts: list[Tensor]) -> Tensor:
    """Without the padding behind the last part."""
    return torch.cat([part.detach().flatten() for part in parts])[: shape.numel()].view(shape)


def _read_and_join(shape: torch.Size, parts: list[Callable[[], Tensor]]) -> Tensor:
    return _join(shape, [read() for read in parts])


def _cut(groups: list[Tensor], start: int, length: int) -> Callable[[], Tensor]:
    """[start, start + length) of tensors laid end to end."""

    def read() -> Tensor:
        pieces, first = [], 0
        for group in groups:
            low, high = max(start - first, 0), min(start + length - first, len(group))
            if low < high:
                pieces.append(group[low:high])
            first += len(group)
        return torch.cat(pieces)

    return read


def _by_rank(tag_folder: Path, kind: str) -> list[Path]:
    pattern = f"zero_pp_rank_*_mp_rank_00_{kind}_states.pt"
    return sorted(tag_folder.glob(pattern), key=lambda path: int(path.name.split("_")[3]))


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
