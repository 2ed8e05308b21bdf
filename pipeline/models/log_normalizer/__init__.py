"""The normalizer-prediction network (NPN) of NeuCLIP (arXiv 2511.08417): alpha, a prediction of log(eps + g)."""

from __future__ import annotations

from pipeline.config.objectives import LogNormalizerConfig
from pipeline.models.log_normalizer.anchors import AlphaDerivatives, Anchors
from pipeline.models.log_normalizer.mlp import MLPNetwork
from pipeline.models.log_normalizer.prototypes import PrototypeNetwork

__all__ = [
    "AlphaDerivatives",
    "Anchors",
    "MLPNetwork",
    "PrototypeNetwork",
    "build_log_normalizer",
]


def build_log_normalizer(config: LogNormalizerConfig, eps: float, ratio_bound: float) -> PrototypeNetwork | MLPNetwork:
    """As `config.network` says. eps: of the normalizer. ratio_bound: cap of exp(r - alpha) in the inner steps."""
    if config.network == "mlp":
        return MLPNetwork(config, ratio_bound)
    return PrototypeNetwork(config, eps, ratio_bound)
