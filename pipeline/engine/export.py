"""A checkpoint to weights that open_clip loads: fp32 safetensors in the layout of a Hugging Face Hub model.

OUT/open_clip_model.safetensors   the weights, for `pretrained=`
OUT/open_clip_config.json         the architecture, for `local-dir:OUT`
OUT/<model name>.json             the same for `open_clip.add_model_config(OUT)`
OUT/export.json                   where the weights come from
OUT/README.md                     model card
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.config.loader import parse
from pipeline.config.schema import RunConfig
from pipeline.engine.consolidated import LazyTensor, consolidated
from pipeline.engine.safetensors_stream import write_safetensors
from pipeline.engine.tags import complete_tags, find_damage
from pipeline.errors import UserError
from pipeline.files import atomic_open, read_json, sha256_file, write_json
from pipeline.models.two_tower import WEIGHTS_FILE, open_clip_config, write_model_config
from pipeline.objectives import objective_class

TOWERS = "towers."


def export(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Write the weights of a checkpoint (a tag folder, or the run's `checkpoints` for its newest) to `out`.

    Returns what `export.json` says. Raises UserError when there is no whole checkpoint.
    """
    folder, tag = _find_tag(checkpoint)
    state = read_json(folder / tag / "trainer.json")
    config = parse(RunConfig, state["config"], where=f"{folder / tag}/trainer.json")
    weights = {
        name.removeprefix(TOWERS): tensor
        for name, tensor in consolidated(folder / tag).items()
        if name.startswith(TOWERS)
    }
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
        "weights_sha256": sha256_file(out / WEIGHTS_FILE),
    }
    with atomic_open(out / "README.md", "w") as stream:
        stream.write(_model_card(provenance))
    write_json(out / "export.json", provenance)
    return provenance


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


def _model_card(provenance: dict[str, Any]) -> str:
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in provenance.items())
    return (
        "---\nlibrary_name: open_clip\npipeline_tag: zero-shot-image-classification\n---\n\n"
        f"# {provenance['recipe']}: {provenance['model']} trained with {provenance['objective']}\n\n"
        "```python\nimport open_clip\n"
        "model, _, preprocess = open_clip.create_model_and_transforms('local-dir:THIS_FOLDER')\n"
        "tokenizer = open_clip.get_tokenizer('local-dir:THIS_FOLDER')\n```\n\n"
        f"| | |\n|---|---|\n{rows}\n"
    )
