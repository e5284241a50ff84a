"""The report: one page that tells the whole story, and the checklist of what a study must state."""

import base64
import copy
import dataclasses
import json
import re
from io import BytesIO

import numpy as np
import pandas as pd
import pytest

from analysis.points.example import example_rows
from analysis.points.limit import Limit
from analysis.points.trials import best_trials
from analysis.report.checklist import NOT_RECORDED, checklist
from analysis.report.headline import headlines, meanings
from analysis.report.page import write_report
from analysis.report.pictures import save_pictures
from analysis.report.words import axis_meaning, bounds, greek, significant
from tests.analysis.conftest import FIXED_NOISE_FIXED_SAMPLES, STUDY_FIGURES, frame, study_rows

SECTIONS = (
    "What was run",
    "The law",
    "Why the curve stops",
    "What more data, or a larger model, would buy",
    "How to spend compute",
    "Was the forecast right?",
    "Learning rates",
    "What was excluded, and why",
    "Checklist",
)


@pytest.fixture(scope="module")
def report(demo_rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.figures.FORMATS", ("svg",))
        write_report(demo_rows, out, bootstrap=60)
    return out


def page_of(out):
    """The page's words: without what is attached to it, its figures and its style."""
    return re.sub(
        r"base64,[^\"]*|<svg.*?</svg>|<style>.*?</style>", "", (out / "index.html").read_text(), flags=re.DOTALL
    )


def test_the_page_has_the_whole_story(report):
    page = page_of(report)
    for words in (
        *SECTIONS,
        "of the 18 held-out runs lie within their 90 % interval",
        "the D axis is unique data",
        "4 times the data",
        "diverged: loss is not finite at step 40",
        "failed: killed; its cell has no finished trial",
        "ridge",
        "torch 2.13",
        "abc1234",
        "Lack of fit against the scatter between seeds",
        "no compute-optimal path over D is defined",
    ):
        assert words in page, words
    assert "What shorter budgets give" not in page
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page, flags=re.IGNORECASE)


def test_the_page_needs_nothing_else(report):
    page = (report / "index.html").read_text()
    assert not re.search(r"\ssrc=\"(?!data:)|url\((?!#)|@import|<link", page)
    links = set(re.findall(r"\shref=\"(?!data:)([^\"]*)\"", page))
    assert links == {f"figures/{name}.{kind}" for name in STUDY_FIGURES for kind in ("svg", "pdf", "png")}
    assert page.count("<svg") == len(STUDY_FIGURES)
    assert len(page) < 3_000_000


def test_points_carry_their_trials_numbers_and_link_to_its_curve(example, tmp_path):
    curves = "../trials/{trial}/progress.csv"
    hero = save_pictures(example, None, (), tmp_path, curves, ("svg",))["error_against_data"]["svg"]
    points = re.findall(r'<a class="point" data-trial="([^"]*)" tabindex="-1" href="([^"]*)"><title>([^<]*)<', hero)
    chosen = example.cells.set_index("trial")
    assert sorted(trial for trial, _, _ in points) == sorted(chosen.index)
    for trial, link, numbers in points:
        row = chosen.loc[trial]
        assert link == f"../trials/{trial}/progress.csv"
        assert f"N = {row['num_params']:,}, D = {row['num_spectra']:,}" in numbers
        assert f"test MAE {row['test_mae_dex']:.3f} dex" in numbers
        assert f"learning rate {row['lr']:.3g}, seed {row['seed']}, 4 epochs" in numbers


def test_figures_on_one_page_have_ids_of_their_own_and_colours_for_both_themes(report):
    page = (report / "index.html").read_text()
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|xlink:href=")#([^")]*)', page)) <= set(ids)
    assert "stroke: #000000; stroke: light-dark(#000000, #ebebeb)" in page


def test_the_answer_comes_in_four_lines(example):
    law, score, stop, _ = headlines(example)
    assert law.said == f"The law: {law.words}; {law.detail}"
    assert score.said == f"Was its forecast right? {score.words}"
    assert law.words.startswith("MAE = E + A/N^α")
    assert "90 % intervals in this form: E 0.0" in law.detail
    assert score.words == "20 of 20 held-out runs lie inside their 90 % intervals; the mean miss is 2 %."
    assert stop.words in example.answers.stop.words
    gains = example.answers.gains.set_index("scenario")["gain"]
    more = "4 times the data" if gains["4× data"] > gains["4× model"] else "A model 4 times"
    for remedy, start in (("", more), ("A longer budget.", f"A longer budget. {more}")):
        stop = dataclasses.replace(example.answers.stop, remedy=remedy)
        answers = dataclasses.replace(example.answers, stop=stop)
        following = headlines(dataclasses.replace(example, answers=answers))[3]
        assert following.words.startswith(start)
        assert " of one device." in following.detail


