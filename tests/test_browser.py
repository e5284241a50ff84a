"""Dashboards of a running sweep as a person sees them, in headless Chromium.

Needs Chromium and its driver (Debian: ``apt-get install chromium chromium-driver``) and ``pip install selenium``. Run it with
``pytest -m browser``; with SCREENSHOTS=FOLDER it keeps a picture of each page, to be looked at.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.browser import chromium, keep
from tests.sweep.test_dashboards import free_ports

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]
STUDY = """
import dataclasses
from experiments.smoke import STUDY as SMOKE
from scaling.study.declaration import Budget

STUDY = dataclasses.replace(  # long enough to be looked at while it runs
    SMOKE, seeds=(1, 2, 3, 4, 5, 6), recipe=dataclasses.replace(SMOKE.recipe, budget=Budget(samples=65_536))
)
"""


@pytest.fixture(scope="module")
def browser():
    with chromium("--window-size=1500,1100") as chrome:
        yield chrome


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A running sweep with at least two rows, and its dashboards; their addresses by name."""
    folder = tmp_path_factory.mktemp("browser")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    (folder / "watched.py").write_text(STUDY)
    arguments = [str(folder / "watched.py"), "--store", str(folder / "store")]
    base = free_ports()
    with (folder / "run.log").open("wb") as log:
        command = [sys.executable, "-m", "scaling", "run", *arguments, "--cache", str(folder / "cache")]
        run = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        _wait_for_rows(folder / "store" / "smoke", run, 2, folder / "run.log")
        command = [sys.executable, "-m", "scaling", "dashboard", *arguments, "--port-base", str(base)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as served:
            lines = [served.stdout.readline().strip() for _ in range(3)]
            yield {line.split(":")[0]: line.split()[-1] for line in lines}
            served.send_signal(signal.SIGTERM)
    finally:
        run.send_signal(signal.SIGINT)
        run.wait(120)


def _wait_for_rows(study, run, count, log):
    deadline = time.monotonic() + 900
    while len(list(study.glob("trials/*/row.json"))) < count:
        assert run.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(1.0)


def wait_for(browser, script, seconds=90):
    """The result of a script once it is true; what pages draw in shadow roots and frames is found by `texts`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = browser.execute_script(script)
        if found:
            return found
        time.sleep(1.0)
    raise AssertionError(
        f"nothing after {seconds} s: {script}\n{browser.execute_script('return document.body.innerText')[:2000]}"
    )


TEXTS = """
const texts = [];
const walk = (node) => {
  if (node.nodeType === Node.TEXT_NODE && node.textContent.trim()) texts.push(node.textContent.trim());
  if (node.shadowRoot) walk(node.shadowRoot);
  if (node.tagName === 'IFRAME' && node.contentDocument) walk(node.contentDocument.body);
  if (!['SCRIPT', 'STYLE', 'TEMPLATE'].includes(node.tagName)) node.childNodes.forEach(walk);
};
walk(document.body);
"""


def texts_with(browser, part, seconds=90):
    """All texts of the page that hold `part`, once there are any."""
    return wait_for(
        browser,
        f"{TEXTS} const found = texts.filter((t) => t.includes({part!r})); return found.length ? found : null",
        seconds,
    )


def test_hparams_has_a_row_for_each_trial(browser, watched):
    browser.get(watched["TensorBoard"])
    assert texts_with(browser, "final/test_mae_dex")
    rows = texts_with(browser, "-t0")
    keep(browser, "tensorboard-hparams")
    assert len(set(rows)) >= 2
    browser.get(watched["TensorBoard"].replace("#hparams", "#timeseries"))
    browser.refresh()
    assert texts_with(browser, "/val_mae_dex")  # a card splits its tag at the slash
    keep(browser, "tensorboard-timeseries")


def test_optuna_dashboard_shows_the_whole_sweep(browser, watched):
    browser.get(watched["optuna-dashboard"])
    assert texts_with(browser, "smoke (id=")
    assert texts_with(browser, "Hyperparameter Importance")
    keep(browser, "optuna-history", wait=8)
    browser.get(f"{watched['optuna-dashboard']}/trials")
    assert texts_with(browser, "num_spectra")
    assert texts_with(browser, "Complete")
    assert texts_with(browser, "Running")
    keep(browser, "optuna-trials")
    browser.get(f"{watched['optuna-dashboard']}/analytics")
    assert texts_with(browser, "Slice")
    keep(browser, "optuna-analytics", wait=8)


def test_the_report_page_says_how_far_the_study_is_and_draws_its_rows(browser, watched):
    browser.get(watched["report"])
    assert texts_with(browser, "best cell w")
    assert texts_with(browser, "The study is not finished.", 150)  # figures of the rows so far
    assert browser.find_elements("css selector", ".picture svg")
    keep(browser, "report")
