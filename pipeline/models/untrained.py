"""A tiny model with random weights, laid out as an exported one: for trying what takes a model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save

from pipeline.config.schema import ModelConfig
from pipeline.files import atomic_open
from pipeline.models.two_tower import CONFIG_FILE, WEIGHTS_FILE, build_two_tower, open_clip_config, write_model_config

TINY = ModelConfig(
    name="tiny",
    config={
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 2},
    },
)


def write_untrained(folder: Path, config: ModelConfig = TINY) -> Path:
    """Write a model, a ViT, unless it is there; returns `folder`, whose name is what results call the model."""
    if (folder / CONFIG_FILE).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build_two_tower(config, init_logit_scale=2.66).state_dict()
    # Fresh towers map everything to nearly one point: answers differ where inputs count for more than constants.
    weights["visual.conv1.weight"] *= 30
    weights["token_embedding.weight"] *= 200
    weights["visual.class_embedding"] *= 0
    weights["visual.positional_embedding"] *= 0
    with atomic_open(folder / WEIGHTS_FILE) as stream:
        stream.write(save({name: value.contiguous() for name, value in weights.items()}))
    write_model_config(folder, open_clip_config(config))  # last: with it the folder is whole
    return folder
