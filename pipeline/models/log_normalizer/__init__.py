"""The normalizer-prediction network (NPN) of NeuCLIP (arXiv 2511.08417): alpha, a prediction of log(eps + g)."""

from __future__ import annotations

from pipeline.models.log_normalizer.anchors import AlphaDerivatives, Anchors
from pipeline.models.log_normalizer.config import LogNormalizerConfig
from pipeline.models.log_normalizer.prototypes import NormalizerPredictionNetwork

__all__ = ["AlphaDerivatives", "Anchors", "LogNormalizerConfig", "NormalizerPredictionNetwork"]
