"""MLflow's own pages on what was tracked, as `neuclip ui` opens them: the tree of runs, and a chart."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest

from pipeline.launch.ports import free_port
from tests.browser.views import keep_screenshot, size
from tests.tracking_support import PATIENCE, mirrored_sweep, runs_of

WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
MEMBERS = [f"objective={objective},seed={seed}" for objective in ("neuclip", "openclip") for seed in (0, 1)]


@pytest.fixture(scope="module")
def pages(browser, tmp_path_factory):
    """(the address of the pages, run ids by key)"""
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        mirrored_sweep(root)
    port = free_port()
    command = [sys.executable, "-m", "pipeline", "ui", str(root), "--port", str(port)]
    process = subprocess.Popen(command, start_new_session=True)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            with suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            time.sleep(0.2)
        size(browser, 1280)
        yield f"{address}/#/experiments/1/runs", runs_of(root)  # 0 is MLflow's own
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def open_row(browser, name, children):
    """Show what is below a run of the table; again where the page drew itself anew meanwhile, and closed it."""
    row = "[...document.querySelectorAll('.ag-row')].find(row => row.textContent.includes(arguments[0]))"
    click = f"const row = {row}; const plus = row && row.querySelector('button'); plus && plus.click()"

    def opened(browser):
        if children <= set(rows(browser)):
            return True
        browser.execute_script(click, name)
        return False

    WebDriverWait(browser, PATIENCE, poll_frequency=5).until(opened)


def rows(browser):
    return browser.execute_script("return [...document.querySelectorAll('.ag-row a')].map(a => a.textContent)")


@pytest.mark.slow
def test_the_tree_of_runs_opens_down_to_training(browser, pages):
    address, _ = pages
    browser.get(address)
    open_row(browser, "demo sweep0", set(MEMBERS))
    assert not [name for name in rows(browser) if name.startswith("train")]
    open_row(browser, MEMBERS[0], {f"train {MEMBERS[0]}", f"evaluate {MEMBERS[0]} step-00000009"})
    keep_screenshot(browser, "mlflow-tree")


@pytest.mark.slow
def test_a_metric_is_drawn_over_samples(browser, pages):
    address, ids = pages
    browser.get(f"{address}/{ids[f'members/{MEMBERS[0]}/train']}/model-metrics")
    line = "[...plot.querySelectorAll('path.js-line')].some(line => line.getTotalLength() > 50)"
    drawn = f"return [...document.querySelectorAll('.js-plotly-plot')].map(plot => {line})"
    WebDriverWait(browser, PATIENCE).until(lambda b: b.execute_script(drawn) == [True, True])  # loss and tau
    keep_screenshot(browser, "mlflow-metrics")
