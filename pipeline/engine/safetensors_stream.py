"""Writing safetensors one tensor at a time; the library's own writer wants all of them in memory at once.

The format: eight bytes with the header's length, the header as JSON, the tensors' bytes (safetensors' README).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import IO

import torch

from pipeline.engine.consolidated import LazyTensor

INTEGER, REAL = "I64", "F32"


def write_safetensors(stream: IO[bytes], tensors: Mapping[str, LazyTensor]) -> None:
    """Write the tensors, real ones as fp32, the others as int64, in the order of their names."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + _dtype(tensors[name]).itemsize * math.prod(tensors[name].shape)
        kind = REAL if tensors[name].dtype.is_floating_point else INTEGER
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # readers map the tensors, which wants them aligned
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in sorted(tensors):
        _write(stream, tensors[name])


def _write(stream: IO[bytes], tensor: LazyTensor) -> None:
    """In a function of its own, so that it is gone when the next one is read."""
    value = tensor.read().to(_dtype(tensor)).contiguous()
    stream.write(value.view(-1).numpy().data)


def _dtype(tensor: LazyTensor) -> torch.dtype:
    return torch.float32 if tensor.dtype.is_floating_point else torch.int64
