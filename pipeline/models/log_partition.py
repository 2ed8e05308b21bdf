"""AmorLIP's network (Sun et al., arXiv 2505.18983): a residual MLP per modality that predicts log partitions.

Legend: B local batch, K world size, G = B*K global batch, N dataset size, D embedding dimension, P weights of
`ResidualMLP`, whose output is log lambda; side 0 predicts for image anchors, side 1 for text anchors.

METHOD gives the shape, the fit's objectives and the settings. From the published code come: the ReLU before each
LayerNorm and after the skip; torch's default initialisation of a linear layer; the previous epoch's network
being the EMA copy as the epoch ends, before reinitialisation resets network, EMA copy and Adam; the L2 term
beside a divergence; one EMA update every second step. Otherwise than there: the stop comes after the first inner
step that changes the loss by less than the tolerance (there after five in a row, never reached in 3 steps), the
learning rate does not grow with K, and the KL divergence is that of measures (see `fit_loss`).

The network is small, so every rank holds the whole of it and fits its own B anchors; an inner step all-reduces
P + 1 floats.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.collectives import all_reduce
from pipeline.config.objectives import FitObjective, LogPartitionConfig
from pipeline.distributed import world_size
from pipeline.errors import UserError
from pipeline.models.residual_mlp import ResidualMLP

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8  # torch.optim.Adam's
VECTORS = ("weights", "ema", "previous", "momentum", "squares")
COUNTERS = ("updates", "steps", "samples_seen", "epoch")


class LogPartitionNetwork(nn.Module):
    """Both MLPs with their EMA copy, the previous epoch's network, their own Adam and a world-size-free state.

    The state is plain tensors and integers, the same on every rank; the optimizer of the towers never sees it.
    """

    weights: Tensor  # (P,), like all five
    ema: Tensor
    previous: Tensor
    momentum: Tensor  # Adam's
    squares: Tensor

    def __init__(self, config: LogPartitionConfig, ratio_bound: float) -> None:
        """ratio_bound: where a divergence goes on linearly in log(target / lambda)."""
        super().__init__()
        self.config = config
        self.log_ratio_bound = math.log(ratio_bound)

    def prepare(self, device: torch.device, embed_dim: int, dataset_size: int, seed: int) -> None:
        """Allocate and initialise. dataset_size: N, an epoch. seed: of the initialisations."""
        self.mlp = ResidualMLP(embed_dim)
        self.device, self.dataset_size, self.seed = device, dataset_size, seed
        self.updates = self.steps = self.samples_seen = self.epoch = 0
        self._initialise()
        self.previous = self.ema.clone()

    @property
    def beta(self) -> float:
        """Share of the previous epoch's network in this epoch's targets."""
        progress = min(self.epoch / self.config.z_beta_epochs, 1.0)
        return self.config.z_beta_max * (1 - math.cos(math.pi * progress)) / 2

    def start_step(self) -> None:
        """Begin a new epoch if the samples seen say so: epoch = samples_seen // N."""
        epoch = self.samples_seen // self.dataset_size
        if epoch == self.epoch:
            return
        every, before = self.config.reinit_every, self.epoch
        self.epoch = epoch
        self.previous = self.ema.clone()
        if every and epoch // every > before // every:
            self._initialise()

    def end_step(self, samples: int) -> None:
        """Count a training step of `samples` samples in all ranks, and update the EMA copy if due."""
        if self.steps % self.config.ema_every == 0:
            self.ema = torch.lerp(self.weights, self.ema, self.config.ema)
        self.steps += 1
        self.samples_seen += samples

    def predict(self, weights: Tensor, embeddings: Tensor) -> Tensor:
        """log lambda, (2, B). weights: (P,), `weights`, `ema` or `previous`. embeddings: (2, B, D)."""
        return self.mlp(weights, embeddings)

    def mixed_target(self, embeddings: Tensor, log_partition: Tensor) -> Tensor:
        """log( beta lambda_previous + (1 - beta) Z ), (2, B). log_partition: (2, B), log Z of the batch."""
        if self.beta == 0:
            return log_partition
        previous = self.predict(self.previous, embeddings)
        return torch.logaddexp(previous + math.log(self.beta), log_partition + math.log(1 - self.beta))

    def fit(self, embeddings: Tensor, log_target: Tensor) -> tuple[float, int]:
        """Up to `inner_steps` Adam steps on the global batch; collective.

        embeddings: (2, B, D) of this rank. log_target: (2, B). Returns the last loss that was computed, and the
        number of steps taken; both are the same on every rank, and so is the decision to stop.
        """
        loss, taken = math.inf, 0
        while taken < self.config.inner_steps:
            before, (loss, gradient) = loss, self.loss_and_gradient(embeddings, log_target)
            if abs(before - loss) < self.config.tolerance:
                break
            self._adam(gradient)
            taken += 1
        return loss, taken

    def loss_and_gradient(self, embeddings: Tensor, log_target: Tensor) -> tuple[float, Tensor]:
        """The fit's loss, mean over G anchors of the sum over sides, and its gradient (P,); collective."""
        with torch.enable_grad():
            weights = self.weights.detach().requires_grad_()
            log_lambda = self.predict(weights, embeddings)
        size = embeddings.shape[1] * world_size()
        value, slope = self._fit_loss(log_target - log_lambda.detach())
        (gradient,) = torch.autograd.grad(log_lambda, weights, grad_outputs=-slope / size)
        summed = all_reduce(torch.cat([gradient, value.sum()[None] / size]), "sum")
        return summed[-1].item(), summed[:-1]

    def _fit_loss(self, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.fit == "l2_log":
            return fit_loss("l2_log", log_ratio)
        bounded = log_ratio.clamp(max=self.log_ratio_bound)
        value, slope = fit_loss(config.fit, bounded)
        l2, l2_slope = fit_loss("l2_log", log_ratio)
        return value + slope * (log_ratio - bounded) + config.l2_weight * l2, slope + config.l2_weight * l2_slope

    def _adam(self, gradient: Tensor) -> None:
        first, second = ADAM_BETAS
        self.updates += 1
        self.momentum = torch.lerp(gradient, self.momentum, first)
        self.squares = torch.lerp(gradient.square(), self.squares, second)
        scale = (self.squares / (1 - second**self.updates)).sqrt_().add_(ADAM_EPS)
        step = self.config.lr / (1 - first**self.updates)
        self.weights = torch.addcdiv(self.weights, self.momentum, scale, value=-step)

    def _initialise(self) -> None:
        """Fresh weights, a function of (seed, epoch) alone; the EMA copy equals them; Adam's state to zero."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        self.weights = self.mlp.initial_weights(generator).to(self.device)
        self.ema = self.weights.clone()
        self.momentum, self.squares = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self.updates = 0

    def get_extra_state(self) -> dict[str, Any]:
        """The whole state: five vectors (P,) and the counters."""
        vectors = {name: getattr(self, name).clone() for name in VECTORS}
        return {**vectors, **{name: getattr(self, name) for name in COUNTERS}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take a state saved at any world size, after `prepare`.

        Raises UserError when the embedding dimension differs.
        """
        if state["weights"].shape != self.weights.shape:
            raise UserError(
                f"the checkpoint's log-partition network has {len(state['weights'])} weights, this run's "
                f"{len(self.weights)}: the embedding dimension differs; set the model as it was, or start a new run"
            )
        for name in VECTORS:
            setattr(self, name, state[name].to(self.device, copy=True))
        for name in COUNTERS:
            setattr(self, name, state[name])


def fit_loss(name: FitObjective, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Elementwise loss and its derivative for x = log(target / lambda); zero, with zero slope, at x = 0 only.

    The divergences compare p_j = exp(s_ij/tau) / lambda_i with q_j = exp(s_ij/tau) / target_i, for q of unit mass
    and p of mass exp(x). p is no distribution until the fit is done, so they are those of measures,
    KL(p, q) = sum p log(p/q) - p + q. Without the last two terms, as in the published code, the asymmetric KL has
    its minimum at lambda = e * target; the symmetric KL and JS are the same with and without.

    l2_log: x^2. kl: KL(p, q). symmetric_kl: KL(p, q) + KL(q, p). js: KL(p, m)/2 + KL(q, m)/2, m = (p + q)/2.
    """
    x = log_ratio
    if name == "l2_log":
        return x.square(), 2 * x
    exp_x = x.exp()
    if name == "kl":
        return x * exp_x - x.expm1(), x * exp_x
    if name == "symmetric_kl":
        return x * x.expm1(), x.expm1() + x * exp_x
    log_2 = math.log(2)
    p_over_m, q_over_m = F.logsigmoid(x) + log_2, F.logsigmoid(-x) + log_2
    return (exp_x * p_over_m + q_over_m) / 2, exp_x * p_over_m / 2
