"""Where the MLflow runs of a directory go: where they were begun, and until then where somebody says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.schema import TrackingConfig
from pipeline.tracking.directory import identify, remember


def test_a_place_where_nothing_was_begun_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrackingConfig()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://mistyped")
    first = identify(tmp_path, config)
    assert first["tracking_uri"] == "htp://mistyped"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # a login node that knows of no server: it stays the run's
    assert identify(tmp_path, config) == first
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://right")
    second = identify(tmp_path, config)
    assert second == {**first, "tracking_uri": "http://right"}
    remember(tmp_path, {"": "run", "train": "other"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another")
    assert identify(tmp_path, config)["tracking_uri"] == "http://right", "runs stay where they are begun"


def test_without_a_word_it_is_the_directory_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert identify(tmp_path, TrackingConfig())["tracking_uri"] == "sqlite:///mlflow.db"
    assert identify(tmp_path, TrackingConfig(uri="http://named"))["tracking_uri"] == "http://named"
