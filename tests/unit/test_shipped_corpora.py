"""The corpora that are shipped: all can be read, and say what a user has to know."""

from __future__ import annotations

import re

import pytest
import yaml

from data_prep.corpus import SHIPPED, open_corpus, shipped_names
from pipeline.config.loader import RECIPES

WANTED = {
    *("cc3m", "cc12m", "sbu", "yfcc15m", "datacomp-small", "datacomp-medium", "datacomp-large", "datacomp-xlarge"),
    *("datacomp-1b", "dfn-14m", "dfn-192m", "dfn-1b", "laion-400m", "relaion-2b", "coyo-700m", "demo", "emoji"),
}


def test_all_of_them_are_there():
    assert set(shipped_names()) == WANTED


@pytest.mark.parametrize("name", sorted(WANTED))
def test_each_says_what_a_user_has_to_know(name, tmp_path):
    definition = open_corpus(name, tmp_path).definition
    assert definition.name == name
    assert definition.source != "not stated"
    if name in ("demo", "emoji"):
        return
    assert definition.hub or definition.urls or definition.by_hand, "where the metadata comes from"
    assert definition.expected_rows
    assert definition.unverified
    assert "images:" in definition.licence or "per photograph" in definition.licence
    for part in definition.hub:
        assert part.revision == "main" or re.fullmatch("[0-9a-f]{40}", part.revision)
        assert part.revision != "main" or "revision" in definition.unverified
    if definition.uids:
        (listed,) = [part for part in definition.hub if part.into == "uids"]
        assert definition.uids == f"uids/{listed.files[0]}"


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_names_a_corpus_that_is_shipped(recipe):
    corpus = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text()).get("corpus", {})
    name = corpus.get("name", "demo")
    assert (SHIPPED / f"{name}.yaml").is_file(), name
