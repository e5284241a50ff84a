"""Headless Chromium for the tests marked `browser`: with SCREENSHOTS=FOLDER they keep a picture of each page, to be looked at."""

import contextlib
import os
import shutil
import time
from pathlib import Path

import pytest


@contextlib.contextmanager
def chromium(*flags):
    """A browser; the test is skipped where Chromium, its driver or selenium is not installed."""
    pytest.importorskip("selenium")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver")
    options = ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *flags):
        options.add_argument(flag)
    chrome = Chrome(options=options, service=ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def keep(browser, name, wait=1):
    if "SCREENSHOTS" in os.environ:
        time.sleep(wait)  # until plots are drawn
        folder = Path(os.environ["SCREENSHOTS"])
        folder.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(folder / f"{name}.png"))
