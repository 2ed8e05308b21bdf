"""What DeepSpeed does for ZeRO alone: heed the size of buckets, and tell the norm of the gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.nn.utils import clip_grad_norm_

from pipeline.distributed import World


def reduce_in_small_buckets(engine: Any, world: World) -> None:
    """Heed `reduce_bucket_size`, in elements, and copy nothing for a rank alone. engine: DeepSpeed's, of stage 0.

    By itself it copies gradients into flat buckets of up to 2 GB for their reduction, and does so in one process, too.
    """
    engine.allreduce_gradients = partial(engine.allreduce_gradients, engine.zero_reduce_bucket_size())
    engine.enable_backward_allreduce = world.size > 1


def tell_gradient_norm(engine: Any) -> None:
    """Have `get_global_grad_norm` give it, a tensor, once the step has clipped. engine: DeepSpeed's, of stage 0."""

    def clip() -> None:
        engine._global_grad_norm = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())

    engine.clip_fp32_gradients = clip
