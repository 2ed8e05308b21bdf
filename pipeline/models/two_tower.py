"""The image and text towers, from open_clip: the only file that builds models with it.

A model is always described by an open_clip config written out in full, so a shipped architecture and a home-made
one take the same path, and an exported folder says everything that open_clip needs to load it.
"""

from __future__ import annotations

import copy
import difflib
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from pipeline.config.schema import ModelConfig
from pipeline.errors import UserError
from pipeline.files import read_json, write_json

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
PREPROCESS: dict[str, Any] = {
    "mean": list(OPENAI_DATASET_MEAN),
    "std": list(OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class Exported:
    """A model ready to encode: fp32, eval mode.

    model: `encode_image((B, 3, H, W)) -> (B, D)`, `encode_text((B, context) int64) -> (B, D)`, not normalised.
    preprocess: PIL image -> (3, H, W) fp32. tokenizer: list of B strings -> (B, context) int64.
    """

    model: nn.Module
    preprocess: Callable[[Any], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    name: str


def open_clip_config(config: ModelConfig) -> dict[str, Any]:
    """The model's open_clip config in full: `embed_dim`, `vision_cfg`, `text_cfg`.

    Raises UserError for a name that open_clip does not ship, with the nearest one.
    """
    if config.config is not None:
        return copy.deepcopy(config.config)
    shipped = open_clip.get_model_config(config.name)
    if shipped is None:
        nearest = difflib.get_close_matches(config.name, open_clip.list_models(), n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "see open_clip.list_models()"
        raise UserError(f"model.name: open_clip has no architecture {config.name!r}: {hint}")
    return copy.deepcopy(shipped)


def build_two_tower(config: ModelConfig, init_logit_scale: float, init_logit_bias: float | None = None) -> nn.Module:
    """The towers with fresh weights; `logit_scale`, and `logit_bias` if it has a start, are of shape [1] (DeepSpeed
    cannot broadcast 0-dim ones).

    Draws from torch's global generator, on torch's default device. Raises UserError when open_clip refuses the config.
    """
    model_config = open_clip_config(config)
    with tempfile.TemporaryDirectory() as folder:
        write_model_config(Path(folder), model_config)
        try:
            with _quiet():
                return open_clip.create_model(
                    f"local-dir:{folder}",
                    device=torch.get_default_device(),
                    load_weights=False,
                    pretrained_text=False,
                    output_dict=True,
                    nonscalar_logit_scale=True,
                    init_logit_scale=init_logit_scale,
                    init_logit_bias=init_logit_bias,
                )
        except (TypeError, KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"model.config: open_clip cannot build this model: {error}") from error


def build_tokenizer(model_config: dict[str, Any]) -> Callable[[list[str]], Tensor]:
    """The tokenizer that belongs to an open_clip config: list of B strings -> (B, context) int64."""
    with tempfile.TemporaryDirectory() as folder:
        write_model_config(Path(folder), model_config)
        return open_clip.get_tokenizer(f"local-dir:{folder}")


def image_size(model_config: dict[str, Any]) -> int:
    """Side of the square input in pixels."""
    size = model_config["vision_cfg"].get("image_size", 224)
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def write_model_config(folder: Path, model_config: dict[str, Any], name: str | None = None) -> None:
    """Write open_clip's `local-dir:` description of a model beside its weights.

    name: also write `<name>.json`, which `open_clip.add_model_config(folder)` registers the architecture from.
    """
    write_json(folder / CONFIG_FILE, {"model_cfg": model_config, "preprocess_cfg": PREPROCESS})
    if name is not None:
        write_json(folder / f"{name.replace('/', '-')}.json", model_config)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's warnings that a new model has no weights: that is what was asked for."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def load_exported(folder: Path, device: torch.device) -> Exported:
    """Load a folder that `neuclip export` wrote (open_clip's `local-dir:` layout). Never runs code from it.

    Raises UserError when the folder is not such a model, or its weights do not fit its config.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not an exported model: {name} is missing. Make one with `neuclip export`.")
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", device=device)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except Exception as error:
        raise UserError(f"{folder}: open_clip cannot load this model: {error}") from error
    return Exported(model.eval(), preprocess, tokenizer, name=_name(folder))


def _name(folder: Path) -> str:
    """What `neuclip export` called the model; of a folder from elsewhere, the folder's name."""
    provenance = folder / "export.json"
    return str(read_json(provenance)["model"]) if provenance.is_file() else folder.resolve().name
