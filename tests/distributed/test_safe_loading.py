"""A checkpoint from somebody else, digests and all, runs no code: not when resumed, converted or exported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.schema import RunConfig
from pipeline.engine.export import export
from pipeline.engine.tags import COMPLETE, find_damage
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file, write_json
from pipeline.trainer import Trainer
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import config_of, fit, here


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def poison(run_dir: Path, name: str, proof: Path) -> Path:
    """Put code into a file of the only tag, and its new digest into COMPLETE."""
    (tag,) = (run_dir / "train/checkpoints").glob("step-*")
    (victim,) = tag.glob(name)
    if victim.suffix == ".npy":
        np.save(victim, np.array([Malice(proof)], dtype=object), allow_pickle=True)
    else:
        content = torch.load(victim, weights_only=False)
        torch.save({**content, "more": Malice(proof)}, victim)
    complete = read_json(tag / COMPLETE)
    described = {"bytes": victim.stat().st_size, "sha256": sha256_file(victim)}
    complete["files"][str(victim.relative_to(tag))] = described
    write_json(tag / COMPLETE, complete)
    assert find_damage(tag) is None
    return tag


def refusals(config: RunConfig, elsewhere: RunConfig, folder: Path) -> dict[str, tuple[str, bool]]:
    """By attack: what was said, and whether the code ran."""
    fit(config, folder / "whole")
    forced = os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD")  # the attacker's own machine
    attacks: list[tuple[str, str, Callable[[Path], Any]]] = []
    for name in ("mp_rank_00_model*", "zero_pp_rank_0*", "objective.pt", "rng-00000.pt", "objective-shards/*.0.npy"):
        attacks.append(("resume", name, lambda run: Trainer(config, run / "train", here())))
    for name in ("mp_rank_00_model*", "zero_pp_rank_0*"):
        attacks.append(("convert", name, lambda run: Trainer(elsewhere, run / "train", here())))
    # Of stage 2 this file alone is opened for an export; tests/distributed/test_export.py attacks those of stage 3.
    attacks.append(("export", "mp_rank_00_model*", lambda run: export(run / "train/checkpoints", run / "model")))
    runs = []
    for number, (_, name, _) in enumerate(attacks):
        shutil.copytree(folder / "whole", folder / str(number))
        poison(folder / str(number), name, folder / f"proof-{number}")
        runs.append(folder / str(number))
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = forced
    found = {}
    for number, (verb, name, attack) in enumerate(attacks):
        with pytest.raises(UserError) as caught:
            attack(runs[number])
        found[f"{verb} {name}"] = (str(caught.value), (folder / f"proof-{number}").exists())
    return found


def test_no_file_of_a_checkpoint_runs_code(noise_corpus: Path, tmp_path: Path) -> None:
    tables = ("objective=fastclip", "objectives.fastclip={}", "train.steps=3")
    config = config_of(noise_corpus, *tables)
    (found,) = run_ranks(1, refusals, config, config_of(noise_corpus, *tables, "train.deepspeed=zero1"), tmp_path)
    assert len(found) == 8
    for attack, (said, ran) in found.items():
        assert not ran, attack
        if attack.startswith("resume") and "npy" in attack:
            assert "is not a whole .npy file" in said
        elif attack.startswith("convert"):
            assert "cannot be converted" in said
            assert "Weights only load failed" in said
        else:
            assert "it could run code" in said, attack
