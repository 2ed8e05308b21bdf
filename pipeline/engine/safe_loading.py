"""No file that is loaded here runs code, whoever wrote it.

The digests of a checkpoint prove that it is whole, not who made it, and DeepSpeed 0.19 unpickles what it loads. torch
is told to refuse, in every `torch.load` of this process and its children, all but tensors, plain values and the
classes named here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from pipeline.errors import UserError

os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
torch.serialization.add_safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address])


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turn the refusal of a file in `folder` into a UserError."""
    try:
        yield
    except UnpicklingError as error:
        reason = str(error).replace("\n", " ")
        raise UserError(
            f"{folder} holds something else than weights and was not loaded, for it could run code: {reason[:300]}"
        ) from error
