"""One caption of several for each position: evenly, reproducibly, and never silently an empty one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.shard import Sample, StoredSample, read_index, sample_range, write_shard
from pipeline.config.loader import load_recipe
from pipeline.config.schema import LoaderConfig
from pipeline.data.captions import choose_caption
from pipeline.data.loader import Corpus
from pipeline.errors import UserError
from tests.conftest import write_corpus


def stored(folder: Path, caption: str, metadata: dict[str, Any]) -> StoredSample:
    """A sample as it comes out of a shard."""
    path = folder / "s.tar"
    write_shard(path, [Sample("0" * 32, b"image", "jpg", caption, metadata)])
    index = read_index(path)
    start, stop = sample_range(index, 0, path.stat().st_size)
    return StoredSample(path.read_bytes()[start:stop], index[0])


def choices(sample: StoredSample, *fields: str, draws: int = 600) -> Counter[tuple[str, int]]:
    return Counter(choose_caption(sample, fields, np.random.default_rng(n)) for n in range(draws))


def test_every_field_is_drawn_as_often_as_it_is_named(tmp_path: Path) -> None:
    sample = stored(tmp_path, "short", {"long": "a long one", "many": ["one", "two", "three"]})
    drawn = choices(sample, "txt", "json:long", "json:long", "json:many")
    assert set(drawn) == {(text, 0) for text in ("short", "a long one", "one", "two", "three")}
    assert drawn["a long one", 0] == pytest.approx(300, abs=50)  # 4 sigma
    assert drawn["short", 0] == pytest.approx(150, abs=43)
    assert drawn["two", 0] == pytest.approx(50, abs=28)


@pytest.mark.parametrize(
    "empty", [{}, {"alt": ""}, {"alt": " \n"}, {"alt": None}, {"alt": 7}, {"alt": ["", 3]}], ids=str
)
def test_what_is_missing_or_empty_gives_way_to_the_next_and_is_counted(tmp_path: Path, empty: dict[str, Any]) -> None:
    drawn = choices(stored(tmp_path, "text", empty), "txt", "json:alt")
    assert set(drawn) == {("text", 0), ("text", 1)}
    assert drawn["text", 1] == pytest.approx(300, abs=50)


def test_without_any_caption_it_is_empty_and_counted(tmp_path: Path) -> None:
    assert set(choices(stored(tmp_path, "", {}), "txt", "json:a", "json:b", draws=9)) == {("", 3)}


def words(captions: list[str]) -> torch.Tensor:
    """[number of the sample, whether the caption is the alternative one]"""
    return torch.tensor([[int(caption.split()[1]), int(caption.startswith("alternative"))] for caption in captions])


def test_the_choice_belongs_to_seed_and_position(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, [40, 30], metadata=lambda n: {"alt": f"alternative {n}"} if n % 7 else {})

    def drawn(seed: int, positions: range, **settings: Any) -> tuple[torch.Tensor, int]:
        config = LoaderConfig(manifest=str(folder), lanes=4, **settings)
        batch = Corpus(config, seed, 16, words).__getitems__(list(positions))
        assert torch.equal(batch.tokens[:, 0], batch.sample_index)
        return batch.tokens[batch.sample_index.argsort(), 1], batch.empty_captions

    both = {"captions": ("txt", "json:alt")}
    epoch, empty = drawn(0, range(70), **both)
    assert not epoch[::7].any()  # those have no alternative
    assert 0 < empty < 10
    assert 15 < epoch.sum() < 45
    assert torch.equal(epoch, drawn(0, range(70), **both)[0])
    assert not torch.equal(epoch, drawn(0, range(70, 140), **both)[0])
    assert not torch.equal(epoch, drawn(1, range(70), **both)[0])
    assert not drawn(0, range(70))[0].any()  # by default the caption of the shard


def test_pixels_do_not_depend_on_the_caption_fields(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, [9])
    one, two = (
        Corpus(LoaderConfig(manifest=str(folder), captions=fields), 0, 16, words).__getitems__([3, 4])
        for fields in (("txt",), ("json:x", "txt"))
    )
    assert torch.equal(one.images, two.images)


def test_metadata_that_cannot_be_read_fails_the_sample_not_the_run(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, [5], metadata=lambda n: {"alt": f"alternative {n}"})
    shard = folder / "shards" / "00000-000.tar"
    shard.write_bytes(shard.read_bytes().replace(b'{"alt": "alternative 2"}', b'{"alt": "alternative 2" '))
    batch = Corpus(LoaderConfig(manifest=str(folder), captions=("json:alt",)), 0, 16, words).by_sample_index(
        np.arange(5)
    )
    assert batch.sample_index.tolist() == [0, 1, 3, 3, 4]
    assert batch.failures == {"JSONDecodeError": 1}


def test_an_unknown_kind_of_field_is_refused() -> None:
    with pytest.raises(UserError, match=r"^demo: loader\.captions\.1: 'alt' is not a caption field: .*json:KEY.*$"):
        load_recipe("demo", ["loader.captions=[txt, alt]"])
    for alone in ("alt", "json:"):
        with pytest.raises(UserError, match=rf"^demo: loader\.captions\.0: '{alone}' is not a caption field: .*$"):
            load_recipe("demo", [f"loader.captions=['{alone}']"])
    with pytest.raises(UserError, match=r"loader\.captions"):
        load_recipe("demo", ["loader.captions=[]"])
