"""Alignment and uniformity are those of Wang and Isola, pair by pair; accuracy is counted sample by sample."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.distributed import rank, world_size
from pipeline.objectives import Features
from pipeline.objectives.geometry import geometry
from tests.distributed.launch import run_ranks
from tests.unit.embeddings import unit_rows


def potential(x):
    """Mean over ordered pairs i != j of exp(-2 |x_i - x_j|^2)."""
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    return sum(math.exp(-2 * sum((a - b) ** 2 for a, b in zip(x[i], x[j], strict=True))) for i, j in pairs) / len(pairs)


def accuracy(e1, e2):
    """Share of samples whose own other half is nearest, over both directions; of equals the first is."""
    pairs = ((e1.tolist(), e2.tolist()), (e2.tolist(), e1.tolist()))
    hits = [i == min(range(len(b)), key=lambda j, x=x: math.dist(x, b[j])) for a, b in pairs for i, x in enumerate(a)]
    return sum(hits) / len(hits)


def reference(blocks):
    """blocks: (e1, e2) of each rank."""
    distances = [((a - b) ** 2).sum().item() for e1, e2 in blocks for a, b in zip(e1, e2, strict=True)]
    uniformity = [math.log(sum(potential(block[side].tolist()) for block in blocks) / len(blocks)) for side in (0, 1)]
    return {
        "train/alignment": sum(distances) / len(distances),
        "train/accuracy": sum(accuracy(e1, e2) for e1, e2 in blocks) / len(blocks),
        "train/uniformity_image": uniformity[0],
        "train/uniformity_text": uniformity[1],
    }


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 9), dim=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_equals_the_loops(rows, dim, seed):
    e1, e2 = unit_rows(seed, rows, dim), unit_rows(seed + 1, rows, dim)
    ours = {name: value.item() for name, value in geometry(Features(e1, e2)).items()}
    assert ours == pytest.approx(reference([(e1, e2)]), rel=1e-9, abs=1e-12)


def test_the_ends_of_the_scale():
    same = torch.tensor([[0.6, 0.8]]).repeat(4, 1)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    expected = {"train/alignment": 0.0, "train/uniformity_image": 0.0, "train/uniformity_text": 0.0}
    assert geometry(Features(same, same)) == pytest.approx({**expected, "train/accuracy": 0.25}, abs=1e-6)
    expected = {"train/alignment": 4.0, "train/uniformity_image": -8.0, "train/uniformity_text": -8.0}
    assert geometry(Features(opposite, -opposite)) == pytest.approx({**expected, "train/accuracy": 0.0})


def test_one_sample_has_no_pairs():
    assert list(geometry(Features(unit_rows(0, 1, 4), unit_rows(1, 1, 4)))) == ["train/alignment"]


def on_a_rank(e1, e2):
    rows = slice(rank(), None, world_size())
    return geometry(Features(e1[rows], e2[rows]))


def test_ranks_average_what_is_under_the_logarithm():
    e1, e2 = unit_rows(5, 8, 3), unit_rows(6, 8, 3)
    expected = reference([(e1[i::2], e2[i::2]) for i in (0, 1)])
    for result in run_ranks(2, on_a_rank, e1, e2):
        assert {name: value.item() for name, value in result.items()} == pytest.approx(expected)
