"""report.html in a real browser: every figure is drawn, nothing is fetched, no error is logged, hostile text
stays text, axe finds nothing serious, and nothing sticks out at phone width, in light and dark. (What its curves can
do besides: test_compare_page.py, which has the same.)
"""

import pytest

from pipeline.report.build import build_report
from tests.browser.views import (
    VIEWS,
    assert_accessible,
    assert_nothing_hostile_ran,
    assert_pictures_are_described,
    assert_text_has_contrast,
    draw_all,
    drawn,
    keep_screenshot,
    overflow,
    show,
    show_whole,
    text_of,
)
from tests.report_support import HOSTILE, fabricate_run

WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
FIGURES = 7


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return build_report(fabricate_run(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_the_page_is_whole_at_every_width_and_in_both_schemes(browser, page, width, scheme):
    show_whole(browser, page, width, scheme)
    draw_all(browser)
    assert drawn(browser) == FIGURES
    assert browser.get_log("browser") == []
    assert overflow(browser) == 0
    keep_screenshot(browser, f"{width}-{scheme}")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_axe_finds_nothing_serious(browser, page, width, scheme):
    show(browser, page, width, scheme)
    assert_accessible(browser)


def test_hostile_text_is_shown_and_never_run(browser, page):
    show(browser, page)
    assert_nothing_hostile_ran(browser)
    expected = " ".join(HOSTILE.split())
    assert text_of(browser, "h1") == expected
    assert expected in text_of(browser, "section[aria-labelledby=ingestion]").replace("HTTP", "http_")
    assert expected in text_of(browser, "section[aria-labelledby=scores]")
    assert expected[:60] in text_of(browser, ".sheet li")


def test_every_picture_is_decoded_and_described(browser, page):
    show(browser, page)
    assert_pictures_are_described(browser, 23)  # of 24 positions one is no image


def test_text_has_contrast(browser, page):
    assert_text_has_contrast(browser, page)


def test_curves_follow_a_change_of_scheme_and_paper_is_white(browser, page):
    def colours():
        return browser.execute_script("return [charts[0].series[1].stroke(), getComputedStyle(document.body).color]")

    show(browser, page, scheme="light")
    draw_all(browser)
    light = colours()
    show(browser, page, scheme="dark")
    draw_all(browser)
    dark = colours()
    assert all(one != other for one, other in zip(dark, light, strict=True))
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert colours() == light
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert colours() == dark
    media = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    WebDriverWait(browser, 20).until(lambda _: colours() == light)


def test_the_error_of_the_log_normalizer_is_a_band_which_is_no_curve_of_its_own(browser, page):
    show(browser, page)
    draw_all(browser)
    at = "figures.findIndex(f => f.key === 'npn/log_normalizer_mse')"
    assert browser.execute_script(f"return charts[{at}].bands.map(b => b.series)") == [[2, 3]]
    curve, high, low = browser.execute_script(f"return charts[{at}].data.slice(1)")
    assert all(a > b > c for a, b, c in zip(high, curve, low, strict=True))
    browser.execute_script(f"charts[{at}].setCursor({{left: 50, top: 50}})")
    told = f"return [...charts[{at}].over.querySelectorAll('.tip b')].map(e => e.textContent)"
    assert len(WebDriverWait(browser, 20).until(lambda b: b.execute_script(told))) == 1


def test_a_run_alone_has_the_controls_of_a_comparison_but_no_choice_of_runs(browser, page):
    show(browser, page)
    draw_all(browser)
    hidden = "return ['controls', 'choices', 'theme'].map(id => document.getElementById(id).hidden)"
    assert browser.execute_script(hidden) == [False, True, False]
    browser.execute_script("document.querySelector('[data-log=\"0\"]').click()")
    assert browser.execute_script("return charts[0].scales.y.distr") == 3
    numbers = "return [...document.querySelectorAll('figure tbody td')].filter(e => e.textContent.trim()).length"
    assert browser.execute_script(numbers) == 4 * FIGURES


def test_a_run_that_has_just_begun_makes_a_clean_page(browser, tmp_path):
    page = build_report(fabricate_run(tmp_path, stages={}))
    show_whole(browser, page, 390)
    missing = browser.execute_script("return [...document.querySelectorAll('.missing')].map(e => e.textContent)")
    assert len(missing) == 5
    keep_screenshot(browser, "begun")
