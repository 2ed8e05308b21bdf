"""The figures as files, and one palette on page and pictures, told apart by readers who see few hues."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline.report.curves as package
from pipeline.report.compare.comparison import compare
from pipeline.report.compare.find import find_runs
from pipeline.report.compare.pictures import HUES, write_figures
from pipeline.report.curves.section import COLOURS
from tests.compare_support import fabricate_member, fabricate_sweep
from tests.report_support import HOSTILE

CSS = (Path(package.__file__).parent / "curves.css").read_text()
PALETTE = re.findall(r"--g(\d): light-dark\((#\w{6}), (#\w{6})\)", CSS)
LIGHT, DARK = ([pair[scheme] for pair in PALETTE] for scheme in (1, 2))
# Machado, Oliveira and Fernandes 2009, severity 1: what is left of linear RGB.
VISION = {
    "all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    ratio = TO_XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(("palette", "surface"), [(LIGHT, "#ffffff"), (DARK, "#1b1f24")])
def test_colours_stand_out_and_differ_for_every_kind_of_vision(palette, surface):
    def luminance(colour):
        return (TO_XYZ @ linear(colour))[1]

    for colour in palette:
        low, high = sorted((luminance(colour), luminance(surface)))
        assert (high + 0.05) / (low + 0.05) >= 3, f"{colour} on {surface}: WCAG 1.4.11"
    for matrix in VISION.values():
        seen = [lab(np.array(matrix) @ linear(colour)) for colour in palette]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 12


def test_pictures_have_the_colours_of_the_page():
    assert [int(number) for number, *_ in PALETTE] == list(range(COLOURS))
    assert list(HUES) == LIGHT


CURVES = [
    "curve-data-wait_share.png", "curve-npn-log_normalizer_mse.png", "curve-npn-share.png", "curve-train-accuracy.png",
    "curve-train-grad_norm.png", "curve-train-loss.png", "curve-train-samples_per_second.png", "curve-train-tau.png",
]  # fmt: skip


def pictures_of(folder, where):
    return sorted(path.name for path in write_figures(compare(find_runs([folder])), where))


def test_every_curve_that_was_logged_and_the_scores_become_pictures(tmp_path):
    sweep = fabricate_sweep(tmp_path / "sweep", {"neuclip": 0.55, "openclip": 0.5}, seeds=2)
    assert pictures_of(sweep, tmp_path / "figures") == [*CURVES, "differences.png", "scores.png"]
    for name, groups, least in (("curve-train-loss", 2, 500), ("scores", 2, 50), ("differences", 1, 50)):
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
            assert picture.width == 960
        for hue in HUES[:groups]:  # neuclip comes first; of differences it is the only one
            wanted = [int(hue[i : i + 2], 16) for i in (1, 3, 5)]
            assert (np.abs(pixels.astype(int) - wanted).max(axis=1) < 12).sum() > least, f"{name}: each group"


def test_one_run_with_a_hostile_name_has_pictures_too(tmp_path):
    name = ("_$x^$ {a} " + HOSTILE).replace("/", "|")[:120]
    fabricate_member(tmp_path / name)
    fabricate_member(tmp_path / "other", seed=1)
    assert pictures_of(tmp_path, tmp_path / "figures") == [*CURVES, "scores.png"], "one group: nothing differs"
    assert pictures_of(tmp_path / name, tmp_path / "alone") == [*CURVES, "scores.png"]


def test_a_run_without_anything_has_no_pictures(tmp_path):
    run = fabricate_member(tmp_path / "run")
    for file in ("train/metrics.jsonl", "results/aggregate.json", "model/export.json"):
        (run / file).unlink()
    assert pictures_of(run, tmp_path / "figures") == []
