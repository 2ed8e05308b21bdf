"""Several corpora in one order: exact shares, every corpus in its own epochs, any position asked for alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.loader import load_recipe
from pipeline.config.schema import LoaderConfig
from pipeline.data.loader import Corpus, StepPositions, build_loader
from pipeline.data.mixture import MixtureOrder
from pipeline.data.order import SampleOrder
from pipeline.errors import UserError
from tests.conftest import write_corpus

sizes = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=4)
weights = st.one_of(
    st.integers(1, 20), st.floats(0.001, 100, allow_nan=False), st.sampled_from([1 / 3, 0.1, 0.7, 1e-6, 1e6])
)


def mixture(shards: list[list[int]], shares: list[float] | None = None) -> MixtureOrder:
    orders = [SampleOrder(np.array(samples), seed=n, lanes=3, window=7) for n, samples in enumerate(shards)]
    return MixtureOrder(orders, shares)


@st.composite
def weighted(draw: st.DrawFn) -> tuple[MixtureOrder, list[float]]:
    shards = draw(sizes)
    shares = draw(st.lists(weights, min_size=len(shards), max_size=len(shards)))
    return mixture(shards, shares), shares


def located(order: MixtureOrder, positions: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(*(column.tolist() for column in order.locate(positions)), strict=True))


@given(weighted(), st.integers(1, 400))
def test_each_corpus_goes_through_its_own_order_from_the_start(
    mixed: tuple[MixtureOrder, list[float]], length: int
) -> None:
    """Filtering the mixture by corpus leaves exactly the order that the corpus has alone: so its epochs are whole."""
    order, _ = mixed
    walked = located(order, np.arange(length))
    first_shard = 0
    for number, alone in enumerate(order.corpora):
        mine = [(s - first_shard, r) for s, r in walked if first_shard <= s < first_shard + len(alone.samples)]
        shards, rows = alone.locate(np.arange(len(mine)))
        assert mine == list(zip(shards.tolist(), rows.tolist(), strict=True))
        assert len(mine) == order.counts(length)[number]
        first_shard += len(alone.samples)


@given(weighted(), st.one_of(st.integers(0, 1000), st.integers(10**11, 10**15)))
def test_shares_are_exact_at_every_position(mixed: tuple[MixtureOrder, list[float]], position: int) -> None:
    order, shares = mixed
    counts = order.counts(position)
    assert sum(counts) == position
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - position * share / sum(shares)) < len(shares) + 1e-12 * position


@given(weighted(), st.data())
def test_any_position_can_be_asked_for_alone(mixed: tuple[MixtureOrder, list[float]], data: st.DataObject) -> None:
    order, _ = mixed
    first = data.draw(st.one_of(st.integers(0, 100), st.integers(10**9, 10**12)))
    together = located(order, np.arange(first, first + 20))
    assert [place for p in range(first, first + 20) for place in located(order, np.array([p]))] == together


@given(sizes, st.integers(0, 4))
def test_without_weights_every_sample_of_all_corpora_comes_once_per_epoch(shards: list[list[int]], epoch: int) -> None:
    order = mixture(shards)
    seen = located(order, epoch * order.total + np.arange(order.total))
    assert sorted(seen) == [(s, r) for s, n in enumerate(np.concatenate(shards)) for r in range(n)]


def captions_of(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[int(text.split()[1])] for text in texts])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Corpora of 40 and 25 samples."""
    root = tmp_path_factory.mktemp("mixture")
    return str(write_corpus(root / "a" / "web", [17, 23])), str(write_corpus(root / "b" / "web", [25]))


def config_of(two: tuple[str, str], weights: tuple[float | None, float | None], workers: int = 0) -> LoaderConfig:
    shares = [{"manifest": m, "weight": w} for m, w in zip(two, weights, strict=True)]
    return LoaderConfig.model_validate({"corpora": shares, "workers": workers, "lanes": 4})


def stream(config: LoaderConfig, schedule: list[tuple[int, int, int]]) -> tuple[list[int], torch.Tensor]:
    """Sample indices and pixels in run position order. schedule: (ranks, first step, last step), batches of 12."""
    index, pixels = [], []
    for ranks, first, last in schedule:
        loaders = [
            build_loader(Corpus(config, 5, 16, captions_of), StepPositions(12, rank, ranks, first, last), config, False)
            for rank in range(ranks)
        ]
        for batches in zip(*loaders, strict=True):
            index += torch.stack([batch.sample_index for batch in batches], 1).flatten().tolist()
            pixels.append(torch.stack([batch.images for batch in batches], 1).flatten(0, 1))
    return index, torch.cat(pixels)


