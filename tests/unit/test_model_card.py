"""The model card says where weights come from, and what they score once that is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.models.model_card import write_card

PROVENANCE = {
    "model": "ViT-B-32",
    "recipe": "cc12m",
    "objective": "neuclip",
    "manifest_fingerprint": "0123abcd",
    "weights": "last",
    "weights_sha256": "ab" * 32,
}
SUMMARY = {
    "checkpoint_sha256": "ab" * 32,
    "precision": "fp32",
    "tasks": 2,
    "average": 0.25,
    "scores": {
        "a": {"title": "Birds", "main_metric": "acc1", "score": 0.5, "chance": 0.1},
        "b": {"title": "Texts", "main_metric": "mean_recall@1", "score": 0.0, "chance": 0.01},
    },
}


def test_without_and_with_scores(tmp_path: Path) -> None:
    write_json(tmp_path / "export.json", PROVENANCE)
    write_card(tmp_path)
    before = (tmp_path / "README.md").read_text()
    assert "# cc12m: ViT-B-32 trained with neuclip" in before
    for key, value in PROVENANCE.items():
        assert f"| {key} | `{value}` |" in before
    assert "Scores" not in before
    for _ in range(2):  # a later evaluation replaces the scores of the one before
        write_card(tmp_path, SUMMARY)
        after = (tmp_path / "README.md").read_text()
        assert after.startswith(before)
        assert after.count("## Scores") == 1
        assert "average of 2 tasks: 0.2500" in after
        assert "| Birds | acc1 | 0.5000 | 0.1000 |" in after


def test_a_partial_mean_is_not_called_an_average(tmp_path: Path) -> None:
    write_json(tmp_path / "export.json", PROVENANCE)
    rest = {key: value for key, value in SUMMARY.items() if key != "average"}
    write_card(tmp_path, {**rest, "partial_mean": 0.25, "of": 38})
    after = (tmp_path / "README.md").read_text()
    assert "partial mean of 2 of 38 tasks: 0.2500" in after
    assert "average" not in after


def test_a_model_from_elsewhere_keeps_its_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("theirs")
    write_card(tmp_path, SUMMARY)
    assert (tmp_path / "README.md").read_text() == "theirs"


def test_scores_of_other_weights_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "export.json", PROVENANCE)
    write_card(tmp_path)
    before = (tmp_path / "README.md").read_text()
    with pytest.raises(UserError, match=r"scores are of weights cdcdcdcdcdcd, .* holds abababababab"):
        write_card(tmp_path, {**SUMMARY, "checkpoint_sha256": "cd" * 32})
    assert (tmp_path / "README.md").read_text() == before


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_json(tmp_path / "export.json", PROVENANCE)
    (tmp_path / "README.md").mkdir()
    write_card(tmp_path, SUMMARY)
    assert "README.md could not be written" in caplog.text
