"""DeepSpeed without what it would import, compile or say for others.

from pipeline.engine.lean_deepspeed import deepspeed
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Nothing in the block finds the module, unless it was there before."""
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[name]


with _absent("mlflow"):  # of DeepSpeed's autotuner, with pandas and a web server: seconds, and 90 MiB of every rank
    import deepspeed

# Every optimizer of ZeRO asks whether it is Muon, whose module compiles its kernels: seconds, and 50 MiB.
_compiler: Any = import_module("deepspeed.runtime.compiler")
_compile, _compiler.compile = _compiler.compile, lambda: _compiler.dummy_decorator
import_module("deepspeed.runtime.zero.muon.muon_optimizer")
_compiler.compile = _compile

# A shared-memory all-reduce for CPU inference would be compiled at the start: a minute, and a compiler, for an
# operation that training never calls.
_comm_backend: Any = import_module("deepspeed.comm.torch")
_comm_backend.build_shm_op = lambda: None

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

__all__ = ["deepspeed"]
