"""A corpus's report in a real browser: whole at every width, nothing fetched, hostile text stays text, contrast."""

from pathlib import Path

import pytest
from corpus_report_support import HOSTILE, fabricate_corpus
from views import VIEWS, keep_screenshot, requested, show

from data_prep.report import build_report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return build_report(fabricate_corpus(tmp_path_factory.mktemp("corpus")))[0]


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_the_page_is_whole_at_every_width_and_in_both_schemes(browser, page, width, scheme):
    show(browser, page, width, scheme)
    assert browser.get_log("browser") == []
    assert requested(browser) == {page.as_uri()}
    drawn = "return [...document.querySelectorAll('.chart svg')].map(e => e.getBoundingClientRect().height > 100)"
    assert browser.execute_script(drawn) == [True] * 6
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(overflow) == 0
    keep_screenshot(browser, f"corpus-{width}-{scheme}")


def test_hostile_text_is_shown_and_never_run(browser, page):
    show(browser, page)
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    assert browser.execute_script("return document.querySelector('h1').textContent") == HOSTILE
    assert HOSTILE in browser.execute_script("return document.querySelector('.facts dd').textContent")


def test_every_picture_is_described_and_its_parts_are_its_own(browser, page):
    show(browser, page)
    pictures = "return [...document.querySelectorAll('.sheet img')].map(i => [i.naturalWidth > 0, i.alt.length > 0])"
    shown = browser.execute_script(pictures)
    assert 22 <= len(shown) <= 24
    assert set(map(tuple, shown)) == {(True, True)}
    assert browser.execute_script("return document.querySelectorAll('[role=img]:not([aria-label])').length") == 0
    repeated = (
        "const ids = [...document.querySelectorAll('[id]')].map(e => e.id); return ids.length - new Set(ids).size"
    )
    assert browser.execute_script(repeated) == 0


def test_text_has_contrast_in_both_schemes(browser, page):
    script = (Path(__file__).parent / "contrast.js").read_text()
    for scheme in ("light", "dark"):
        show(browser, page, scheme=scheme)
        assert browser.execute_script(script) == []
