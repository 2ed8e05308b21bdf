"""The figures as files; and one palette on page and pictures, told apart by readers who see few hues."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from compare_support import fabricate_member, fabricate_sweep
from PIL import Image
from report_support import HOSTILE

import pipeline.report.compare as package
from pipeline.report.compare.find import find_runs
from pipeline.report.compare.page import COLOURS
from pipeline.report.compare.pictures import HUES, write_figures

CSS = (Path(package.__file__).parent / "page.css").read_text()
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


def test_every_curve_that_was_logged_becomes_a_picture_and_the_page_lies_beside(tmp_path):
    runs = find_runs([fabricate_sweep(tmp_path / "sweep", {"neuclip": 0.55, "openclip": 0.5}, seeds=2)])
    written = write_figures(runs, tmp_path / "figures")
    assert sorted(path.name for path in written) == [
        "compare.html", "curve-data-wait_share.png", "curve-npn-log_normalizer_mse.png", "curve-npn-share.png",
        "curve-train-accuracy.png", "curve-train-grad_norm.png", "curve-train-loss.png",
        "curve-train-samples_per_second.png", "curve-train-tau.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "figures" / "curve-train-loss.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert picture.size == (960, 540)
    for hue in HUES[:2]:
        wanted = [int(hue[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - wanted).max(axis=1) < 12).sum() > 500, "a curve of each group"


def test_one_run_with_a_hostile_name_has_pictures_too(tmp_path):
    name = ("_$x^$ {a} " + HOSTILE).replace("/", "|")[:120]
    fabricate_member(tmp_path / name)
    fabricate_member(tmp_path / "other", seed=1)
    assert len(write_figures(find_runs([tmp_path]), tmp_path / "figures")) == 9
    assert write_figures(find_runs([tmp_path / name]), tmp_path / "alone")[-1].name == "compare.html"
