"""How gradients are averaged over ranks without ZeRO.

DeepSpeed then copies them into flat buckets of up to 2 GB, whatever its config says, and does so in one process, too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pipeline.distributed import World


def reduce_in_small_buckets(engine: Any, world: World) -> None:
    """Heed `reduce_bucket_size`, in elements, and copy nothing for a rank alone. engine: DeepSpeed's, of stage 0."""
    engine.allreduce_gradients = partial(engine.allreduce_gradients, engine.zero_reduce_bucket_size())
    engine.enable_backward_allreduce = world.size > 1
