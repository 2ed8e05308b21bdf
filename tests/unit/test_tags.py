"""What is left of saves and conversions that were killed is gone once a run looks for its newest checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engine.tags import newest_whole, publish, seal_part, tag_of, temporary_folder


def save(folder: Path, step: int) -> str:
    temporary = temporary_folder(folder, tag_of(step))
    temporary.mkdir(parents=True)
    (temporary / "weights.pt").write_bytes(b"w" * step)
    seal_part(temporary, 0, ["weights.pt"])
    publish(folder, tag_of(step), 1)
    return tag_of(step)


@pytest.mark.parametrize("leftover", [".step-00000007.tmp", ".converted-step-00000005", "step-00000007"])
def test_leftovers_are_removed_and_nothing_else(tmp_path: Path, leftover: str) -> None:
    """step-00000007 has no COMPLETE: it was renamed, and its save killed then."""
    tags = [save(tmp_path, 3), save(tmp_path, 5)]
    (tmp_path / leftover / "zero").mkdir(parents=True)
    (tmp_path / leftover / "zero/part-00000.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert newest_whole(tmp_path) == tags[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "notes", *tags]
    assert (tmp_path / tags[0] / "weights.pt").read_bytes() == b"www"


def test_leftovers_alone_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step-00000007.tmp").mkdir()
    assert newest_whole(tmp_path) is None
    assert not list(tmp_path.iterdir())
