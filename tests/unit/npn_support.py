"""Small prototype networks, and batches for them."""

import torch
import torch.nn.functional as F

from pipeline.config.objectives import LogNormalizerConfig
from pipeline.models.log_normalizer import Anchors, PrototypeNetwork

EPS = 1e-14


def embeddings(seed, count, dim=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(2, count, dim, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def build(dim=6, seed=0, dtype=torch.float32, ratio_bound=1e3, **config):
    npn = PrototypeNetwork(LogNormalizerConfig(**config), EPS, ratio_bound)
    npn.prepare(torch.device("cpu"), dim, seed, dtype)
    return npn


def anchors_of(batch, tau):
    return Anchors(batch, (batch[0] * batch[1]).sum(-1), torch.tensor([tau], dtype=batch.dtype))


def started(batch, **config):
    """A network that has restarted from a batch and will not again in its first step."""
    npn = build(dtype=batch.dtype, **config)
    npn.observe(batch)
    npn.steps = 1
    return npn
