"""Named tensors and what is to be known of them in one file: whole or absent, and read only if it is what was written.

Safetensors, so that reading runs no code; the digest of the tensors is written with them, because a flipped bit would
otherwise be another number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.files import atomic_open

_NOTE = "neuclip"  # one, as safetensors writes several in any order


class TensorFile(NamedTuple):
    """What a file holds. about: JSON-able."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write the file, atomically. about: JSON-able."""
    whole = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    said = json.dumps(about)
    content = save(whole, {_NOTE: f"{_digest(whole, said)} {said}"})
    with atomic_open(path) as stream:
        stream.write(content)


def read_tensors(path: Path) -> TensorFile | None:
    """What was written; None where there is nothing, or anything else than what `write_tensors` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            digest, _, said = (file.metadata() or {}).get(_NOTE, "").partition(" ")
        return TensorFile(tensors, json.loads(said)) if digest == _digest(tensors, said) else None
    except (OSError, SafetensorError, UnicodeDecodeError):
        return None


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
