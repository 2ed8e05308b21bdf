"""The order of samples: every sample once per epoch, whatever the batch, the ranks and the place one starts from."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.loader import StepPositions
from pipeline.data.order import SampleOrder

shards = st.lists(st.integers(1, 40), min_size=1, max_size=8)
orders = st.builds(
    SampleOrder,
    samples=shards.map(np.array),
    seed=st.integers(0, 5),
    lanes=st.integers(1, 20),
    window=st.integers(1, 50),
)


def located(order: SampleOrder, positions: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(*(column.tolist() for column in order.locate(positions)), strict=True))


@given(orders, st.integers(0, 3))
def test_every_sample_exactly_once_per_epoch(order: SampleOrder, epoch: int) -> None:
    seen = located(order, epoch * order.total + np.arange(order.total))
    assert sorted(seen) == [(s, r) for s, n in enumerate(order.samples) for r in range(n)]


def by_the_book(sizes: list[int], seed: int, lanes: int, window: int, epoch: int) -> list[tuple[int, int]]:
    """An epoch as docs/architecture.md tells it, with lists. Runs go on under later versions: it may never change."""
    stream = [(s, r) for s in np.random.default_rng([seed, epoch]).permutation(len(sizes)) for r in range(sizes[s])]
    lanes = min(lanes, len(stream))
    length = len(stream) // lanes
    columns = []
    for lane in range(lanes):
        samples = stream[lane * length : (lane + 1) * length]
        windows = [samples[start : start + window] for start in range(0, length, window)]
        draws = [np.random.default_rng([seed, epoch, lane, w]).permutation(len(part)) for w, part in enumerate(windows)]
        columns.append([part[i] for part, draw in zip(windows, draws, strict=True) for i in draw])
    return [column[step] for step in range(length) for column in columns] + stream[lanes * length :]


@given(shards, st.integers(0, 5), st.integers(1, 20), st.integers(1, 50), st.integers(0, 3))
def test_the_order_is_the_documented_one(sizes: list[int], seed: int, lanes: int, window: int, epoch: int) -> None:
    order = SampleOrder(np.array(sizes), seed, lanes, window)
    expected = by_the_book(sizes, seed, lanes, window, epoch)
    assert located(order, epoch * order.total + np.arange(order.total)) == expected


@given(orders, st.data())
def test_any_position_can_be_asked_for_alone(order: SampleOrder, data: st.DataObject) -> None:
    """A seek is not a replay: a fresh object, asked for one position, agrees with one that walked there."""
    position = data.draw(st.integers(0, 3 * order.total))
    walked = located(order, np.arange(position + 1))[-1]
    fresh = SampleOrder(order.samples, order.seed, order.lanes, order.window)
    assert located(fresh, np.array([position])) == [walked]


@given(orders, st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(1, 5))
def test_ranks_share_each_batch_without_overlap(order: SampleOrder, ranks: int, first: int) -> None:
    batches = [list(StepPositions(12, rank, ranks, first, first + 3)) for rank in range(ranks)]
    for step in range(3):
        together = sorted(position for rank in range(ranks) for position in batches[rank][step])
        assert together == list(range((first + step) * 12, (first + step + 1) * 12))


def sample_numbers(order: SampleOrder, first: int, last: int) -> np.ndarray:
    shards, rows = order.locate(np.arange(first, last))
    return (np.cumsum(order.samples) - order.samples)[shards] + rows


def test_epochs_and_seeds_differ_and_neighbours_part() -> None:
    """A shuffle that does not shuffle would leave epochs alike, or samples of a shard beside each other."""
    sizes = np.full(400, 25)
    order = SampleOrder(sizes, seed=1, lanes=8, window=500)
    epoch = sample_numbers(order, 0, 10000)
    others = {
        "next epoch": sample_numbers(order, 10000, 20000),
        "other seed": sample_numbers(SampleOrder(sizes, seed=2, lanes=8, window=500), 0, 10000),
        "no shuffle": np.arange(10000),
    }
    for name, other in others.items():
        assert abs(np.corrcoef(epoch, other)[0, 1]) < 4 / np.sqrt(len(sizes)), name  # 4 sigma, shards as units
    assert np.mean(np.abs(np.diff(epoch)) < 50) < 0.05


def test_a_lane_reads_few_shards_at_a_time() -> None:
    """What lanes are for: between them, 8 lanes touch few shards in any stretch of positions."""
    order = SampleOrder(np.full(100, 1000), seed=0, lanes=8, window=500)
    shards_read, _ = order.locate(np.arange(2000, 4000))
    assert len(np.unique(shards_read)) <= 16


@settings(max_examples=20)
@given(orders)
def test_a_corpus_smaller_than_the_lanes_is_whole(order: SampleOrder) -> None:
    small = SampleOrder(np.array([2]), seed=order.seed, lanes=64, window=10)
    assert sorted(located(small, np.arange(2))) == [(0, 0), (0, 1)]
