"""Curves hold what was logged, of one run or of many; thinned, they keep ends and extremes."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report.compare.find import find_runs
from pipeline.report.compare.run import Run
from pipeline.report.curves.figures import MOST_BANDS, clock, figures, thin
from pipeline.report.curves.section import Drawn, look, section
from pipeline.tracking.jsonl import Point
from tests.compare_support import fabricate_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep") / "sweep"
    return fabricate_sweep(root, {"neuclip": 0.55, "openclip": 0.5, "siglip": 0.2}, seeds=3, tasks=1)


def run_of(folder, *metrics):
    """One point of 10 samples after the other."""
    return Run(folder, folder.name, [Point(i, 10 * i, 0.0, values) for i, values in enumerate(metrics, start=1)])


@settings(deadline=None)
@given(
    y=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=400),
    most=st.integers(4, 60),
)
def test_a_thinned_curve_keeps_ends_and_extremes(y, most):
    y = np.array(y)
    kept = thin(np.arange(len(y)), y, most)
    assert len(kept) <= max(most, 2)
    assert kept == sorted(set(kept))
    assert {0, len(y) - 1} <= set(kept)
    finite = y[np.isfinite(y)]
    if len(finite):
        left = y[kept][np.isfinite(y[kept])]
        assert left.max() == finite.max()
        assert left.min() == finite.min()


def test_a_spike_of_one_step_in_a_hundred_thousand_is_still_on_the_page(tmp_path):
    y = np.zeros(100_000)
    y[73_421] = 9.0
    kept = thin(np.arange(len(y)), y, 500)
    assert 73_421 in kept
    assert len(kept) <= 500


def test_curves_hold_what_was_logged(sweep):
    runs = find_runs([sweep])
    drawn = {figure["key"]: figure for figure in figures(runs)}
    assert drawn["npn/log_normalizer_mse"]["log"]
    assert not drawn["train/accuracy"]["log"]
    assert [one["run"] for one in drawn["npn/share"]["series"]] == [0, 1, 2], "only neuclip has an NPN"
    series = drawn["train/loss"]["series"][4]
    points = runs[4].points
    assert [series["samples"] * x for x in series["x"]] == [point.samples_seen for point in points]
    expected = [point.metrics["train/loss"] for point in points]
    gaps = [i for i, value in enumerate(series["y"]) if value is None]
    assert gaps == [i for i, value in enumerate(expected) if math.isnan(value)]
    np.testing.assert_allclose(
        [v for v in series["y"] if v is not None], [v for v in expected if not math.isnan(v)], rtol=1e-3
    )


def test_the_clock_leads_from_samples_to_hours(sweep):
    run = find_runs([sweep])[0]
    axes = clock(run)
    assert axes["samples"][0] == axes["hours"][0] == 0
    np.testing.assert_allclose(axes["hours"], np.array(axes["samples"]) / 400 / 3600, rtol=1e-3)
    np.testing.assert_allclose(axes["gpu_hours"], 8 * np.array(axes["hours"]), rtol=1e-3)


def test_values_that_are_not_finite_are_gaps(tmp_path):
    run = run_of(tmp_path, {"train/loss": 3.0}, {"train/loss": math.nan}, {"train/loss": 2.0}, {})
    (figure,) = figures([run])
    assert (figure["key"], figure["title"], figure["log"], figure["notes"]) == ("train/loss", "Loss", False, [])
    assert figure["series"] == [{"run": 0, "samples": 10, "x": [1, 2, 3], "y": [3.0, None, 2.0]}]
    json.dumps(figure, allow_nan=False)


def test_a_run_that_logged_only_nonsense_has_no_curves(tmp_path):
    assert figures([run_of(tmp_path, {"train/loss": math.nan}, {"other": 1.0})]) == []


def test_what_has_a_standard_error_has_a_band_of_two_of_them_above_zero(tmp_path):
    values, errors = [8.0, 0.1, 1.0, 1.0, math.nan], [1.0, 0.2, math.nan, None, 0.1]
    logged = [
        {"npn/log_normalizer_mse": value} | ({} if error is None else {"npn/log_normalizer_mse_se": error})
        for value, error in zip(values, errors, strict=True)
    ]
    run = run_of(tmp_path, *logged)
    (figure,) = figures([run])
    assert figure["log"]
    assert figure["notes"] == ["Shaded: two standard errors to either side."]
    (series,) = figure["series"]
    assert series["low"] == [6.0, 0.01, 1.0, 1.0, None]
    assert series["high"] == [10.0, 0.5, 1.0, 1.0, None]
    (figure,) = figures([run] * MOST_BANDS)
    assert all("low" in series for series in figure["series"])
    (figure,) = figures([run] * (MOST_BANDS + 1))
    assert not any("low" in series for series in figure["series"]), "bands of many runs hide one another"
    assert figure["notes"] == []


def test_what_to_bear_in_mind_is_said_where_runs_are_compared(tmp_path):
    run = run_of(tmp_path, {"train/loss": 3.0})
    assert [figure["notes"] for figure in figures([run])] == [[]]
    (figure,) = figures([run, run])
    assert figure["notes"] == ["Losses of different objectives have different scales."]


def test_only_axes_that_some_run_knows_are_offered(sweep, tmp_path):
    known, unknown = find_runs([sweep])[0], run_of(tmp_path, {"train/loss": 3.0})
    drawn = [Drawn(run, run.name, look(0)) for run in (known, unknown)]
    assert list(section(drawn)["axes"]) == ["samples", "hours", "gpu_hours"]
    alone = section(drawn[1:])
    assert list(alone["axes"]) == ["samples", "hours"]
    assert alone["data"]["runs"][0]["clock"] == {"samples": [0, 10], "hours": [0, 0]}
    assert alone["figures"][0]["rows"] == [{"name": unknown.name, "first": 3, "last": 3, "lowest": 3, "highest": 3}]
