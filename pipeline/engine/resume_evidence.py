"""What a resumed optimizer must have in common with the saved one: a few numbers, the same for every ZeRO stage.

They are written with a checkpoint and measured again after it is loaded, also on other ranks or under another stage, so
that a run never goes on quietly with fresh moments, or with the step count, rate or tau of another moment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from deepspeed.utils import safe_get_local_optimizer_state
from torch import Tensor

from pipeline import collectives
from pipeline.engine.elastic import MOMENTS
from pipeline.engine.lean_deepspeed import deepspeed
from pipeline.engine.parameter_norms import unpadded
from pipeline.engine.schedule import temperature_rate
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.engine.engine import TrainEngine

UPDATES = "AdamW's step count of"
ROUNDING = 1e-6  # relative: the sums are made in another order on other ranks


@torch.no_grad()
def resume_evidence(engine: TrainEngine) -> dict[str, float]:
    """Numbers by what they are, the same on every rank; collective. Norms are Euclidean, rates of the next update."""
    scale = engine.module.towers.logit_scale
    with deepspeed.zero.GatheredParameters([scale]):
        tau = math.exp(-float(scale))
    found = {
        "tau": tau,
        "learning rate": engine.schedule.rate(engine.step_number),
        "learning rate of tau": temperature_rate(tau, engine.config.temperature),
    }
    for group, norm in engine.parameter_norms().items():
        found[f"norm of the weights of {group}"] = float(norm)
    steps, squares = _steps(engine), {moment: _squares(engine, moment) for moment in MOMENTS}
    for group in engine.groups:
        local = torch.tensor([steps[group], *(squares[moment][group] for moment in MOMENTS)], dtype=torch.float64)
        mean = collectives.all_reduce(local.to(engine.world.device), "mean").tolist()
        copies = engine.world.size if engine.zero_stage == 0 else 1
        found[f"{UPDATES} {group}"] = mean[0]
        for moment, square in zip(MOMENTS, mean[1:], strict=True):
            found[f"norm of {moment} of {group}"] = math.sqrt(square * engine.world.size / copies)
    return found


def updates_made(trainer_state: Mapping[str, Any]) -> int:
    """AdamW's step count when this was saved: under fp16 less than the steps, as some are skipped."""
    counts = [value for name, value in trainer_state.get("evidence", {}).items() if name.startswith(UPDATES)]
    return int(max(counts, default=trainer_state["step"]))


def refuse_non_finite(evidence: Mapping[str, float], step: int) -> None:
    """Raise UserError rather than save what cannot be trained on."""
    ill = [f"the {name} is {value}" for name, value in evidence.items() if not math.isfinite(value)]
    if ill:
        raise UserError(
            f"step {step}: {', '.join(ill)}. The run stops and does not save this; the last checkpoint is from before "
            "this step. Try a lower optimizer.lr"
        )


def refuse_changed(saved: Mapping[str, float], resumed: Mapping[str, float], where: str) -> None:
    """Raise UserError, with what differs, unless both are the same but for rounding. where: what was loaded."""
    lines = [
        f"{name}: {saved.get(name)} saved, {resumed.get(name)} resumed"
        for name in sorted({*saved, *resumed})
        if not math.isclose(saved.get(name, math.nan), resumed.get(name, math.nan), rel_tol=ROUNDING)
    ]
    if lines:
        raise UserError(
            f"{where} was loaded, but training would not go on from what was saved:\n  " + "\n  ".join(lines) + "\n"
            "Nothing was changed on disk. Resume with the ranks, the train.deepspeed and the versions of torch and "
            "DeepSpeed that it was saved with (its trainer.json), or remove that folder to go on from the one before"
        )


def _steps(engine: TrainEngine) -> dict[str, float]:
    """AdamW's count of updates by group, the mean over what this rank updates."""
    counts: dict[str, list[float]] = {group: [] for group in engine.groups}
    for group, flat in _flat(engine):
        counts[group].append(float(_inner(engine).state.get(flat, {}).get("step", 0)))
    return {group: sum(found) / max(1, len(found)) for group, found in counts.items()}


def _squares(engine: TrainEngine, moment: str) -> dict[str, float]:
    """The squared norm of a moment by group, of what this rank holds."""
    squares = dict.fromkeys(engine.groups, 0.0)
    if engine.zero_stage == 3:  # its flat tensors have padding that nobody defines
        for group, parameters in engine.groups.items():
            for parameter in parameters:
                part = safe_get_local_optimizer_state(parameter, moment)
                squares[group] += _square(unpadded(parameter, part, engine.world.rank))
        return squares
    for group, flat in _flat(engine):
        value = _inner(engine).state.get(flat, {}).get(moment)
        squares[group] += 0.0 if value is None else _square(value)
    return squares


def _flat(engine: TrainEngine) -> list[tuple[str, Tensor]]:
    """(group, tensor) of what AdamW updates on this rank."""
    groups = _inner(engine).param_groups
    if engine.zero_stage == 3:
        zero = engine.optimizer
        flat = enumerate(zero.fp32_partitioned_groups_flat)
        return [(groups[zero.sub_group_to_group_id[number]]["name"], tensor) for number, tensor in flat]
    return [(group["name"], tensor) for group in groups for tensor in group["params"]]


def _inner(engine: TrainEngine) -> Any:
    return engine.optimizer if engine.zero_stage == 0 else engine.optimizer.optimizer


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
