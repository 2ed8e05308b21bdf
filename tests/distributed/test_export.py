"""Exported weights are the trained ones, whatever ZeRO stage saved them and whatever was locked."""

from __future__ import annotations

import os
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipeline.engine.consolidated import LazyTensor, consolidated
from pipeline.engine.export import export
from pipeline.engine.safetensors_stream import write_safetensors
from pipeline.errors import UserError
from pipeline.models.two_tower import load_exported
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import RESNET, config_of, fit

LOCKED = ("model.lock_image=0", "model.lock_text=1")


@pytest.mark.parametrize(
    ("stage", "ranks", "settings"),
    [
        ("zero0", 1, LOCKED),
        ("zero2", 2, LOCKED),
        ("zero3", 3, (f"model.config={RESNET}", "model.lock_text=1")),
    ],
)
def test_exported_is_what_was_trained(
    noise_corpus: Path, tmp_path: Path, stage: str, ranks: int, settings: tuple[str, ...]
) -> None:
    config = config_of(noise_corpus, f"train.deepspeed={stage}", "train.steps=2", *settings)
    trained = run_ranks(ranks, fit, config, tmp_path)[0]["weights"]
    export(tmp_path / "train/checkpoints", tmp_path / "model")
    exported: Any = load_exported(tmp_path / "model", torch.device("cpu")).model.state_dict()
    for name, weights in trained.items():
        assert torch.equal(exported[name.removeprefix("towers.")].reshape(weights.shape), weights), name
    assert exported.get("visual.bn1.num_batches_tracked", 2) == 2


def lazy(tensor: Tensor) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    """So that a model of any size can be exported, and a rank's memory does not hold it twice."""
    held: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = []

    def read() -> Tensor:
        tensor = torch.zeros(1000)
        held.add(tensor)
        most.append(len(held))
        return tensor

    tensors = {str(number): LazyTensor((1000,), torch.float32, read) for number in range(5)}
    with open(tmp_path / "model.safetensors", "wb") as stream:
        write_safetensors(stream, tensors)
    assert most == [1] * 5


def test_safetensors_reads_what_is_streamed(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5).t(),
        "half": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
        "a": torch.tensor([-1, 2**40]),
        "flag": torch.tensor([True, False]),
    }
    with open(tmp_path / "streamed.safetensors", "wb") as stream:
        write_safetensors(stream, {name: lazy(tensor) for name, tensor in tensors.items()})
    found = safetensors.torch.load_file(tmp_path / "streamed.safetensors")
    for name, tensor in tensors.items():
        expected = tensor.float() if tensor.is_floating_point() else tensor.long()
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("malice-was-here",)


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"])
def test_no_code_of_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"module": Malice()}, tmp_path / name)
    with pytest.raises(UserError, match=r"no checkpoint of this program|could run code"):
        consolidated(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Malice()))
    with pytest.raises(UserError, match=r"no checkpoint of this program|could run code"):
        consolidated(tmp_path)
    assert not (tmp_path / "malice-was-here").exists()
