"""What a recipe's `corpus.name` stands for: a name, or the file of a definition that has one."""

from __future__ import annotations

from pathlib import Path

from pipeline.files import read_object


def corpus_name(given: str) -> str:
    """The corpus's own name, which is its folder's; the file's where that says none, or is gone."""
    path = Path(given)
    if path.suffix not in (".yaml", ".yml"):
        return path.name
    return str((read_object(path) or {}).get("name") or path.stem)
