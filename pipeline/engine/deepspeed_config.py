"""One checked DeepSpeed config out of two sources, each with its own keys.

A file of deepspeed_configs/ says how state is partitioned: stage, offload, buckets. The recipe says batch size,
precision, clipping and learning rates. A key in the wrong place is an error: neither can
silently overrule the other.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline.config.schema import RunConfig
from pipeline.errors import UserError
from pipeline.files import read_json

FOLDER = Path(__file__).parents[2] / "deepspeed_configs"
OWNED_BY_RECIPE = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size_per_gpu",
    "gradient_accumulation_steps": "train.micro_batch_size_per_gpu, which keeps the loss of the whole batch: "
    "DeepSpeed's own accumulation adds up losses of micro-batches, and a contrastive loss couples them",
    "gradient_clipping": "optimizer.clip_grad_norm",
    "optimizer": "optimizer",
    "scheduler": "optimizer",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "torch_autocast": "train.precision",
}
AUTOCAST = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}


def zero_stage(content: dict[str, Any]) -> int:
    """Of a DeepSpeed config, 0 to 3."""
    return int(content.get("zero_optimization", {}).get("stage", 0))


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`.

    Raises UserError for a missing or conflicting file, for what a stage cannot do (fp16 without ZeRO, compile under
    ZeRO-3), and when the ranks do not divide the global batch.
    """
    pieces = local_batch_size(config, world_size) // micro_batch_size(config, world_size)
    partitioning = _user_file(config.train.deepspeed)
    stage = zero_stage(partitioning)
    if config.train.compile and stage == 3:
        raise UserError(
            f"train.compile=true with train.deepspeed={config.train.deepspeed}: torch.compile cannot trace how ZeRO-3 "
            "brings its parameters together. Use zero2, or leave it out"
        )
    autocast = AUTOCAST[config.train.precision]
    if autocast == "float16" and stage == 0:
        raise UserError(
            f"train.precision=fp16 with train.deepspeed={config.train.deepspeed}: without ZeRO the loss scale would be "
            "forgotten at every resume. Use zero1, or bf16"
        )
    return {
        **partitioning,
        "train_batch_size": config.train.global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size(config, world_size),
        "gradient_accumulation_steps": pieces,  # summed, not averaged: pipeline.engine.micro_batches
        # Without ZeRO it measures the norm only where it clips.
        "gradient_clipping": config.optimizer.clip_grad_norm or (0.0 if stage else math.inf),
        # Parameters, tau above all, stay fp32: at 8 bits of mantissa tau could only move in steps of 1.5 %.
        **({"torch_autocast": {"enabled": True, "dtype": autocast}} if autocast else {}),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own Adam for offloading has to be compiled first
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def local_batch_size(config: RunConfig, world_size: int) -> int:
    """B = G / K. Raises UserError when it is not whole."""
    size, rest = divmod(config.train.global_batch_size, world_size)
    if rest or size == 0:
        raise UserError(
            f"train.global_batch_size={config.train.global_batch_size} cannot be split over {world_size} ranks: "
            f"choose a multiple of {world_size}"
        )
    return size


def micro_batch_size(config: RunConfig, world_size: int) -> int:
    """Samples that a rank encodes at one time. Raises UserError when they do not divide its share of the batch."""
    whole = local_batch_size(config, world_size)
    size = config.train.micro_batch_size_per_gpu or whole
    if whole % size:
        raise UserError(
            f"train.micro_batch_size_per_gpu={size} does not divide the {whole} samples that each of {world_size} "
            f"ranks has of train.global_batch_size={config.train.global_batch_size}: choose a divisor"
        )
    return size


def _user_file(name: str) -> dict[str, Any]:
    path = next((p for p in (FOLDER / f"{name}.json", Path(name)) if p.is_file()), None)
    if path is None:
        shipped = ", ".join(sorted(p.stem for p in FOLDER.glob("*.json")))
        raise UserError(f"train.deepspeed: no DeepSpeed config {name!r}: give a file, or one of {shipped}")
    try:
        content = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    for key in content:
        if key in OWNED_BY_RECIPE:
            raise UserError(f"{path}: {key!r} does not belong here; it is set by {OWNED_BY_RECIPE[key]}")
    return content
