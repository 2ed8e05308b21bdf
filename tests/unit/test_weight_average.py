"""The average of the weights: its formula, and which rank keeps what, in any layout."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.distributed import World
from pipeline.engine.weight_average import SIZES, Piece, SavedAverage, WeightAverage, pieces_of
from pipeline.errors import UserError
from pipeline.files import write_json

NUMBERS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(NUMBERS, st.integers(1, 9), st.booleans())
def test_every_weight_is_kept_by_one_rank(sizes: list[int], ranks: int, partitioned: bool) -> None:
    named = {f"p{n}": size for n, size in enumerate(sizes)}
    kept = {name: np.zeros(size, int) for name, size in named.items()}
    shares = []
    for rank in range(ranks):
        pieces = list(pieces_of(named, partitioned, rank, ranks))
        for name, start, stop in pieces:
            kept[name][start:stop] += 1
        shares.append(sum(stop - start for _, start, stop in pieces))
    assert all((counts == 1).all() for counts in kept.values())
    assert max(shares) <= -(-sum(sizes) // ranks) + (len(sizes) if partitioned else 0)


@given(NUMBERS, st.integers(1, 5), st.sampled_from([2, 3]), st.data())
def test_any_piece_is_found_again(sizes: list[int], ranks: int, stage: int, data: st.DataObject) -> None:
    named = {f"p{n}": size for n, size in enumerate(sizes)}
    values = {name: np.random.default_rng(size).random(size, np.float32) for name, size in named.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_json(folder / SIZES, named)
        for rank in range(ranks):
            parts = [values[n][start:stop] for n, start, stop in pieces_of(named, stage == 3, rank, ranks)]
            np.save(folder / f"{rank:05d}.npy", np.concatenate(parts or [np.zeros(0, np.float32)]))
        saved = SavedAverage(folder, ranks, stage)
        wanted = data.draw(st.sampled_from(list(named)))
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, named[wanted])] * 2)))
        assert saved.read(Piece(wanted, start, stop)).tolist() == values[wanted][start:stop].tolist()


def test_against_the_formula() -> None:
    module = nn.Linear(3, 2).double()
    average = WeightAverage(module, 0.7, World(0, 0, 1, torch.device("cpu")))
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    for step in range(1, 60):
        for name, parameter in module.named_parameters():
            parameter.data.normal_(generator=torch.Generator().manual_seed(step))
            decay = min(0.7, (1 + step) / (10 + step))
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
        average.update(step)
    assert average.files()["00000.npy"] == pytest.approx(torch.cat([e.flatten() for e in expected.values()]).numpy())


def test_what_is_locked_has_no_average() -> None:
    module = nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    files = WeightAverage(module, 0.7, World(0, 0, 1, torch.device("cpu"))).files()
    assert len(files["00000.npy"]) == 2
    assert files[SIZES] == {"bias": 2}


@pytest.mark.parametrize(
    ("sizes", "saved", "said"),
    [
        ({"a": 2, "b": 3}, np.zeros(4, np.float32), "not the 5 of this model"),
        ({"a": 2, "b": 3}, None, "00000.npy, of the average of the weights, cannot be read"),
        (None, np.zeros(5, np.float32), "sizes.json, of the average of the weights, cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, sizes: dict[str, int] | None, saved: np.ndarray | None, said: str
) -> None:
    if sizes is not None:
        write_json(tmp_path / SIZES, sizes)
    if saved is not None:
        np.save(tmp_path / "00000.npy", saved)
    with pytest.raises(UserError, match=said):
        SavedAverage(tmp_path, 1, 2)


def test_the_average_of_another_model_is_refused(tmp_path: Path) -> None:
    world = World(0, 0, 1, torch.device("cpu"))
    files = WeightAverage(nn.Linear(3, 2), 0.7, world).files()
    write_json(tmp_path / SIZES, files[SIZES])
    np.save(tmp_path / "00000.npy", files["00000.npy"])
    with pytest.raises(UserError, match="another model"):
        WeightAverage(nn.Linear(2, 3), 0.7, world).load(tmp_path, 1, 2)
