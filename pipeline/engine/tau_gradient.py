"""The gradient of the loss for tau, caught in the graph."""

from __future__ import annotations

from torch import Tensor

from pipeline import collectives


class TauGradient:
    """Watches one backward pass; `value` has the gradient after it.

    It is caught at tau itself, because what DeepSpeed leaves of the parameter's own gradient depends on the ZeRO
    stage: reduced in place, partitioned, or dropped.
    """

    def __init__(self, loss: Tensor, tau: Tensor) -> None:
        """loss: (). tau: (1,). Both with the graph that backward will go through."""
        self._seen: dict[str, Tensor] = {}
        for name, tensor in (("loss", loss), ("tau", tau)):
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient, name=name: self._seen.__setitem__(name, gradient.detach()))

    def value(self) -> Tensor | None:
        """dL/dtau of the global batch, (), equal on every rank; collective. None where tau is not learned.

        The loss's own gradient is the scale that DeepSpeed gave the loss (fp16), so dividing by it undoes that.
        """
        if "tau" not in self._seen:
            return None
        local = self._seen["tau"].sum() / self._seen["loss"]
        return collectives.all_reduce(local.reshape(1), "mean").squeeze()
