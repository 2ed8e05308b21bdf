"""AdamW's parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config.schema import OptimizerConfig, TemperatureConfig
from pipeline.engine.layer_rates import distances

DECAY = "decay"
NO_DECAY = "no_decay"
TEMPERATURE = "temperature"
LOGIT_BIAS = "logit_bias"
KINDS = (DECAY, NO_DECAY, TEMPERATURE, LOGIT_BIAS)


def build_optimizer(module: nn.Module, config: OptimizerConfig, temperature: TemperatureConfig) -> torch.optim.AdamW:
    """`decay` (matrices) and `no_decay` (norms, biases, embeddings of one dimension) as open_clip has them, and groups
    for the two scalars of a loss, never decayed: `temperature` (logit_scale, its own learning rate), `logit_bias`.

    With `layer_decay` the first two are split by layer: `decay_2` is two layers below a tower's output. A group's
    `rate_factor` multiplies the scheduled rate.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    below = distances(trained) if config.layer_decay < 1 else {}
    members: dict[tuple[str, int], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        kind = _kind(name, parameter)
        layer = below.get(name, 0) if kind in (DECAY, NO_DECAY) else 0
        members.setdefault((kind, layer), []).append(parameter)
    groups = []
    for kind, layer in sorted(members, key=lambda key: (KINDS.index(key[0]), key[1])):
        factor = config.layer_decay**layer
        groups.append(
            {
                "params": members[kind, layer],
                "name": f"{kind}_{layer}" if below and kind in (DECAY, NO_DECAY) else kind,
                "lr": temperature.lr if kind == TEMPERATURE else config.lr * factor,
                "rate_factor": factor,
                "weight_decay": config.weight_decay if kind == DECAY else 0.0,
            }
        )
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)


def _kind(name: str, parameter: nn.Parameter) -> str:
    if name.endswith("logit_scale"):
        return TEMPERATURE
    if name.endswith("logit_bias"):
        return LOGIT_BIAS
    return NO_DECAY if parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name else DECAY
