"""docs/corpora.md names every key of a definition, every outcome and every reason to drop a row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from data_prep import outcomes
from data_prep.corpus import CorpusDefinition
from data_prep.screen import REASONS

ROOT = Path(__file__).parents[2]
TEXT = re.sub(
    r"^```.*?^```", "", (ROOT / "docs/corpora.md").read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
)
NAMED = set(re.findall(r"`([^`]+)`", TEXT))


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        found += keys(field.annotation, f"{name}.") if section else [prefix + name]
    return found


def causes() -> set[str]:
    """Of the rules, and of the literals that the sources raise and return."""
    source = (ROOT / "data_prep/stored.py").read_text()
    literals = re.findall(r'BadImage\(\s*"(\w+)"|return "(\w+)"|"(\w+)" if "trunc', source)
    return {*REASONS, *(cause for cause, _ in outcomes._RULES)} | {
        outcomes.OK,
        outcomes.LOST,
        *filter(None, sum(literals, ())),
    }


@pytest.mark.parametrize("name", [*keys(CorpusDefinition), *sorted(causes())])
def test_it_is_in_the_document(name: str) -> None:
    assert name in NAMED