def test_every_folded_section_says_what_it_means(report, example):
    page = page_of(report)
    closed = re.findall(r"<details><summary><h2>(.*?)</h2>(.*?)</summary>", page)
    assert "The law" in dict(closed)
    assert all('<span class="meaning">' in meaning for _, meaning in closed)
    found = meanings(example)
    assert found["law"].startswith(f"{example.fitted.best}, without the held-out cells. The cells deviate from it by")
    fitted = copy.copy(example.fitted)
    vars(fitted)["intervals"] = {fitted.best: {"E": (0.0, 0.1)}}
    assert "do not determine E" in meanings(dataclasses.replace(example, fitted=fitted))["profiles"]
    trends = example.trends.assign(p=[1e-3, *[0.5] * (len(example.trends) - 1)])
    axis = trends["axis"].iloc[0]
    assert f"depend on {axis}" in meanings(dataclasses.replace(example, trends=trends))["residuals"]


def test_a_running_study_says_so_on_a_page_that_loads_itself_again(make_rows, tmp_path):
    rows = make_rows({"trial": f"{d}", "num_spectra": d} for d in (512, 1024))
    write_report(rows, tmp_path, progress=["2 of <5> trials done"])
    page = (tmp_path / "index.html").read_text()
    assert '<meta http-equiv="refresh"' in page
    assert "<li>2 of &lt;5&gt; trials done</li>" in page
    write_report(rows, tmp_path)
    assert "refresh" not in page_of(tmp_path)


def test_everything_lies_beside_the_page(report):
    expected = {f"figures/{name}.svg" for name in STUDY_FIGURES} | {"index.html", "fit.json", "cells.csv"}
    assert {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()} == expected
    document = json.loads((report / "fit.json").read_text())
    assert document["held_out"]["excluded"] == 18
    assert document["points"] == 30
    assert document["all_cells"]["points"] == 48
    assert document["checklist"][0]["question"] == "What N counts"


def test_the_raw_table_is_in_the_page(report, demo_rows):
    page = (report / "index.html").read_text()
    attached = base64.b64decode(re.search(r"data:text/csv;base64,([^\"]*)", page)[1])
    table = pd.read_csv(BytesIO(attached))
    assert len(table) == len(demo_rows)
    assert list(table["trial"]) == list(demo_rows["trial"])


@pytest.mark.usefixtures("no_figures")
def test_the_report_is_reproducible(report, demo_rows, tmp_path):
    write_report(demo_rows.sample(frac=1, random_state=0), tmp_path, bootstrap=60)
    assert (tmp_path / "fit.json").read_text() == (report / "fit.json").read_text()
    assert (tmp_path / "cells.csv").read_text() == (report / "cells.csv").read_text()


def test_a_small_table_still_gives_a_report(make_rows, tmp_path):
    rows = [{"trial": f"{d}", "num_spectra": d} for d in (512, 1024)]
    write_report(make_rows([*rows, {"trial": "p", "status": "pruned"}]), tmp_path)
    page = page_of(tmp_path)
    assert "Every trial finished or was stopped early (1)" in page
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".pdf", ".png"}
    assert "There is no law of error over N and D here" in page
    assert "holds too few distinct sizes" in page
    assert json.loads((tmp_path / "fit.json").read_text())["form"] is None


def test_a_study_without_a_finished_trial_still_gives_a_report(make_rows, tmp_path):
    nothing = dict.fromkeys(("val_mae_dex", "test_mae_dex", "test_mae_sem_dex"), float("nan"))
    write_report(make_rows([{"status": "failed", "error": "out of memory"} | nothing]), tmp_path)
    page = page_of(tmp_path)
    assert "no cell has a finished trial" in page
    assert "out of memory" in page
    assert not re.search(r"\bnan\b", page)


