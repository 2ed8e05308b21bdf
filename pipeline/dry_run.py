"""`neuclip train RECIPE --dry-run`: what a run would be and need, before a GPU is asked for."""

from __future__ import annotations

import yaml

from data_prep.manifest import read_manifest
from pipeline.config.schema import RunConfig
from pipeline.engine import cost
from pipeline.engine.deepspeed_config import deepspeed_config, local_batch_size, micro_batch_size, zero_stage
from pipeline.engine.micro_batches import refuse_batch_norm
from pipeline.engine.schedule import build_schedule
from pipeline.errors import UserError
from pipeline.objectives import REGISTRY
from pipeline.trainer import total_steps

GIB, MIB = 2**30, 2**20


def describe(config: RunConfig, ranks: int) -> str:
    """The resolved config and the estimates, as text. ranks: GPUs of the whole run.

    Raises UserError as the run itself would: for a batch that the ranks do not divide, a wrong DeepSpeed config,
    starting weights that are not there.
    """
    batch_size = local_batch_size(config, ranks)
    stage = zero_stage(deepspeed_config(config, ranks))
    samples, source = _samples_per_epoch(config)
    steps = total_steps(config, samples)
    schedule = build_schedule(config.optimizer, steps, config.train.global_batch_size, samples)
    towers = cost.towers_on_meta(config)
    if micro_batch_size(config, ranks) < batch_size:
        refuse_batch_norm(towers)
    sizes = cost.tower_sizes(towers)
    seen = steps * config.train.global_batch_size
    saved = cost.objective_state_bytes(config.objective, config, 1, samples)
    checkpoint = cost.checkpoint_bytes(sizes.total, saved, averaged=config.train.ema_decay is not None)
    lines = [
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        f"model        {config.model.name}: {sizes.total / 1e6:.1f} M parameters "
        f"({sizes.image / 1e6:.1f} M image, {sizes.text / 1e6:.1f} M text and the rest)",
        f"data         {samples:,} samples per epoch ({source})",
        f"length       {steps:,} steps of {config.train.global_batch_size}: "
        f"{seen:,} samples, {seen / samples:.2f} epochs",
        f"rate         {schedule.warmup_steps:,} steps of warm-up to {config.optimizer.lr:g}, "
        f"then {config.optimizer.schedule} to {config.optimizer.lr_min:g}",
        f"ranks        {ranks}, {batch_size} samples each",
        "",
        "Estimates, not measured; without activations and buffers.",
        "",
        "ZeRO stage   per rank: weights, gradients, moments   sent per step: gradients and weights",
        *(_stage_line(s, sizes.total, ranks, chosen=s == stage) for s in cost.STAGES),
        "",
        "objective    state per rank   sent per step and rank",
        *(_objective_line(name, config, ranks, samples) for name in REGISTRY),
        "",
        f"checkpoint   {checkpoint / GIB:.2f} GiB each, {config.checkpoint.keep} kept",
    ]
    return "\n".join(lines)


def _samples_per_epoch(config: RunConfig) -> tuple[int, str]:
    sizes = [read_manifest(source.manifest).total_samples for source in config.loader.sources]
    if sizes:
        return sum(sizes), "in the manifest" if len(sizes) == 1 else f"in {len(sizes)} manifests"
    if config.corpus.expected_samples is None and config.corpus.fabricate == "scenes":
        return config.corpus.scenes, "corpus.scenes; some are lost on their way through the web"
    if config.corpus.expected_samples is None:
        raise UserError(
            "nothing says how many samples the corpus has: give loader.manifest=FOLDER, or "
            "corpus.expected_samples=NUMBER where there is no manifest yet"
        )
    return config.corpus.expected_samples, "corpus.expected_samples; no manifest was given"


def _stage_line(stage: int, parameters: int, ranks: int, chosen: bool) -> str:
    memory = cost.model_state_bytes(parameters, stage, ranks) / GIB
    sent = cost.gradient_bytes(parameters, stage, ranks) / MIB
    return f"{_mark(chosen)}{stage:<11}{memory:>10.2f} GiB {sent:>39.1f} MiB"


def _objective_line(name: str, config: RunConfig, ranks: int, samples: int) -> str:
    state = cost.objective_state_bytes(name, config, ranks, samples) / MIB
    sent = cost.objective_sent_bytes(name, config, ranks) / MIB
    return f"{_mark(name == config.objective)}{name:<11}{state:>10.1f} MiB {sent:>20.1f} MiB"


def _mark(chosen: bool) -> str:
    return "> " if chosen else "  "