@pytest.mark.parametrize("shares", [(None, None), (0.7, 0.3)], ids=["by size", "weighted"])
def test_ranks_and_workers_may_change_between_steps(
    two: tuple[str, str], shares: tuple[float | None, float | None]
) -> None:
    undisturbed, pixels = stream(config_of(two, shares), [(1, 0, 11)])
    for workers in (0, 2):
        changed, same = stream(config_of(two, shares, workers), [(2, 0, 3), (4, 3, 7), (1, 7, 11)])
        assert changed == undisturbed
        assert torch.equal(same, pixels)
    if shares == (None, None):
        assert sorted(undisturbed[:65]) == list(range(65))
    else:  # the smaller corpus ends its first epoch long before the larger
        small = [index - 40 for index in undisturbed if index >= 40]
        assert sorted(small[:25]) == list(range(25))
        assert len(small) == 132 - int(132 * 0.7)


def test_indices_are_of_all_corpora_and_captions_follow_them(two: tuple[str, str]) -> None:
    corpus = Corpus(config_of(two, (1, 1)), 0, 16, captions_of)
    assert len(corpus) == 65
    batch = corpus.__getitems__(list(range(60)))
    own = torch.where(batch.sample_index >= 40, batch.sample_index - 40, batch.sample_index)
    assert torch.equal(batch.tokens.squeeze(1), own)
    again = corpus.by_sample_index(np.array([39, 40, 64]))
    assert again.sample_index.tolist() == [39, 40, 64]
    assert again.tokens.squeeze(1).tolist() == [39, 0, 24]
    assert corpus.drawn(7) == {"web-0": 3, "web-1": 4}


def test_one_corpus_has_the_order_it_has_alone_and_what_it_is_shows_in_the_fingerprint(two: tuple[str, str]) -> None:
    alone = Corpus(LoaderConfig(manifest=two[0], lanes=4), 5, 16, captions_of)
    listed = Corpus(LoaderConfig.model_validate({"corpora": [{"manifest": two[0]}], "lanes": 4}), 5, 16, captions_of)
    assert alone.fingerprint == listed.fingerprint
    positions = list(range(90))
    assert torch.equal(alone.__getitems__(positions).sample_index, listed.__getitems__(positions).sample_index)
    mixed, swapped = (Corpus(config_of(pair, (1, 1)), 5, 16, captions_of) for pair in (two, two[::-1]))
    assert len({alone.fingerprint, mixed.fingerprint, swapped.fingerprint}) == 3


def test_corpora_of_the_same_shape_are_not_shuffled_alike(tmp_path: Path) -> None:
    folders = [write_corpus(tmp_path / name, [8] * 8) for name in "ab"]
    config = config_of((str(folders[0]), str(folders[1])), (1, 1))
    index = Corpus(config, 0, 16, captions_of).__getitems__(list(range(128))).sample_index
    assert not torch.equal(index[index < 64], index[index >= 64] - 64)


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        ("loader={manifest: a, corpora: [{manifest: b}]}", "give manifest, or corpora for several, not both"),
        ("loader.corpora=[{manifest: b}, {manifest: b}]", "names a manifest twice"),
        ("loader.corpora=[{manifest: a, weight: 1}, {manifest: b}]", "give all corpora a weight, or none"),
        ("loader.corpora=[{manifest: a, weight: 0}]", "loader.corpora.0.weight"),
        ("loader.corpora=[{manifest: a, wieght: 1}]", "did you mean 'loader.corpora.weight'"),
    ],
)
def test_mistakes_are_named(loader: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe("demo", [loader])


@settings(max_examples=25)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=5).map(np.array), st.integers(0, 9))
def test_with_replacement_positions_draw_alone_and_evenly(samples: np.ndarray, seed: int) -> None:
    order = SampleOrder(samples, seed, lanes=2, window=64, replacement=True)
    epochs = np.arange(3 * order.total)
    shards, rows = order.locate(epochs)
    assert np.all(rows < samples[shards])
    fresh = SampleOrder(samples, seed, lanes=2, window=64, replacement=True)
    assert located(MixtureOrder([fresh]), epochs[-5:]) == list(
        zip(shards[-5:].tolist(), rows[-5:].tolist(), strict=True)
    )


def test_with_replacement_counts_are_those_of_independent_draws() -> None:
    """Over windows of 100, how often a sample comes in an epoch is binomial: 36.6 % never, a variance of 0.99."""
    order = SampleOrder(np.full(100, 100), 1, lanes=10, window=100, replacement=True)
    starts = np.cumsum(order.samples) - order.samples
    counts = np.zeros((5, order.total))
    for epoch, of_epoch in enumerate(counts):
        shards, rows = order.locate(epoch * order.total + np.arange(order.total))
        np.add.at(of_epoch, starts[shards] + rows, 1)
    assert abs((counts == 0).mean() - 0.99**100) < 0.01
    assert abs(counts.var() - 0.99) < 0.05
    assert abs(np.corrcoef(counts[0], counts[1])[0, 1]) < 0.05
