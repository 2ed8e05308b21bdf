"""Views of a page in the browser: its width and scheme, what it asked for, and a picture of it to keep.

`REPORT_SCREENSHOTS=FOLDER` keeps a picture of each view.
"""

import base64
import json
import os
from pathlib import Path

VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


def show(browser, page: Path, width: int = 1280, scheme: str = "light") -> None:
    browser.get_log("browser"), browser.get_log("performance")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())


def requested(browser) -> set[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = {params["request"]["url"] for params in sent}
    # chrome: is the browser's own start page, still loading; a page cannot ask for it.
    return {url for url in urls if not url.startswith(("data:", "chrome:", "chrome-untrusted:"))}


def keep_screenshot(browser, name: str) -> None:
    folder = os.environ.get("REPORT_SCREENSHOTS")
    if folder:
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
