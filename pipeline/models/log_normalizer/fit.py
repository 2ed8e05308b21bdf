"""What the inner steps minimise, as a function of alpha and of r = log(eps + g) of the batch."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor


def fit_slope(fit: Literal["unified", "separate"], alpha: Tensor, log_target: Tensor, ratio_bound: float) -> Tensor:
    """d/d alpha of the mean over anchors of, summed over sides; the inner steps minimise tau times that. (2, G) each.

    unified: exp(r - alpha) + alpha - 1, NeuCLIP's own objective, the exponential continued linearly from `ratio_bound`.
    separate: (alpha - r)^2, AmorLIP's l2-log (arXiv 2505.18983).
    """
    count = alpha.shape[1]
    if fit == "separate":
        return 2 * (alpha - log_target) / count
    ratio = (log_target - alpha).clamp(max=math.log(ratio_bound)).exp()
    return (1 - ratio) / count
