"""A checkpoint to weights that open_clip loads: fp32 safetensors in the layout of a Hugging Face Hub model.

OUT/open_clip_model.safetensors   the weights, for `pretrained=`
OUT/open_clip_config.json         the architecture, for `local-dir:OUT`
OUT/<model name>.json             the same for `open_clip.add_model_config(OUT)`
OUT/export.json                   where the weights come from
OUT/README.md                     model card
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.config.loader import parse
from pipeline.config.schema import RunConfig
from pipeline.engine.consolidated import LazyTensor, consolidated
from pipeline.engine.safetensors_stream import write_safetensors
from pipeline.engine.tags import complete_tags, find_damage
from pipeline.engine.weight_average import AVERAGE, Piece, SavedAverage
from pipeline.errors import UserError
from pipeline.files import atomic_open, read_json, sha256_file, write_json
from pipeline.models.model_card import PROVENANCE_FILE, write_card
from pipeline.models.two_tower import WEIGHTS_FILE, open_clip_config, write_model_config
from pipeline.objectives import objective_class

TOWERS = "towers."
Which = Literal["auto", "average", "last"]


def export(checkpoint: Path, out: Path, which: Which = "auto") -> dict[str, Any]:
    """Write the weights of a checkpoint (a tag folder, or the run's `checkpoints` for its newest) to `out`.

    which: their average over training (`train.ema_decay`), the last ones, or the average where there is one. Returns
    what `export.json` says. Raises UserError when there is no whole checkpoint, or no average in it.
    """
    folder, tag = _find_tag(checkpoint)
    state = read_json(folder / tag / "trainer.json")
    config = parse(RunConfig, state["config"], where=f"{folder / tag}/trainer.json")
    tensors = consolidated(folder / tag)
    averaged = which == "average" or (which == "auto" and config.train.ema_decay is not None)
    if averaged:
        tensors |= _averages(folder / tag, state, tensors)
    weights = {name.removeprefix(TOWERS): tensor for name, tensor in tensors.items() if name.startswith(TOWERS)}
    for name in {"logit_scale", "logit_bias"} & weights.keys():
        weights[name] = _scalar(weights[name])
    out.mkdir(parents=True, exist_ok=True)
    write_model_config(out, _model_config(config), config.model.name)
    with atomic_open(out / WEIGHTS_FILE) as stream:
        write_safetensors(stream, weights)
    provenance = {
        "model": config.model.name,
        "recipe": config.name,
        "objective": config.objective,
        "step": state["step"],
        "samples_seen": state["samples_seen"],
        "tau": float(torch.exp(-weights["logit_scale"].read())),
        "manifest_fingerprint": state["manifest_fingerprint"],
        "order_digest": state["order_digest"],
        "checkpoint": tag,
        "weights": f"average, train.ema_decay={config.train.ema_decay}" if averaged else "last",
        "weights_sha256": sha256_file(out / WEIGHTS_FILE),
    }
    write_json(out / PROVENANCE_FILE, provenance)
    write_card(out)
    return provenance


def _averages(tag_folder: Path, state: dict[str, Any], weights: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Of the parameters that were trained. weights: of the checkpoint, for their shapes."""
    if not (tag_folder / AVERAGE).is_dir():
        raise UserError(
            f"{tag_folder} holds no average of the weights: train with train.ema_decay, or ask for the last"
        )
    saved = SavedAverage(tag_folder / AVERAGE, state["world_size"], state["zero_stage"])
    return {
        name: LazyTensor(weights[name].shape, torch.float32, partial(_average, saved, name, weights[name].shape))
        for name in saved.sizes
    }


def _average(saved: SavedAverage, name: str, shape: tuple[int, ...]) -> Tensor:
    return saved.read(Piece(name, 0, saved.sizes[name])).view(shape)


def _scalar(tensor: LazyTensor) -> LazyTensor:
    """open_clip's usual shape; ours is [1] for DeepSpeed."""
    return LazyTensor((), tensor.dtype, lambda: tensor.read().reshape(()))


def _model_config(config: RunConfig) -> dict[str, Any]:
    """The open_clip config of the model as it was trained: with a bias only where the objective has one."""
    model_config = open_clip_config(config.model)
    model_config.pop("init_logit_bias", None)
    bias = objective_class(config.objective).default_logit_bias
    return model_config if bias is None else {**model_config, "init_logit_bias": bias}


def _find_tag(checkpoint: Path) -> tuple[Path, str]:
    """(checkpoints folder, tag) of a whole checkpoint."""
    if (checkpoint / "trainer.json").is_file():
        candidates = [checkpoint]
    else:
        candidates = [checkpoint / tag for tag in complete_tags(checkpoint)]
    if not candidates:
        raise UserError(f"no complete checkpoint in {checkpoint}: train first, or name a step-* folder")
    problem = find_damage(candidates[-1])
    if problem is not None:
        raise UserError(f"{candidates[-1]} is damaged: {problem}. Name an older step-* folder instead.")
    return candidates[-1].parent, candidates[-1].name
