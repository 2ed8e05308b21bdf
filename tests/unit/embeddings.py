"""Embeddings that the objectives' tests feed on."""

import torch
import torch.nn.functional as F


def unit_rows(seed, rows, dim, dtype=torch.float64):
    """(rows, dim), L2-normalised, a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def hard_batches():
    """Pairs of (B, 16) float64 by what is hard about them."""
    identical = unit_rows(5, 1, 16).repeat(8, 1)
    e1, e2 = unit_rows(6, 8, 16), unit_rows(7, 8, 16)
    return {
        "random": (e1, e2),
        "identical images": (identical, e2),
        "all identical": (identical, identical),
        "positive below every negative": (e1, -e1),
        "two samples": (e1[:2], e2[:2]),
        "aligned": (e1, e1),
    }


def rounding(tau: float) -> float:
    """Of h = (s_ij - s_ii) / tau in fp32: similarities near 1 are rounded each in its own way.

    Which way depends on the processor. It is a relative error of exp(h), so of a term of a gradient; where all
    embeddings are identical, terms cancel and nothing else is left.
    """
    return 2 * torch.finfo(torch.float32).eps / tau
