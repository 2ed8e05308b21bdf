"""The contract of an objective.

Legend: B local batch, K world size, G = B*K global batch, D embedding dimension, M prototypes.

An objective knows features, sample indices and tau; it knows nothing of the towers, of DeepSpeed or of files.
Its `state_dict` is all of its state, in a form that any world size can load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Features(NamedTuple):
    """L2-normalised fp32 embeddings of the local batch, row i of both from one sample.

    image: (B, D), e1. text: (B, D), e2.
    """

    image: Tensor
    text: Tensor


@dataclass
class ObjectiveOutput:
    """What one step's objective yields.

    loss: scalar worth the global-batch loss on every rank; its gradient, averaged over ranks, is that of the
        global-batch loss (contract 1).
    metrics: detached scalars, already equal on every rank, which nobody writes to later: they are read at the next
        log point. Names as in docs/method.md.
    log_normalizer: (2, B), detached: what the step used for log(eps + g1), log(eps + g2) of each local anchor
        (METHOD: `alpha_used`), for the log-normalizer error. None where an objective has no such estimate.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    log_normalizer: Tensor | None = None


class Objective(nn.Module):
    """Base of all objectives; subclasses implement `forward`; their options are in `pipeline.config.objectives`.

    Call `prepare` once before anything else. `state_dict` and `load_state_dict` are collective, and so are
    `sharded_state` and `load_sharded_state`, for tables with a row per sample of the dataset. State changes
    in `forward` in training mode only; after `eval()` the loss is a pure function of its arguments.

    default_tau: where tau starts unless `temperature.init` says otherwise.
    default_logit_bias: where a learned bias starts; None: the objective has none.
    """

    default_tau: ClassVar[float] = 0.07
    default_logit_bias: ClassVar[float | None] = None

    def __init__(self, config: Any) -> None:
        """config: the checked options of this objective."""
        super().__init__()
        self.config = config

    def forward(
        self, features: Features, sample_index: Tensor, tau: Tensor, logit_bias: Tensor | None = None
    ) -> ObjectiveOutput:
        """One step's loss on the local batch; collective: every rank calls it.

        features: of the local batch, with their autograd graph.
        sample_index: (B,) int64, stable over epochs, world sizes and resumes.
        tau: (1,) fp32 > 0, with its graph when it is learned.
        logit_bias: (1,) fp32, with its graph; given when `default_logit_bias` is not None.
        """
        raise NotImplementedError

    def prepare(self, device: torch.device, embed_dim: int, dataset_size: int, seed: int, epochs: float = 1.0) -> None:
        """Allocate state once the sizes are known; collective.

        dataset_size: N; sample_index is in [0, N). epochs: how often the whole run sees each sample.
        """

    @property
    def rho(self) -> float | None:
        """The target in force that tau follows, for advice about tau; None where there is none."""
        return getattr(self.config, "rho", None)

    @property
    def estimates_normalizers(self) -> bool:
        """Whether `forward` gives a log_normalizer, whose error is worth encoding the reference samples for."""
        return True

    def sharded_state(self) -> dict[str, Tensor]:
        """This rank's rows, `own_slice(N)` of each table with N rows; nothing is gathered."""
        return {}

    def load_sharded_state(self, tables: Mapping[str, Tensor]) -> None:
        """Take back what `sharded_state` gave, cut for this world size: the rows `own_slice(N)`."""
