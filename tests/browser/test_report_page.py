"""report.html in a real browser: every figure is drawn, nothing is fetched, no error is logged, hostile text
stays text, all text has contrast, and nothing sticks out at phone width, in light and dark.
"""

import pytest
from report_support import HOSTILE, fabricate_run
from views import (
    VIEWS,
    assert_nothing_hostile_ran,
    assert_pictures_are_described,
    assert_text_has_contrast,
    keep_screenshot,
    show,
    show_whole,
    text_of,
)

from pipeline.report import build_report

WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return build_report(fabricate_run(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_the_page_is_whole_at_every_width_and_in_both_schemes(browser, page, width, scheme):
    show_whole(browser, page, width, scheme)
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('[data-figure]')].map(e => "
        "  [...e.querySelectorAll('.scatterlayer .trace path.js-line')].some(p => p.getTotalLength() > 100))"
    )
    assert drawn == [True] * 6
    keep_screenshot(browser, f"{width}-{scheme}")


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
    def stroke():
        return browser.execute_script("return getComputedStyle(document.querySelector('.js-line')).stroke")

    show(browser, page, scheme="light")
    light = stroke()
    show(browser, page, scheme="dark")
    dark = stroke()
    assert dark != light
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    WebDriverWait(browser, 20).until(lambda _: stroke() == light)
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    WebDriverWait(browser, 20).until(lambda _: stroke() == dark)
    media = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    WebDriverWait(browser, 20).until(lambda _: stroke() == light)


def test_a_run_that_has_just_begun_makes_a_clean_page(browser, tmp_path):
    page = build_report(fabricate_run(tmp_path, stages={}))
    show_whole(browser, page, 390)
    missing = browser.execute_script("return [...document.querySelectorAll('.missing')].map(e => e.textContent)")
    assert len(missing) == 5
    keep_screenshot(browser, "begun")
