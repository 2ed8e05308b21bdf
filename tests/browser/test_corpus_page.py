"""A corpus's report in a real browser: whole at every width, nothing fetched, hostile text stays text, contrast."""

import pytest

from data_prep.report import build_report
from tests.browser.views import (
    VIEWS,
    assert_nothing_hostile_ran,
    assert_pictures_are_described,
    assert_text_has_contrast,
    keep_screenshot,
    show,
    show_whole,
    text_of,
)
from tests.corpus_report_support import HOSTILE, fabricate_corpus


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return build_report(fabricate_corpus(tmp_path_factory.mktemp("corpus")))[0]


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_the_page_is_whole_at_every_width_and_in_both_schemes(browser, page, width, scheme):
    show_whole(browser, page, width, scheme)
    drawn = "return [...document.querySelectorAll('.chart svg')].map(e => e.getBoundingClientRect().height > 100)"
    assert browser.execute_script(drawn) == [True] * 6
    keep_screenshot(browser, f"corpus-{width}-{scheme}")


def test_hostile_text_is_shown_and_never_run(browser, page):
    show(browser, page)
    assert_nothing_hostile_ran(browser)
    expected = " ".join(HOSTILE.split())
    assert text_of(browser, "h1") == expected
    assert expected in text_of(browser, ".facts dd")


def test_every_picture_is_described_and_its_parts_are_its_own(browser, page):
    show(browser, page)
    assert_pictures_are_described(browser, 24)


def test_text_has_contrast(browser, page):
    assert_text_has_contrast(browser, page)
