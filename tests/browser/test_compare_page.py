"""The comparison in a real browser: whole at every width, nothing fetched, controls work, axe finds nothing serious."""

import pytest

from pipeline.report.compare.comparison import compare
from pipeline.report.compare.find import find_runs
from pipeline.report.compare.page import write_page
from tests.browser.views import (
    VIEWS,
    assert_accessible,
    assert_nothing_hostile_ran,
    assert_text_has_contrast,
    draw_all,
    drawn,
    keep_screenshot,
    overflow,
    show,
    show_whole,
    text_of,
)
from tests.compare_support import fabricate_member, fabricate_sweep
from tests.report_support import HOSTILE

WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
ActionChains = pytest.importorskip("selenium.webdriver").ActionChains
WIDTHS = [*VIEWS, (360, "light")]
FIGURES = 8
# What a canvas shows, as one number: it changes when what is drawn does.
INK = "return [...document.querySelectorAll('.chart canvas')].map(c => c.toDataURL().length)"


def page_of(folder, path, **options):
    write_page(compare(find_runs([folder]), **options), path)
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    fabricate_sweep(root / "sweep", {"neuclip": 0.55, "openclip": 0.5}, seeds=2, tasks=6)
    return page_of(root / "sweep", root / "compare.html")


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """40 runs of 38 tasks and 600 points: another seed of each objective, then another rate, and so on."""
    root = tmp_path_factory.mktemp("forty")
    for i in range(40):
        objective, rate = ("neuclip", "openclip")[i % 2], 1e-4 * (1 + i // 8)
        fabricate_member(root / "runs" / f"run-{i:02d}", objective, i // 2, 38, steps=1200, optimizer={"lr": rate})
    return page_of(root / "runs", root / "compare.html")


@pytest.mark.parametrize(("width", "scheme"), WIDTHS)
def test_the_page_is_whole_at_every_width_and_in_both_schemes(browser, page, width, scheme):
    show_whole(browser, page, width, scheme)
    draw_all(browser)
    assert drawn(browser) == FIGURES
    assert overflow(browser) == 0
    assert browser.get_log("browser") == []
    keep_screenshot(browser, f"compare-{width}-{scheme}")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light")])
def test_axe_finds_nothing_serious(browser, page, width, scheme):
    show(browser, page, width, scheme)
    assert_accessible(browser)


def test_text_has_contrast(browser, page):
    assert_text_has_contrast(browser, page)


def test_hostile_text_is_shown_and_never_run(browser, page):
    show(browser, page)
    assert_nothing_hostile_ran(browser)
    expected = " ".join(HOSTILE.split())[:60]
    assert expected in text_of(browser, "#main section[aria-labelledby=tasks]")
    assert expected[:30] in text_of(browser, "#main section[aria-labelledby=data]")
    assert expected[:60] in text_of(browser, "#main section[aria-labelledby=provenance]")
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_runs_and_groups_are_shown_and_hidden(browser, page):
    show(browser, page)
    draw_all(browser)
    shown = "return charts[0].series.slice(1).map(s => s.show)"
    assert browser.execute_script(shown) == [True] * 4
    browser.execute_script("document.querySelector('[data-run=\"1\"]').click()")
    assert browser.execute_script(shown) == [True, False, True, True]
    browser.execute_script("document.querySelector('[data-group=\"1\"]').click()")
    assert browser.execute_script(shown) == [True, False, False, False]
    pressed = "return [...document.querySelectorAll('[data-group]')].map(b => b.getAttribute('aria-pressed'))"
    assert browser.execute_script(pressed) == ["true", "false"]
    browser.execute_script("document.querySelector('[data-all=false]').click()")
    assert browser.execute_script(shown) == [False] * 4
    browser.execute_script("document.querySelector('[data-all=true]').click()")
    assert browser.execute_script(shown) == [True] * 4


def test_axes_logarithms_and_smoothing_redraw_the_curves(browser, page):
    show(browser, page)
    draw_all(browser)
    top = "return Math.max(...charts[0].data[0])"
    assert browser.execute_script(top) == 200 * 64
    browser.execute_script("document.querySelector('[name=axis][value=hours]').click()")
    assert browser.execute_script(top) == pytest.approx(200 * 64 / 400 / 3600, rel=1e-3)
    browser.execute_script("document.querySelector('[name=axis][value=gpu_hours]').click()")
    assert browser.execute_script(top) == pytest.approx(8 * 200 * 64 / 400 / 3600, rel=1e-3)
    assert browser.execute_script("return charts[0].scales.y.distr") == 1
    browser.execute_script("document.querySelector('[data-log=\"0\"]').click()")
    assert browser.execute_script("return charts[0].scales.y.distr") == 3
    raw = browser.execute_script("return figures[0].series[0].y")
    move = "const s = document.getElementById('smoothing'); s.value = 0.9; s.dispatchEvent(new Event('input'))"
    browser.execute_script(move)
    smooth = browser.execute_script("return charts[0].data[1].filter(v => v !== undefined)")
    for i in (0, 1, 7, len(raw) - 1):
        seen = [value for value in raw[: i + 1] if value is not None]
        weights = [0.9**age for age in reversed(range(len(seen)))]
        mean = sum(w * value for w, value in zip(weights, seen, strict=True)) / sum(weights)
        assert smooth[i] == pytest.approx(mean), "an exponential mean, which does not start at 0"
    assert [value is None for value in smooth] == [value is None for value in raw], "gaps stay"
    assert text_of(browser, "#smoothed") == "0.9"


def test_drag_zooms_all_charts_and_a_double_click_goes_back(browser, page):
    show(browser, page)
    draw_all(browser)
    ranges = "return charts.map(c => [c.scales.x.min, c.scales.x.max])"
    whole = browser.execute_script(ranges)
    over = browser.execute_script("const o = charts[0].over; o.scrollIntoView({block: 'center'}); return o")
    ActionChains(browser).move_to_element_with_offset(over, -100, 0).click_and_hold().move_by_offset(
        200, 0
    ).release().perform()
    zoomed = browser.execute_script(ranges)
    assert len({tuple(r) for r in zoomed}) == 1, "all charts alike"
    width = browser.execute_script("return charts[0].over.clientWidth")
    assert zoomed[0][1] - zoomed[0][0] == pytest.approx((whole[0][1] - whole[0][0]) * 200 / width, rel=0.05)
    over = browser.execute_script("return charts[0].over")
    ActionChains(browser).move_to_element(over).double_click().perform()
    assert browser.execute_script(ranges) == whole


def test_hovering_tells_the_curves_in_order_of_their_values(browser, page):
    show(browser, page)
    draw_all(browser)
    over = browser.execute_script("const o = charts[0].over; o.scrollIntoView({block: 'center'}); return o")
    ActionChains(browser).move_to_element(over).perform()
    tip = "return [...charts[0].over.querySelectorAll('.tip b')].map(e => Number(e.textContent))"
    values = WebDriverWait(browser, 20).until(lambda b: b.execute_script(tip))
    assert len(values) == 4
    assert values == sorted(values, reverse=True)
    names = browser.execute_script("return [...charts[0].over.querySelectorAll('.tip span')].map(e => e.textContent)")
    assert sorted(names) == [f"objective={o},seed={s}" for o in ("neuclip", "openclip") for s in (0, 1)]


def test_curves_are_read_and_zoomed_from_the_keyboard(browser, page):
    show(browser, page)
    draw_all(browser)
    chart = browser.execute_script("const c = document.querySelector('.chart'); c.focus(); return c")
    for _ in range(3):
        chart.send_keys("\ue014")  # right
    said = WebDriverWait(browser, 20).until(lambda b: text_of(b, "[data-said]"))
    assert said.startswith("384 samples: objective=")
    before = browser.execute_script("return charts[0].scales.x.max - charts[0].scales.x.min")
    chart.send_keys("+")
    assert browser.execute_script("return charts[0].scales.x.max - charts[0].scales.x.min") == pytest.approx(before / 2)
    chart.send_keys("0")
    assert browser.execute_script("return charts[0].scales.x.max - charts[0].scales.x.min") == before


def test_the_theme_follows_the_system_until_the_button_says_otherwise_and_paper_is_white(browser, page):
    show(browser, page, scheme="light")
    draw_all(browser)
    background = "return getComputedStyle(document.body).backgroundColor"
    light, ink = browser.execute_script(background), browser.execute_script(INK)
    browser.execute_script("document.getElementById('theme').click()")
    dark = browser.execute_script(background)
    assert dark != light
    assert browser.execute_script(INK) != ink, "curves change their colours too"
    assert text_of(browser, "#theme") == "Light"
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(background) == light
    assert browser.execute_script("return charts.map(c => c.width)") == [290] * FIGURES, "two fit on paper"
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(background) == dark
    assert browser.execute_script("return charts[0].width") > 400
    show(browser, page, scheme="dark")
    assert browser.execute_script(background) == dark


def test_forty_runs_make_a_small_page_that_opens(browser, forty):
    assert forty.stat().st_size < 3_000_000
    show_whole(browser, forty)
    draw_all(browser)
    assert drawn(browser) == FIGURES
    points = browser.execute_script("return figures.flatMap(f => f.series.map(s => s.x.length))")
    assert max(points) <= 500
    assert len(points) == 6 * 40 + 2 * 20
    looks = browser.execute_script("return runs.map(r => r.colour + r.dash)")
    assert len(set(looks)) >= 20, "colours and line styles tell runs apart"
    keep_screenshot(browser, "compare-forty")


@pytest.mark.parametrize("without", ["results", "train", "everything"])
def test_runs_that_lack_parts_make_a_clean_page(browser, tmp_path, without):
    for seed in (0, 1):
        folder = fabricate_member(tmp_path / "runs" / f"run{seed}", seed=seed)
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name != "recipe.yaml" and without in (file.parent.name, "everything"):
                file.unlink()
    page = page_of(tmp_path / "runs", tmp_path / "compare.html")
    show_whole(browser, page)
    assert browser.execute_script("return document.querySelectorAll('.missing').length") >= 1
    keep_screenshot(browser, f"compare-without-{without}")
