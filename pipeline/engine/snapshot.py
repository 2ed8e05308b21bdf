"""All that a checkpoint holds of this rank, copied to host memory where training goes on while it is written.

DeepSpeed writes through a `CheckpointEngine`; the one here catches what it is handed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from torch import Tensor

from pipeline.engine.engine import TrainEngine
from pipeline.engine.sharded_state import table_files
from pipeline.engine.tags import temporary_folder
from pipeline.engine.weight_average import AVERAGE

SHARDS = "objective-shards"
BESIDE_TENSORS = 2**16  # bytes per file that are not of its tensors, at most

Snapshot = dict[str, Any]  # by path within the tag: what torch.save (.pt), numpy (.npy) or JSON is to write there


def take(engine: TrainEngine, trainer_state: dict[str, Any], folder: Path, tag: str, copies: bool) -> Snapshot:
    """Collective. trainer_state: JSON-able, the same on every rank. copies: of everything, as training goes on."""
    rank = engine.world.rank
    with _writes_caught(engine.deepspeed, _Catcher(copies)) as caught:
        temporary = temporary_folder(folder, tag)
        engine.save(folder, temporary.name)
    snapshot = {str(path.relative_to(temporary)): state for path, state in caught.items()}
    snapshot[f"rng-{rank:05d}.pt"] = _rng_state()
    for name, rows in table_files(engine.objective.sharded_state()).items():
        snapshot[f"{SHARDS}/{name}"] = rows
    if engine.average is not None:
        snapshot |= {f"{AVERAGE}/{name}": content for name, content in engine.average.files().items()}
    objective_state = engine.objective.state_dict()  # collective: it may gather slices
    if rank == 0:
        snapshot["objective.pt"] = _on_host(objective_state, copies)
        shape = {"world_size": engine.world.size, "zero_stage": engine.zero_stage}
        snapshot["trainer.json"] = {**trainer_state, **shape}
    return snapshot


def size(snapshot: Snapshot) -> int:
    """Bytes that the files will need, or a little more."""
    return _bytes_of(snapshot) + BESIDE_TENSORS * len(snapshot)


def write(snapshot: Snapshot, folder: Path) -> None:
    """One file for each entry. Raises OSError when the disk does not take it."""
    for name, content in snapshot.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pt":
            _save_tensors(content, path)
        elif path.suffix == ".npy":
            np.save(path, content, allow_pickle=False)
        else:
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_tensors(content: Any, path: Path) -> None:
    with open(path, "wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # "unexpected pos 576 vs 534": what torch makes of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class _Catcher(CheckpointEngine):
    """Keeps what DeepSpeed saves, by path."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self._copies = copies
        self.caught: dict[Path, Any] = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        with suppress(OSError):  # one rank alone must not fail here; whoever writes will
            Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def save(self, state_dict: Any, path: str) -> None:
        self.caught[Path(path)] = _on_host(state_dict, self._copies)

    def load(self, path: str, map_location: Any = None) -> Any:
        raise NotImplementedError("only saves")

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True

    def preserves_storage_sharing(self) -> bool:
        return False


@contextmanager
def _writes_caught(engine: Any, catcher: _Catcher) -> Iterator[dict[Path, Any]]:
    """Inside the block the DeepSpeed engine writes no file; yields what it would have saved.

    With one exception: state that it keeps on NVMe it copies to the checkpoint by itself.
    """
    before = engine.checkpoint_engine
    engine.checkpoint_engine = catcher
    engine._copy_recovery_script = lambda folder: None  # its own export script; ours is `neuclip export`
    try:
        yield catcher.caught
    finally:
        engine.checkpoint_engine = before
        del engine._copy_recovery_script


def _on_host(value: Any, copies: bool) -> Any:
    """With `copies` it shares nothing with `value`, so that the next step may change that; else what it can.

    No views: a view is saved with its base.
    """
    if isinstance(value, Tensor):
        whole = value.device.type == "cpu" and value.untyped_storage().nbytes() == value.nbytes
        if whole and not copies:
            return value.detach()
        return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return type(value)((key, _on_host(item, copies)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_on_host(item, copies) for item in value)
    return copy.deepcopy(value)


def _bytes_of(value: Any) -> int:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.nbytes
    if isinstance(value, (dict, list, tuple)):
        return sum(_bytes_of(item) for item in (value.values() if isinstance(value, dict) else value))
    return 0


def _rng_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
