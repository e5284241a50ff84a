"""A submitted study on Ray's dashboard, as a person with the token sees it; `tests.test_browser` says what it needs."""

import json

import pytest

from tests.cluster.nodes import TOKEN, a_head, ask
from tests.test_browser import browser, keep, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
__all__ = ["browser"]


def test_a_study_on_rays_dashboard_and_its_report(browser, tmp_path):
    store = tmp_path / "store"
    with a_head() as (_, url, _):
        done = ask(url, "submit", "experiments.smoke", "--store", store, "--cache", tmp_path / "cache")
        assert done.returncode == 0, done.stdout + done.stderr
        job = next(word for word in done.stdout.split() if word.startswith("smoke-")).rstrip(":")
        look(browser, f"{url}/#/jobs/{job}", job, store, TOKEN)


def look(browser, page, job, store, token):
    browser.set_window_size(1400, 1500)
    browser.get(page)
    assert text_with(browser, "Authentication Token Required")
    keep(browser, "ray-token")
    browser.find_element("css selector", "input[type=password]").send_keys(f"{token}\n")
    about = f'{{ "study": "experiments.smoke", "store": "{store}", "commit": "'
    text = text_with(browser, job, about, "SUCCEEDED", "\nFinished: ", "study smoke: connecting to Ray")
    keep(browser, "ray-job")
    assert not [word for word in ("Failed:", "WARNING", "Traceback") if word in text]
    browser.get((store / "smoke" / "report" / "index.html").as_uri())
    assert text_with(browser, "What was run")
    keep(browser, "report-of-smoke")


def text_with(browser, *words):
    """What a page shows, once all words are there."""
    found = (
        f"const text = document.body.innerText; return {json.dumps(words)}.every((each) => text.includes(each)) && text"
    )
    return wait_for(browser, found)
