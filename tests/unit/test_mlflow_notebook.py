"""docs/compare_in_mlflow.ipynb, cell by cell, on what a mirror has sent."""

import json
from pathlib import Path

import matplotlib
import mlflow
import pytest
from matplotlib import pyplot

from pipeline.tracking.jsonl import read_points
from tests.tracking_support import BATCH, mirrored_sweep

NOTEBOOK = Path(__file__).parents[2] / "docs/compare_in_mlflow.ipynb"


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_notebook_draws_scores_by_objective_and_curves_by_samples(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    homes = mirrored_sweep(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    notebook = json.loads(NOTEBOOK.read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "results of somebody's own runs"
    names: dict = {}
    before = matplotlib.get_backend(), mlflow.get_tracking_uri()
    matplotlib.use("agg")
    try:
        for cell in cells:
            exec(compile(cell, NOTEBOOK.name, "exec"), names)
        average = names["table"]["metrics.eval/average"]
        assert average["mean"].to_dict() == pytest.approx({"neuclip": 0.6, "openclip": 0.4})
        assert average["sem"].to_dict() == pytest.approx({"neuclip": 0.1, "openclip": 0.0})
        assert legend(names["by_task"].axes[0]) == ["neuclip", "openclip"]
        loss, *others = names["over_samples"].axes
        drawn = sorted(tuple(zip(*line.get_data(), strict=True)) for line in loss.lines)
        logged = [read_points(home / "train/metrics.jsonl") for home in homes.values()]
        assert drawn == sorted(tuple((p.samples_seen, p.metrics["train/loss"]) for p in points) for points in logged)
        assert drawn[0][0][0] == BATCH
        assert legend(loss) == ["neuclip", "openclip"]
        assert len(others) == 3
    finally:
        pyplot.close("all")
        matplotlib.use(before[0])
        mlflow.set_tracking_uri(before[1])
