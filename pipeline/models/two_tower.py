"""The image and text towers, from open_clip: the only file that builds models with it.

A model is always described by an open_clip config written out in full, so a shipped architecture and a home-made
one take the same path, and an exported folder says everything that open_clip needs to load it.
"""

from __future__ import annotations

import copy
import difflib
import logging
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_checkpoint
from open_clip.transform import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.config.schema import ModelConfig
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.models.model_card import PROVENANCE_FILE
from pipeline.run_files import EXPORTED

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
    """The towers, fresh or from `config.weights`, locked as asked.

    `logit_scale`, and `logit_bias` if it has a start, are of shape [1] (DeepSpeed cannot broadcast 0-dim ones).

    Draws from torch's global generator, on torch's default device; on `meta` weights are looked for, not read. Raises
    UserError when open_clip refuses the config, there are no such weights, or they do not fit it.
    """
    model_config = open_clip_config(config)
    is_vit = isinstance(model_config["vision_cfg"].get("layers", 12), int)
    if config.patch_dropout and not is_vit:
        raise UserError(f"model.patch_dropout={config.patch_dropout}: {config.name} has no patches; set it to 0")
    with tempfile.TemporaryDirectory() as folder:
        write_model_config(Path(folder), model_config)
        try:
            with _quiet():
                towers = open_clip.create_model(
                    f"local-dir:{folder}",
                    device=torch.get_default_device(),
                    load_weights=False,
                    pretrained_text=False,
                    output_dict=True,
                    nonscalar_logit_scale=True,
                    init_logit_scale=init_logit_scale,
                    init_logit_bias=init_logit_bias,
                    force_patch_dropout=config.patch_dropout or None,
                )
        except (TypeError, KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"model.config: open_clip cannot build this model: {error}") from error
    if config.weights is not None:
        source = _find_weights(config)
        if not towers.logit_scale.is_meta:
            _load_weights(towers, source, config)
    if config.lock_image is not None:
        towers.lock_image_tower(unlocked_groups=config.lock_image, freeze_bn_stats=True)
    if config.lock_text is not None:
        towers.lock_text_tower(unlocked_layers=config.lock_text)
    return towers


def _find_weights(config: ModelConfig) -> Path | dict[str, Any]:
    """A file, or what open_clip knows of a pretrained tag. Raises UserError when there is neither."""
    source = str(config.weights)
    path = Path(source)
    if (path / WEIGHTS_FILE).is_file():
        return path / WEIGHTS_FILE
    if path.is_file():
        return path
    tag = open_clip.get_pretrained_cfg(config.name, source)
    if not tag:
        known = open_clip.list_pretrained_tags_by_model(config.name)
        nearest = difflib.get_close_matches(source, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"its tags are {', '.join(known) or 'none'}"
        raise UserError(
            f"model.weights: {source!r} is neither a folder with {WEIGHTS_FILE}, nor a file, nor a tag that open_clip "
            f"has for {config.name}: {hint}"
        )
    return tag


def _load_weights(towers: Any, source: Path | dict[str, Any], config: ModelConfig) -> None:
    """Overwrite the towers' weights, tau's included; a bias only where the file has one too. Runs no code of the file.

    Raises UserError when a tag cannot be downloaded, or the tensors are those of another architecture.
    """
    path = source if isinstance(source, Path) else _download(source, config)
    bias = towers.logit_bias
    start = None if bias is None else bias.detach().clone()
    if bias is None:  # open_clip cannot load a model with a bias into one without
        towers.logit_bias = nn.Parameter(torch.zeros_like(towers.logit_scale))
    try:
        load_checkpoint(towers, str(path))
    except Exception as error:
        reason = str(error).splitlines()
        raise UserError(
            f"model.weights: {path} does not hold weights of {config.name}: {' '.join(reason[:2]) or repr(error)}"
        ) from error
    if start is None:
        towers.logit_bias = None
    elif not bias.any():  # open_clip's filler for a file without one
        bias.data.copy_(start)


def _download(tag: dict[str, Any], config: ModelConfig) -> Path:
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:
        raise UserError(
            f"model.weights: {config.weights} could not be downloaded: {error}. Fetch it where there is a network "
            "(once, into the Hugging Face cache), or give the file"
        ) from error


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
        with _NoRandomWeights():
            model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", device=device)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except SafetensorError as error:
        raise UserError(
            f"{folder / WEIGHTS_FILE} is torn, or no safetensors file ({error}). Nothing in it was run: export it again"
        ) from error
    except Exception as error:
        raise UserError(f"{folder}: open_clip cannot load this model: {_shortened(error)}") from error
    return Exported(model.eval(), preprocess, tokenizer, name=_name(folder))


class _NoRandomWeights(TorchFunctionMode):
    """Inside, tensors are not filled with random numbers: that takes longer than reading the weights that follow."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]  # as torch.nn.init passes it on
        return func(*args, **kwargs)


def _shortened(error: Exception) -> str:
    """What does not fit is a line per tensor, or one of all names that are missing: the first tell enough."""
    lines = [textwrap.shorten(line, 300) for line in str(error).splitlines()]
    return "\n  ".join([*lines[:4], *([f"and {len(lines) - 4} more like these"] if len(lines) > 4 else [])])


def _name(folder: Path) -> str:
    """What `neuclip export` called the model; of a folder from elsewhere, the folder's name.

    Raises UserError where export.json is damaged.
    """
    exported = EXPORTED.read(folder / PROVENANCE_FILE) or {}
    return exported.get("model") or folder.resolve().name
