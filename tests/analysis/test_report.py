"""The report and the command line."""

import json
import re

import pytest

from analysis.__main__ import main
from analysis.report import write_report
from analysis.words import axis_meaning, significant


@pytest.fixture(scope="module")
def report(demo_rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    write_report(demo_rows, out, bootstrap=60)
    return out


def page_of(out):
    return re.sub(r"base64,[^\"]*", "", (out / "index.html").read_text())


def test_the_page_tells_the_whole_story(report):
    page = page_of(report)
    for words in (
        "of the 18 held-out runs lie within their 90 % interval",
        "the D axis is unique data",
        "four times the data would lower the error",
        "diverged: loss is not finite at step 40",
        "failed: killed; its cell has no finished trial",
        "ridge",
        "torch 2.13",
        "abc1234",
        "Lack of fit against the scatter between seeds",
        "the standard error of one such score is about 0.0040 dex",
    ):
        assert words in page
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page, flags=re.IGNORECASE)


def test_the_page_needs_nothing_else(report):
    page = (report / "index.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("<img") == 5


def test_everything_lies_beside_the_page(report):
    names = ("error_against_data", "error_against_size", "held_out", "learning_rates", "residuals")
    expected = {f"figures/{name}.{kind}" for name in names for kind in ("svg", "png")}
    expected |= {"index.html", "fit.json", "cells.csv"}
    assert {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()} == expected
    document = json.loads((report / "fit.json").read_text())
    assert document["held_out"]["excluded"] == 18
    assert document["points"] == 30
    assert document["all_cells"]["points"] == 48


def test_the_report_is_reproducible(report, demo_rows, tmp_path):
    write_report(demo_rows.sample(frac=1, random_state=0), tmp_path, bootstrap=60)
    assert (tmp_path / "fit.json").read_text() == (report / "fit.json").read_text()
    assert (tmp_path / "cells.csv").read_text() == (report / "cells.csv").read_text()


def test_a_small_table_still_gives_a_report(make_rows, tmp_path):
    write_report(make_rows({"trial": f"{d}", "num_spectra": d} for d in (512, 1024)), tmp_path)
    page = page_of(tmp_path)
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


def test_rows_of_several_rules_have_no_one_axis(make_rows):
    assert "mix rules" in axis_meaning(make_rows([{"noise": "fixed"}, {"noise": "fresh"}]))


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (1900.2, "1,900"), (0.13067, "0.131"), (819088, "8.2·10⁵"), (1.7e-10, "1.7·10⁻¹⁰")]
)
def test_numbers_are_readable(value, words):
    assert significant(value) == words


def test_fit_of_a_users_table(grid_frame, tmp_path, capsys):
    grid_frame.rename(columns={"N": "n", "loss": "Loss"}).to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "fit.json"
    arguments = [
        "fit",
        str(tmp_path / "t.csv"),
        "--bootstrap",
        "40",
        "--at",
        "1e5,65536",
        "1e9,1e9",
        "--json",
        str(out),
    ]
    assert main(arguments) == 0
    found = json.loads(out.read_text())
    assert found["form"] in ("chinchilla", "gamma")
    assert found["status"] in ("converged", "bound_hit")
    assert set(found["intervals"]) == set(found["parameters"])
    assert [cast["N"] for cast in found["forecasts"]] == [1e5, 1e9]
    assert all(cast["low"] < cast["value"] < cast["high"] for cast in found["forecasts"])
    assert found["forecasts"][1]["flags"]
    assert sum(form["weight"] for form in found["selection"].values()) == pytest.approx(1)
    assert found["level"] == 0.9
    assert found["lack_of_fit"] is None
    assert "alpha" in capsys.readouterr().out


def test_fit_of_a_results_table_leaves_held_out_cells_out(demo_rows, tmp_path):
    demo_rows.to_parquet(tmp_path / "results.parquet")
    for extra, points in ((), 30), (("--all",), 48):
        arguments = ["fit", str(tmp_path / "results.parquet"), "--form", "chinchilla", "--bootstrap", "20", *extra]
        assert main([*arguments, "--json", str(tmp_path / "fit.json")]) == 0
        found = json.loads((tmp_path / "fit.json").read_text())
        assert found["points"] == points
        assert found["held_out"] == {"cells": 18, "included": bool(extra)}


def test_a_fit_that_fails_is_written_with_its_status(grid_frame, tmp_path):
    grid_frame.iloc[[0, 1, 7, 8, 14]].to_csv(tmp_path / "t.csv", index=False)
    assert main(["fit", str(tmp_path / "t.csv"), "--json", str(tmp_path / "fit.json")]) == 1
    found = json.loads((tmp_path / "fit.json").read_text())
    assert found["status"] == "not_identified"
    assert found["parameters"]["E"] is None


def test_the_report_command(demo_rows, tmp_path, capsys):
    demo_rows.to_csv(tmp_path / "results.csv", index=False)
    assert main(["report", str(tmp_path / "results.csv"), str(tmp_path / "out"), "--bootstrap", "20"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "index.html")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "absent.parquet"], "absent.parquet: no such table"),
        (["fit", "t.csv", "--n", "tokens"], "no column 'tokens'"),
        (["fit", "t.csv", "--at", "5"], "--at 5"),
        (["fit", "t.csv", "--level", "90"], "--level 90"),
        (["fit", "t.csv", "--bootstrap", "0"], "--bootstrap 0"),
        (["fit", "t.csv", "--form", "cubic"], "cubic"),
        (["fit", "t.csv", "--bootstrap", "20", "--json", "absent/fit.json"], "absent: no such folder"),
        (["report", "t.csv", "out"], "are missing; give a results table"),
        ([], "required"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(grid_frame, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    grid_frame.to_csv("t.csv", index=False)
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
