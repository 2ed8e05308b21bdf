"""Views of a page in the browser, what must hold in each, and a picture of it to keep.

`REPORT_SCREENSHOTS=FOLDER` keeps a picture of each view.
"""

import base64
import json
import os
from pathlib import Path

VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


def show(browser, page: Path, width: int = 1280, scheme: str = "light") -> None:
    browser.get_log("browser"), browser.get_log("performance")
    size(browser, width, scheme)
    browser.get(page.as_uri())


def size(browser, width: int, scheme: str = "light") -> None:
    """Of what is shown next. width: in CSS pixels, of a phone below 600."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def show_whole(browser, page: Path, width: int = 1280, scheme: str = "light") -> None:
    """Show it; nothing was fetched or logged, and nothing sticks out."""
    show(browser, page, width, scheme)
    assert browser.get_log("browser") == []
    assert requested(browser) == {page.as_uri()}
    assert overflow(browser) == 0


def overflow(browser) -> int:
    """Pixels by which the page is wider than the window."""
    return browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")


def draw_all(browser) -> None:
    """Curves are drawn when they come into view."""
    browser.execute_script("document.querySelectorAll('.chart').forEach((c, i) => build(i))")


def drawn(browser) -> int:
    """Charts that are there."""
    return browser.execute_script("return document.querySelectorAll('.chart canvas').length")


def requested(browser) -> set[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = {params["request"]["url"] for params in sent}
    # chrome: is the browser's own start page, still loading; a page cannot ask for it.
    return {url for url in urls if not url.startswith(("data:", "chrome:", "chrome-untrusted:"))}


def text_of(browser, selector: str) -> str:
    """As it stands there, with every run of white space as one space."""
    return " ".join(browser.execute_script("return document.querySelector(arguments[0]).textContent", selector).split())


def assert_nothing_hostile_ran(browser) -> None:
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0


def assert_pictures_are_described(browser, count: int) -> None:
    """Those of the contact sheet are decoded and have a text, every drawing has a name, and no id is there twice."""
    pictures = "return [...document.querySelectorAll('.sheet img')].map(i => [i.naturalWidth > 0, i.alt.length > 0])"
    assert browser.execute_script(pictures) == [[True, True]] * count
    assert browser.execute_script("return document.querySelectorAll('[role=img]:not([aria-label])').length") == 0
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def assert_accessible(browser) -> None:
    """axe finds nothing serious on a page with curves, all of it drawn and unfolded."""
    draw_all(browser)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    browser.execute_script((Path(__file__).parent / "axe" / "axe.min.js").read_text())
    found = browser.execute_async_script("axe.run().then(arguments[0])")
    assert len(found["passes"]) > 20
    serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], [node["html"][:200] for node in v["nodes"][:3]]) for v in serious] == []


def assert_text_has_contrast(browser, page: Path) -> None:
    """WCAG AA: at least 4.5 to 1 for every piece of text against what is behind it, in both schemes."""
    script = (Path(__file__).parent / "contrast.js").read_text()
    for scheme in ("light", "dark"):
        show(browser, page, scheme=scheme)
        assert browser.execute_script(script) == []


def keep_screenshot(browser, name: str) -> None:
    folder = os.environ.get("REPORT_SCREENSHOTS")
    if folder:
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
