"""The report's page as a person sees it, in headless Chromium, from a file: both themes, at a desk and on a telephone."""

import pytest

from analysis.points.example import example_rows
from analysis.report.page import write_report
from analysis.report.pictures import TRIAL_CURVES
from tests.browser import chromium, keep

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WATCH = "addEventListener('click', event => { window.followed = !event.defaultPrevented; event.preventDefault() })"
POINT = "#error_against_data .point"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A study's folder with a report and one trial's curve; the trial's name."""
    store, rows = tmp_path_factory.mktemp("store"), example_rows()
    page = write_report(rows, store / "report", bootstrap=60, curves=TRIAL_CURVES)
    for trial in rows["trial"]:
        (store / "trials" / trial).mkdir(parents=True)
        (store / "trials" / trial / "progress.csv").write_text("step,val_mae_dex\n")
    return page


@pytest.fixture(scope="module")
def browser():
    with chromium() as chrome:
        yield chrome


def show(browser, page, width, theme, *, script=True):
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    browser.get(page.as_uri())


def at(browser, selector):
    """The middle of the first element, which is brought into view."""
    script = (
        "const each = document.querySelector(arguments[0]); each.scrollIntoView({block: 'center'});"
        "const box = each.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]"
    )
    return [round(value) for value in browser.execute_script(script, selector)]


def point_at(browser, x, y):
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    return browser.execute_script("return [tip.hidden, tip.textContent, tip.getBoundingClientRect().right]")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_fits_says_no_error_and_shows_a_points_numbers(browser, store, width, theme):
    show(browser, store, width, theme)
    for opened in (False, True):
        browser.execute_script(
            "document.querySelectorAll('details').forEach(each => { each.open ||= arguments[0] })", opened
        )
        wide, seen = browser.execute_script(
            "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
        )
        assert wide == seen
    keep(browser, f"page-{width}-{theme}")
    hidden, text, right = point_at(browser, *at(browser, POINT))
    assert not hidden
    assert text.startswith("N = 3,000, D = 1,024\ntest MAE 0.")
    assert "learning rate 0.00" in text
    assert right <= width
    assert point_at(browser, 1, 1)[0]
    assert browser.get_log("browser") == []


def test_both_themes_have_contrast_in_text_and_figures(browser, store):
    script = (
        "const colour = (each, name) => getComputedStyle(document.querySelector(each))[name].match(/\\d+/g).slice(0, 3);"
        "return [colour('body', 'backgroundColor'), colour('body', 'color'), colour('.picture svg', 'fill'),"
        " colour('#error_against_data [id$=axes_1] [id*=line2d] use', 'stroke')].map(each => each.map(Number))"
    )
    for theme in ("light", "dark"):
        show(browser, store, 1400, theme)
        paper, *inks = browser.execute_script(script)
        assert (sum(paper) > 600) == (theme == "light")
        assert all(abs(sum(ink) - sum(paper)) > 450 for ink in inks), theme


def test_a_point_marks_its_trial_in_every_figure_and_leads_to_its_curve(browser, store):
    show(browser, store, 1400, "light")
    x, y = at(browser, POINT)
    point_at(browser, x, y)
    lit = browser.execute_script("return [...document.querySelectorAll('.lit')].map(each => each.dataset.trial)")
    assert len(lit) >= 4
    assert len(set(lit)) == 1
    browser.execute_script(WATCH)
    for kind in ("mousePressed", "mouseReleased"):
        click = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", click)
    assert browser.execute_script("return followed")
    address = browser.execute_script("return document.querySelector('#error_against_data .lit').href.baseVal")
    assert address == f"../trials/{lit[0]}/progress.csv"
    assert (store.parent / address).is_file()


def test_a_finger_shows_the_numbers_before_it_follows_the_link(browser, store):
    show(browser, store, 360, "light")
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    x, y = at(browser, POINT)
    browser.execute_script(WATCH)
    followed = []
    for _ in range(2):
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        followed.append(browser.execute_script("return followed"))
        assert browser.execute_script("return tip.textContent").startswith("N = 3,000")
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert followed == [False, True]


def test_without_a_script_figures_numbers_and_folds_are_there(browser, store):
    show(browser, store, 1400, "light", script=False)
    tree = browser.execute_cdp_cmd("DOM.getDocument", {"depth": 1})["root"]["nodeId"]

    def found(selector):
        return browser.execute_cdp_cmd("DOM.querySelectorAll", {"nodeId": tree, "selector": selector})["nodeIds"]

    assert len(found(f"{POINT} title")) == 60
    assert len(found(".picture svg")) >= 9
    assert found("details:not([open])")
    assert not found('[role="tooltip"]:not([hidden])')
    show(browser, store, 1400, "light")