@pytest.mark.usefixtures("only_svg")
def test_a_study_of_one_size_gives_a_report_on_its_curve(tmp_path):
    one_size = dataclasses.replace(
        FIXED_NOISE_FIXED_SAMPLES, sizes=np.array([29953]), mae=FIXED_NOISE_FIXED_SAMPLES.mae[3:]
    )
    write_report(frame(study_rows(one_size, seeds=(0, 1), scatter=0.02)).assign(held_out=False), tmp_path, bootstrap=60)
    page = page_of(tmp_path)
    assert "Selected: <b>m" in page
    assert "4 times the data" in page
    assert "Only one of N and D varies" in page
    assert not (tmp_path / "figures" / "error_surface.svg").exists()


@pytest.mark.usefixtures("only_svg")
def test_the_information_limit_stands_beside_the_error(tmp_path):
    rows, bins = (
        example_rows(),
        pd.DataFrame([{"low": 2.0, "high": 20.0, "mae_dex": 0.05}]),
    )
    limit = Limit(
        label="log_g",
        eval_pin="example",
        mae_dex=0.05,
        by_snr=bins,
        assumes="Known noise.",
    )
    write_report(rows, tmp_path, bootstrap=40, limit=limit)
    page = page_of(tmp_path)
    assert "The information limit (Cramér–Rao) of these test spectra is an MAE of 0.050 dex" in page
    assert (tmp_path / "figures" / "mae_by_snr.svg").is_file()
    assert (tmp_path / "figures" / "error_against_compute.svg").is_file()


def test_the_checklist_states_both_fits_and_every_method(example):
    lines = {line.question: line for line in checklist(example)}
    both = lines["Exclusions, with both fits"].answer
    assert f"Without them {example.fitted.best}: E " in both
    assert f"With them {example.final.best}: E " in both
    assert "1,024 to 32,768" in lines["Unique data against samples seen"].answer
    assert "(4 epochs)" in lines["Unique data against samples seen"].answer
    assert "lsq" in lines["Objective and δ"].answer
    assert "converged" in lines["Optimiser and convergence"].answer
    assert "0 of 60 refits stopped" in lines["Optimiser and convergence"].answer
    assert "profile likelihood" in lines["Interval method"].answer
    assert example.score.words == lines["Score on held-out cells"].answer
    assert all(form in lines["Competing forms"].answer for form in example.fitted.fits)
    assert lines["Code version"].answer == NOT_RECORDED
    assert [line.question for line in lines.values() if not line.stated] == ["Code version"]


def test_the_checklist_says_what_is_not_recorded(example):
    rows = example_rows().assign(train_flops=float("nan"), samples_seen=1, held_out=False)
    rows = rows[(rows["seed"] == 0) & (rows["lr"] == 1e-3)].assign(num_test=0)
    table = best_trials(rows)
    lines = checklist(dataclasses.replace(example, rows=rows, table=table, cells=table.cells, score=None))
    lines = {line.question: line for line in lines}
    missing = {question for question, line in lines.items() if not line.stated}
    assert missing == {
        "FLOP formula",
        "Tuning at each size",
        "Seeds and noise",
        "Test set and its error",
        "Score on held-out cells",
        "Code version",
    }
    assert lines["FLOP formula"].answer == NOT_RECORDED


@pytest.mark.parametrize(
    ("noise", "budget", "words"),
    [
        ("fixed", "samples", "is unique data"),
        ("fresh", "epochs", "mostly training length"),
        ("fixed", "epochs", "mixes unique data with training length"),
        ("fresh", "samples", "understates"),
    ],
)
def test_the_axis_is_named_for_what_it_shows(make_rows, noise, budget, words):
    assert words in axis_meaning(make_rows([{"noise": noise, "budget": budget}]))


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (1900.2, "1,900"), (0.13067, "0.131"), (819088, "8.2·10⁵"), (1.7e-10, "1.7·10⁻¹⁰")]
)
def test_numbers_are_readable(value, words):
    assert significant(value) == words


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.1, 0.25), "0.100 to 0.250"),
        ((0.5, np.inf), "above 0.500"),
        ((0.0, np.inf), "not determined"),
        ((-np.inf, np.inf), "not determined"),
        ((-np.inf, 2.0), "below 2.00"),
        (None, "not known"),
    ],
)
def test_an_interval_without_an_end_says_so(interval, words):
    assert bounds(interval) == words


def test_formulas_are_written_in_greek():
    assert greek("E + A/N^alpha + B/D^beta") == "E + A/N^α + B/D^β"
