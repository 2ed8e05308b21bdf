"""What DeepSpeed wraps: the towers and the temperature, nothing of the objective."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config.schema import RunConfig, TemperatureConfig
from pipeline.models.two_tower import PREPROCESS, build_two_tower
from pipeline.objectives import objective_class


class Encoded(NamedTuple):
    """image_features, text_features: (B, D) fp32, L2-normalised. tau, logit_bias: (1,) fp32; a bias only where
    the objective has one."""

    image_features: Tensor
    text_features: Tensor
    tau: Tensor
    logit_bias: Tensor | None


class TrainModule(nn.Module):
    """Pixels and tokens to normalised fp32 features and tau = exp(-logit_scale)."""

    # open_clip's CLIP: called on (pixels, tokens); parameters logit_scale and perhaps logit_bias, of shape [1]
    towers: Any
    mean: Tensor
    std: Tensor

    def __init__(self, towers: nn.Module, temperature: TemperatureConfig) -> None:
        super().__init__()
        self.towers = towers
        self.temperature = temperature
        self.register_buffer("mean", 255 * torch.tensor(PREPROCESS["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(PREPROCESS["std"]).view(3, 1, 1), persistent=False)
        self.towers.logit_scale.requires_grad_(temperature.learnable)

    def forward(self, images: Tensor, tokens: Tensor) -> Encoded:
        """images: (B, 3, H, W) uint8. tokens: (B, context) int64."""
        pixels = (images - self.mean) / self.std
        output = self.towers(pixels, tokens)
        return Encoded(
            _unit_fp32(output["image_features"]),
            _unit_fp32(output["text_features"]),
            torch.exp(-self.towers.logit_scale.float()),
            None if self.towers.logit_bias is None else self.towers.logit_bias.float(),
        )

    @property
    def logit_scale_bounds(self) -> tuple[float, float]:
        """Between which tau is within [minimum, maximum]."""
        return -math.log(self.temperature.maximum), -math.log(self.temperature.minimum)


def build_train_module(config: RunConfig) -> TrainModule:
    """Towers, fresh or from `model.weights`, with tau within its bounds; draws from torch's global generator."""
    objective = objective_class(config.objective)
    bounds = config.temperature
    tau = objective.default_tau if bounds.init is None else bounds.init
    tau = min(max(tau, bounds.minimum), bounds.maximum)
    towers: Any = build_two_tower(config.model, -math.log(tau), objective.default_logit_bias)
    if config.train.activation_checkpointing:
        towers.set_grad_checkpointing()
    module = TrainModule(towers, bounds)
    if bounds.init is not None:
        torch.nn.init.constant_(module.towers.logit_scale, -math.log(tau))
    module.towers.logit_scale.data.clamp_(*module.logit_scale_bounds)
    return module


def _unit_fp32(features: Tensor) -> Tensor:
    """The towers' normalised (B, D) features in fp32; half precision leaves their length off 1 by up to 1 %."""
    return features if features.dtype == torch.float32 else F.normalize(features.float(), dim=-1)
