"""Training runs small enough for a test: recipes, one life of a run on some ranks, and the same without DeepSpeed.

What runs on ranks is called by name in their processes (`launch.run_ranks`), so it stands at the top of a module.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch

from pipeline.config.loader import load_recipe
from pipeline.config.schema import RunConfig
from pipeline.data.loader import Corpus, StepPositions, build_loader
from pipeline.distributed import World, rank, world_size
from pipeline.engine.engine import TrainEngine
from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.schedule import build_schedule
from pipeline.engine.train_module import TrainModule
from pipeline.models.two_tower import build_tokenizer, build_two_tower
from pipeline.objectives import Features, build_objective, objective_class
from pipeline.tracking.base import NullTracker
from pipeline.tracking.jsonl import JsonlTracker
from pipeline.trainer import Trainer
from pipeline.training_summary import summarise

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
RESNET = {**TINY, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
OBJECTIVES = {
    "neuclip": "{npn: {prototypes: 16, restart_every: 3, inner_steps: 2}}",
    "openclip": "{}",
    "siglip": "{}",
    "fastclip": "{}",
    "amorlip": "{}",
}


def config_of(corpus: Path, *overrides: str) -> RunConfig:
    """8 steps of 12 samples."""
    settings = (
        f"loader.manifest={corpus}",
        f"model.config={TINY}",
        "train.epochs=null",
        "train.steps=8",
        "train.global_batch_size=12",
        "optimizer.warmup=2",
        "loader.workers=0",
        "objectives.neuclip.npn={prototypes: 16, restart_every: 3, inner_steps: 2}",
        "diagnostics={every_steps: 4, reference_samples: 40}",
        "checkpoint.every=36 samples",
        "temperature.lr=0.01",
        "tracking.mlflow=false",
    )
    return load_recipe("demo", [*settings, *overrides])


def stage_file(folder: Path, stage: int) -> str:
    """A DeepSpeed config of that ZeRO stage which cuts up even the smallest parameters."""
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}))
    return str(path)


def here() -> World:
    """This rank, on the CPU."""
    return World(rank(), rank(), world_size(), torch.device("cpu"))


def whole_weights(engine: TrainEngine) -> dict[str, torch.Tensor]:
    """Of the towers, whichever rank holds what."""
    parameters = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def tensors_of(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Those in a state dict, at any depth: networks keep theirs in an `_extra_state`."""
    found = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            found[name] = value.detach().clone()
        elif isinstance(value, Mapping):
            found |= {f"{name}.{inner}": tensor for inner, tensor in tensors_of(value).items()}
    return found


def digest(tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


class StopAfter(JsonlTracker):
    """Asks for a stop, the way a colleague does, once the step before `step` is logged: the answer takes one more."""

    def __init__(self, path: Path, start_step: int, step: int) -> None:
        super().__init__(path, start_step)
        self._stop_file, self._step = path.parent.parent / "STOP", step

    def log(self, metrics: Any, step: int, samples_seen: int) -> None:
        super().log(metrics, step, samples_seen)
        if step == self._step - 1:
            self._stop_file.touch()


def fit(config: RunConfig, run_dir: Path, stop_after: int = -1) -> dict[str, Any]:
    """One life of a training run."""
    trainer = Trainer(config, run_dir / "train", here())
    started_at = trainer.progress.step
    tracker = NullTracker()
    if rank() == 0:
        tracker = StopAfter(run_dir / "train/metrics.jsonl", started_at, stop_after)
    status = trainer.fit(tracker)
    return {
        "status": status,
        "started_at": started_at,
        "weights": whole_weights(trainer.engine),
        "objective": digest(tensors_of(trainer.engine.objective.state_dict())),
        "order": trainer.progress.order_digest,
        "summary": summarise(trainer) if rank() == 0 else None,
    }


def train_undisturbed_and_interrupted(config: RunConfig, folder: Path) -> dict[str, Any]:
    whole = fit(config, folder / "whole")
    stopped = fit(config, folder / "stopped", stop_after=5)
    if rank() == 0:
        (folder / "stopped/STOP").unlink()
    torch.distributed.barrier()
    resumed = fit(config, folder / "stopped")
    return {"whole": whole, "stopped": stopped, "resumed": resumed}


def train(config: RunConfig) -> dict[str, Any]:
    """The engine's steps alone, without a trainer around them; metrics of each, read at once and after the last."""
    world = here()
    corpus = Corpus(config.loader, config.seed, 16, build_tokenizer(TINY))
    steps = config.train.steps or 0
    engine = TrainEngine(config, world, len(corpus), steps)
    positions = StepPositions(config.train.global_batch_size, world.rank, world.size, 0, steps)
    outputs, metrics = [], []
    for batch in build_loader(corpus, positions, config.loader, pin_memory=False):
        outputs.append(engine.step(batch))
        metrics.append({name: float(value) for name, value in outputs[-1].metrics.items()})
    later = [{name: float(value) for name, value in output.metrics.items()} for output in outputs]
    state = tensors_of(engine.objective.state_dict())
    return {"weights": whole_weights(engine), "objective": state, "metrics": metrics, "metrics_read_later": later}


def plain_loop(config: RunConfig, steps: int) -> dict[str, torch.Tensor]:
    """The weights after the same training without DeepSpeed: torch's AdamW, one process, the whole batch."""
    return plain_states(config, steps)["weights"]


def plain_states(config: RunConfig, steps: int) -> dict[str, Any]:
    """As `plain_loop`, with the objective's state, and the norm of the gradients at each step."""
    torch.manual_seed(config.seed)
    bias = objective_class(config.objective).default_logit_bias
    towers = build_two_tower(config.model, float(-torch.tensor(config.temperature.init).log()), bias)
    module = TrainModule(towers, config.temperature)
    optimizer = build_optimizer(module, config.optimizer, config.temperature)
    corpus = Corpus(config.loader, config.seed, 16, build_tokenizer(TINY))
    objective = build_objective(config.objective, config.objectives[config.objective])
    objective.prepare(torch.device("cpu"), 16, len(corpus), config.seed)
    schedule = build_schedule(config.optimizer, steps, config.train.global_batch_size, len(corpus))
    positions = StepPositions(config.train.global_batch_size, 0, 1, 0, steps)
    norms = []
    for step, batch in enumerate(build_loader(corpus, positions, config.loader, pin_memory=False)):
        encoded = module(batch.images, batch.tokens)
        features = Features(encoded.image_features, encoded.text_features)
        loss = objective(features, batch.sample_index, encoded.tau, encoded.logit_bias).loss
        for group in optimizer.param_groups:
            if group["name"] != "temperature":
                group["lr"] = schedule.rate(step)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), config.optimizer.clip_grad_norm)
        optimizer.step()
        module.towers.logit_scale.data.clamp_(*module.logit_scale_bounds)
        norms.append(float(norm))
    return {
        "weights": {name: parameter.detach().clone() for name, parameter in module.named_parameters()},
        "objective": tensors_of(objective.state_dict()),
        "norms": norms,
    }


def hurt(tag: Path, damage: str) -> None:
    """Damages a checkpoint, as disks and kills do."""
    victim = max(tag.glob("*optim_states.pt"))
    if damage == "truncate":
        os.truncate(victim, victim.stat().st_size - 1)
    elif damage == "flip":
        content = bytearray(victim.read_bytes())
        content[1000] ^= 1
        victim.write_bytes(content)
    elif damage == "delete":
        victim.unlink()
    elif damage == "no COMPLETE":
        (tag / "COMPLETE").unlink()
    elif damage == "empty COMPLETE":
        (tag / "COMPLETE").write_text("")
