"""Batches larger than memory, exactly (contract 5): features first, the loss once, then each micro-batch's gradients.

A contrastive loss couples all samples of the batch, so losses of micro-batches cannot be added up. Instead every
micro-batch is encoded without a graph, the objective sees the whole batch's features, and each micro-batch is encoded
again, with the graph and the same random numbers, and given its features' gradients (Gao et al., arXiv 2101.06983).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.data.loader import Batch
from pipeline.engine.train_module import Encoded
from pipeline.errors import UserError


class MicroBatches:
    """The local batch of one step in pieces of at most `size` samples; one piece is trained the ordinary way."""

    def __init__(self, engine: Any, batch: Batch, size: int) -> None:
        """engine: DeepSpeed's, with as many gradient accumulation steps as there are pieces."""
        self._engine = engine
        self._pieces = list(zip(batch.images.split(size), batch.tokens.split(size), strict=True))
        self._random: list[dict[str, Tensor]] = []

    def encode(self) -> Encoded:
        """Features of the whole local batch, to compute the loss from."""
        if len(self._pieces) == 1:
            self._encoded = self._engine(*self._pieces[0])
            return self._encoded
        parts = []
        with torch.no_grad():
            for images, tokens in self._pieces:
                self._random.append(_random_state(images.device))
                parts.append(self._engine(images, tokens))
        last = parts[-1]
        self._encoded = Encoded(
            torch.cat([part.image_features for part in parts]).requires_grad_(),
            torch.cat([part.text_features for part in parts]).requires_grad_(),
            last.tau.requires_grad_(self._engine.module.towers.logit_scale.requires_grad),
            # The bias is the parameter itself, which must not have its gradient before the pieces bring it.
            None if last.logit_bias is None else last.logit_bias.detach().clone().requires_grad_(),
        )
        return self._encoded

    def update(self, loss: Tensor) -> None:
        """Backward through all pieces and the optimizer's step; collective. loss: from what `encode` returned."""
        if len(self._pieces) == 1:
            self._engine.backward(loss)
            self._engine.step()
            return
        loss.backward()
        whole, start = self._encoded, 0
        for number, (images, tokens) in enumerate(self._pieces):
            _set_random_state(self._random[number], images.device)
            encoded = self._engine(images, tokens)
            rows, share = slice(start, start + len(images)), len(images) / len(whole.image_features)
            start = rows.stop
            surrogate = _product(encoded.image_features, whole.image_features, rows)
            surrogate = surrogate + _product(encoded.text_features, whole.text_features, rows)
            # In every piece: ZeRO-3 adds to the last step's gradient where the first piece brings none.
            surrogate = surrogate + share * _product(encoded.tau, whole.tau)
            if encoded.logit_bias is not None and whole.logit_bias is not None:
                surrogate = surrogate + share * _product(encoded.logit_bias, whole.logit_bias)
            self._engine.backward(surrogate, scale_wrt_gas=False)  # gradients of one loss add up, no mean over pieces
            self._engine.step()


def refuse_batch_norm(towers: nn.Module) -> None:
    """Raises UserError where a layer's output for a sample depends on the other samples of its micro-batch."""
    name = next((name for name, layer in towers.named_modules() if isinstance(layer, _BatchNorm)), None)
    if name is not None:
        raise UserError(
            f"train.micro_batch_size_per_gpu: {name} is a batch normalisation, which sees one micro-batch at a time, "
            "so the result would not be that of the whole batch. Use a model without it (a ViT), lock that tower, or "
            "leave the setting out"
        )


def _product(encoded: Tensor, whole: Tensor, rows: slice = slice(None)) -> Tensor | float:
    """A scalar whose gradient for `encoded` is what the loss left in `rows` of `whole`."""
    return 0.0 if whole.grad is None else (encoded * whole.grad[rows]).sum()


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
