"""Dynamic loss scaling for fp16 under ZeRO.

With torch_autocast DeepSpeed 0.19 scales the loss with torch's GradScaler, but it neither lets it see an overflow nor
unscales before it clips. Its ZeRO optimizers do both for a scaler of DeepSpeed's own, so they are given one.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler


def scale_losses(optimizer: Any) -> None:
    """optimizer: DeepSpeed's, of ZeRO stage 1 to 3. From 2^16 on: halved, and the update left out, at an overflow;
    doubled after 1000 updates without one. Saved and restored with the optimizer."""
    optimizer.torch_autocast_gradscaler = None
    optimizer.loss_scaler = DynamicLossScaler(
        init_scale=2.0**16,
        scale_window=1000,
        min_scale=1.0,
        delayed_shift=1,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=False,  # pipeline.health stops a run that skips too often, and says why
        dtype=torch.half,
    )
    optimizer.dynamic_loss_scale = True
