"""Collectives equal plain tensor operations on what the ranks hold; the counter counts the ring's bytes."""

import pytest
import torch

from pipeline import collectives
from pipeline.distributed import rank
from tests.distributed.launch import run_ranks


def held(by, shape=(3, 2)):
    """What rank `by` holds."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(by))


def use_all():
    mine = held(rank())
    untouched = mine.clone()
    rows = torch.arange(20.0).view(10, 2)
    with collectives.count_bytes() as outer:
        result = {
            "all_gather": collectives.all_gather(mine),
            "transposed": collectives.all_gather(mine.T),
            "int64": collectives.all_gather(torch.tensor([2**60 + rank()])),
            **{name: collectives.all_reduce(mine, name) for name in ("sum", "mean", "max")},
            "logsumexp": collectives.all_reduce_logsumexp(mine * 300),
            "with nothing": collectives.all_reduce_logsumexp(
                mine if rank() == 0 else torch.full_like(mine, -torch.inf)
            ),
            "ring": collectives.ring_shift(mine.T),
            "slices": collectives.all_gather_slices(rows[collectives.own_slice(10)], 10),
            "object": collectives.broadcast_object({"from": rank()}),
            "few": collectives.all_gather_slices(rows[:1][collectives.own_slice(1)], 1),
        }
        with collectives.count_bytes() as inner:
            collectives.all_gather(mine)
    collectives.barrier()
    collectives.all_gather(mine)  # after the block: not counted
    assert torch.equal(mine, untouched)
    return result, dict(outer), dict(inner), collectives.own_slice(10)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_collectives(ranks):
    everything = torch.stack([held(by) for by in range(ranks)])
    expected = {
        "all_gather": everything.flatten(0, 1),
        "transposed": everything.transpose(1, 2).flatten(0, 1),
        "int64": torch.tensor([2**60 + by for by in range(ranks)]),
        "sum": everything.sum(0),
        "mean": everything.mean(0),
        "max": everything.amax(0),
        "logsumexp": (everything * 300).logsumexp(0),
        "with nothing": everything[0],
        "slices": torch.arange(20.0).view(10, 2),
        "object": {"from": 0},
        "few": torch.tensor([[0.0, 1.0]]),
    }
    results = run_ranks(ranks, use_all)
    covered = []
    for by, (result, outer, inner, own) in enumerate(results):
        torch.testing.assert_close(result, {**expected, "ring": everything[by - 1].T})
        covered += range(10)[own]
        assert inner == ({"all_gather": 24 * (ranks - 1)} if ranks > 1 else {})
        if ranks > 1:
            assert outer["ring_shift"] == 24
            # 24 bytes each: sum, mean, max, and two for each logsumexp.
            assert outer["all_reduce"] == 7 * 24 * 2 * (ranks - 1) / ranks
            longest = -(-10 // ranks)
            assert outer["all_gather"] == (ranks - 1) * (3 * 24 + 8 + longest * 8 + 8)
    assert covered == list(range(10))
