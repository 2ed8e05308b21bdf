"""AdamW's parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config.schema import OptimizerConfig, TemperatureConfig

TEMPERATURE = "temperature"
LOGIT_BIAS = "logit_bias"


def build_optimizer(module: nn.Module, config: OptimizerConfig, temperature: TemperatureConfig) -> torch.optim.AdamW:
    """`decay` (matrices) and `no_decay` (norms, biases, embeddings of one dimension) as open_clip has them, and groups
    for the two scalars of a loss, never decayed: `temperature` (logit_scale, its own learning rate), `logit_bias`.
    """
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], TEMPERATURE: [], LOGIT_BIAS: []}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("logit_scale"):
            groups[TEMPERATURE].append(parameter)
        elif name.endswith("logit_bias"):
            groups[LOGIT_BIAS].append(parameter)
        elif parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name:
            groups["no_decay"].append(parameter)
        else:
            groups["decay"].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "name": name,
                "lr": temperature.lr if name == TEMPERATURE else config.lr,
                "weight_decay": config.weight_decay if name == "decay" else 0.0,
            }
            for name, parameters in groups.items()
            if parameters
        ],
        betas=config.betas,
        eps=config.eps,
    )
