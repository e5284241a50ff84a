"""The command line: known answers through it, mistakes in one line, and the shape of its JSON."""

import math
import shutil
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.laws import CHINCHILLA
from tests.analysis.conftest import TRUTH, D, N
from tests.analysis.test_fit import CASES, needs_cases

KEYS = (
    "form status message objective objective_name delta parameters intervals interval_method level "
    "forecasts selection lack_of_fit backtests extrapolation residual_trends budget "
    "allocation isoflop next_runs beside_chinchilla points floor_bound run_weights warnings forms "
    "columns held_out bootstrap seed table"
)


def epoch_case(tmp_path):
    frame = pd.read_csv(CASES / "chinchilla_epoch.csv")
    frame[~frame["dropped_by_reference"]].to_csv(tmp_path / "epoch.csv", index=False)
    return tmp_path / "epoch.csv"


@needs_cases
def test_the_chinchilla_points_by_huber(tmp_path, run):
    found = run(epoch_case(tmp_path), "--form", "chinchilla", "--objective", "huber")
    assert found["points"] == 240
    assert found["status"] == "converged"
    assert found["objective"] <= 0.00101827402 * (1 + 1e-6)
    assert found["delta"] == 1e-3
    values = found["parameters"]
    assert values["alpha"] == pytest.approx(0.34731, abs=1e-4)
    assert values["beta"] == pytest.approx(0.36717, abs=1e-4)
    assert values["A"] == pytest.approx(477.826, rel=1e-3)
    assert values["B"] == pytest.approx(2143.418, rel=1e-3)
    assert found["allocation"]["exponent"] == pytest.approx(0.5139, abs=1e-4)


@needs_cases
def test_the_chinchilla_points_by_absolute_residuals(tmp_path, run):
    values = run(epoch_case(tmp_path), "--form", "chinchilla", "--objective", "l1")["parameters"]
    assert values["alpha"] == pytest.approx(0.3478, rel=1e-3)
    assert values["beta"] == pytest.approx(0.3659, rel=1e-3)
    assert values["E"] == pytest.approx(1.8169, rel=1e-3)
    assert values["A"] == pytest.approx(482.01, rel=1e-3)
    assert values["B"] == pytest.approx(2085.43, rel=1e-3)


@needs_cases
@pytest.mark.parametrize(
    ("objective", "expected"), [("lsq", (0.60209, 0.30677, 0.31097)), ("linear", (0.60467, 0.31001, 0.31364))]
)
def test_the_llama_points(run, objective, expected):
    path = CASES / "isoflop_llama_3_raw_loss.csv"
    values = run(path, "--form", "chinchilla", "--objective", objective, "--c", "C")["parameters"]
    assert (values["E"], values["alpha"], values["beta"]) == pytest.approx(expected, abs=1e-4)


def test_five_points_give_a_curve_with_a_wide_interval(tmp_path, run, capsys):
    values = {"D": [50e3, 100e3, 200e3, 500e3, 1e6], "mae": [0.5754, 0.4716, 0.4150, 0.3831, 0.3720]}
    pd.DataFrame(values).to_csv(tmp_path / "curve.csv", index=False)
    found = run(tmp_path / "curve.csv", "--at", "3e6", bootstrap=200)
    assert found["form"] == "m2"
    assert found["parameters"]["E"] == pytest.approx(0.360, abs=0.003)
    assert found["parameters"]["beta"] == pytest.approx(0.97, abs=0.005)
    low, high = found["intervals"]["E"]
    assert (low, high) == pytest.approx((0.355, 0.365), abs=1e-3)
    assert [term["term"] for term in found["budget"]["terms"]] == ["irreducible", "data"]
    assert found["allocation"]["exponent"] is None
    shares = found["budget"]["terms"][0]
    assert (shares["share_low"], shares["share_high"]) == pytest.approx((0.962, 0.983), abs=2e-3)
    assert (
        shares["share_high"] - shares["share_low"] > 0.75 * (high - low) / 0.3720
    )  # about as wide as the floor is unknown
    assert found["next_runs"] is None
    assert found["forecasts"][0]["D"] == 3e6
    assert "at D = 3e+06: [" in capsys.readouterr().out


def test_the_document_holds_what_it_promises(table, run, capsys):
    found = run(table(), "--at", "1e6,1e6", "1e3,500", "--seed", "7")
    assert set(found) == set(KEYS.split())
    assert found["columns"] == {"n": "N", "d": "D", "loss": "loss"}
    assert set(found["selection"][found["form"]]) == {"aicc", "weight", "forecast_weight", "backtest_error", "status"}
    assert found["parameters"].keys() == found["intervals"].keys()
    first = found["forecasts"][0]
    assert set(first) == {"N", "D", "value", "low", "high", "curve_low", "curve_high", "flags", "refused"}
    assert first["low"] < first["curve_low"] < first["value"] < first["curve_high"] < first["high"]
    largest = [term["value"] for term in found["budget"]["terms"]]
    assert (found["budget"]["N"], found["budget"]["D"]) == (N.max(), D.max())
    assert math.fsum(largest) == pytest.approx(float(CHINCHILLA.predict(TRUTH, N.max(), D.max())), rel=0.02)
    printed = capsys.readouterr().out
    assert "90 % intervals (profile likelihood)" in printed
    assert "at N = 1e+06, D = 1e+06: [" in printed


def test_parquet_and_other_names_give_the_same(table, run):
    expected = run(table(), "--form", "chinchilla")
    renamed = pd.read_csv(table()).rename(columns={"N": "size", "D": "Tokens", "loss": "perplexity"})
    renamed.to_parquet(table().with_name("other.parquet"))
    path = table().with_name("other.parquet")
    found = run(path, "--form", "chinchilla", "--n", "size", "--loss", "perplexity")
    assert found["parameters"] == expected["parameters"]
    assert found["columns"] == {"n": "size", "d": "Tokens", "loss": "perplexity"}


def test_unbounded_ends_are_null(table, run):
    scatter = np.exp(np.random.default_rng(1).normal(0, 0.02, len(N)))
    found = run(table(loss=(0.1 + 8 * D**-0.6) * scatter), "--form", "chinchilla")
    ends = [end for interval in found["intervals"].values() for end in interval]
    assert None in ends
    assert all(end is None or math.isfinite(end) for end in ends)


def test_warnings_are_in_the_document_and_on_the_standard_error(table, run, capsys):
    path = table()
    frame = pd.read_csv(path)
    frame = pd.concat([frame, frame.head(2)])
    frame.loc[frame.index == 12, "loss"] *= 1.5
    frame.to_csv(path, index=False)
    warnings = run(path, "--form", "chinchilla", "--objective", "huber")["warnings"]
    assert "2 rows repeat another one exactly" in warnings[0]
    assert f"N = {N[12]:.6g}, D = {D[12]:.6g}" in warnings[-1]
    assert capsys.readouterr().err.count("warning: ") == len(warnings)


def test_samples_seen_let_the_law_of_repeated_data_compete(table, run):
    found = run(table(seen=2e4 * np.linspace(1, 8, len(N))), "--samples-seen", "seen", "--at", "1e4,1e4,1e5")
    assert "data_constrained" in found["selection"]
    assert found["budget"]["S"] == 2e4 * 8


def test_compute_is_as_given(table, run):
    by_column = run(table(flops=12 * N * D), "--form", "chinchilla", "--c", "flops")["allocation"]
    by_number = run(table(), "--form", "chinchilla", "--flops-per", "12")["allocation"]
    assert by_column["flops_per_param_sample"] == pytest.approx(12)
    assert by_column["exponent"] == pytest.approx(by_number["exponent"])
    assert "C from the table's column" in by_column["words"]
    assert "C = 12 N D" in by_number["words"]


def test_a_results_table_keeps_its_rules_when_columns_are_named(demo_rows, tmp_path, run, capsys):
    demo_rows.to_parquet(path := tmp_path / "results.parquet")
    options = ["--form", "chinchilla"]
    plain = run(path, *options)
    assert plain["points"] == 30
    assert plain["held_out"] == {"cells": 18, "included": False}
    same = run(path, *options, "--n", "num_params", "--d", "num_spectra", "--loss", "test_mae_dex")
    assert same["parameters"] == pytest.approx(plain["parameters"])
    other = run(path, *options, "--loss", "val_mae_dex")
    assert (other["points"], other["columns"]["loss"]) == (30, "val_mae_dex")
    assert run(path, *options, "--all")["points"] == 48
    assert "number of samples" in plain["allocation"]["words"]
    aimed = run(path, *options, "--at", "1e5,5e4", "2e5,6e4")["next_runs"]
    assert (aimed["N"], aimed["D"]) == (2e5, 6e4)
    assert len(aimed["runs"]) == 5
    assert (plain["next_runs"]["N"], plain["next_runs"]["D"]) == (4 * 8833, 4 * 8192)
    per_hour = [each["shrink_per_hour"] for each in aimed["runs"]]
    assert per_hour == sorted(per_hour, reverse=True)
    assert "one more run would narrow the law at N = 200000, D = 60000" in capsys.readouterr().out


def test_a_table_that_supports_no_law_fails_with_its_reasons(table, run, capsys):
    diagonal = N[:7] * 1.7 ** np.arange(7)
    path = table().with_name("diagonal.csv")
    pd.DataFrame({"N": diagonal, "D": 20 * diagonal, "loss": 1 + diagonal**-0.3}).to_csv(path, index=False)
    found = run(path, "--form", "chinchilla", status=1)
    assert (found["status"], found["level"], found["intervals"]) == ("not_identified", None, {})
    assert "No law:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--form", "cubic"], "cubic"),
        (["--objective", "median"], "median"),
        (["--delta", "0"], "--delta 0: must be a positive number"),
        (["--delta", "nan"], "--delta nan"),
        (["--seed", "-1"], "--seed -1: must be a whole number"),
        (["--level", "90"], "--level 90: must lie between 0 and 1"),
        (["--bootstrap", "5"], "--bootstrap 5: an interval needs at least 20"),
        (["--bootstrap", "1e3"], "invalid int value"),
        (["--flops-per", "-6"], "--flops-per"),
        (["--c", "loss", "--flops-per", "6"], "give one of them"),
        (["--at", "1e6"], "--at 1e6: expected N,D"),
        (["--at", "1e6,1e6,1e6"], "--at 1e6,1e6,1e6: expected N,D"),
        (["--at", "1e6,-2"], "--at 1e6,-2: expected N,D"),
        (["--at", "big,1e6"], "--at big,1e6: expected N,D"),
        (["--n", "tokens"], "no column 'tokens'"),
        (["--samples-seen", "seen"], "no column 'seen'"),
        (["--c", "flops"], "no column 'flops'"),
        (["--form", "m2"], "curve of one variable"),
        (["--form", "data_constrained"], "--samples-seen"),
        (["--json", "absent/fit.json"], "there is no folder absent"),
        (["--json", "/"], "not a regular file"),
    ],
)
def test_a_mistake_is_one_line(table, capsys, options, words):
    assert main(["fit", str(table()), "--bootstrap", "20", *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", b"", "empty.csv: cannot be read"),
        ("empty.parquet", b"", "empty.parquet: cannot be read"),
        ("binary.csv", bytes(range(256)) * 8, "binary.csv"),
        ("header.csv", b"N,D,loss\n", "holds no rows"),
        ("other.csv", b"a,b\n1,2\n", "no column of the loss"),
        ("text.csv", b"N,D,loss\n1e3,1e3,high\n", "'loss', row 0 (counted from 0): 'high' is not a positive number"),
        ("gap.csv", b"N,D,loss\n1e3,1e3,0.5\n1e3,,0.4\n", "'D', row 1"),
        ("few.csv", b"N,D,loss\n1,1,1\n2,2,1\n1,2,1\n2,1,1\n", "too few distinct sizes"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, capsys, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert main(["fit", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_missing_file_and_a_folder_are_one_line(tmp_path, capsys):
    assert main(["fit", str(tmp_path / "absent.csv")]) == 2
    assert "no such table" in capsys.readouterr().err
    assert main(["fit", str(tmp_path)]) == 2
    assert "a folder" in capsys.readouterr().err


def test_a_surface_needs_two_axes(tmp_path, capsys):
    pd.DataFrame({"x": D, "loss": D**-0.3}).drop_duplicates().to_csv(tmp_path / "c.csv", index=False)
    assert main(["fit", str(tmp_path / "c.csv"), "--form", "chinchilla"]) == 2
    assert "needs a table in which N and D vary, but only D does" in capsys.readouterr().err
    assert main(["fit", str(tmp_path / "c.csv"), "--at", "1e3,1e4"]) == 2
    assert "one positive number" in capsys.readouterr().err


def test_an_output_is_never_an_input(table, capsys, tmp_path):
    path = table()
    (tmp_path / "link.json").symlink_to(path)
    before = path.read_bytes()
    for out in (path, tmp_path / "link.json", "/dev/null"):
        assert main(["fit", str(path), "--bootstrap", "20", "--json", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{out}: ")
        assert error.count("\n") == 1
    assert path.read_bytes() == before


def test_a_report_replaces_an_earlier_one_and_nothing_else(table, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.__main__.write_report", lambda rows, out, **_: out / "index.html")
    path, out, page = table(), tmp_path / "report", tmp_path / "page"
    for folder, text in ((out, "<!doctype html>"), (page, "a page of one's own")):
        folder.mkdir()
        (folder / "index.html").write_text(text)
    shutil.copy(path, out / "cells.csv")
    (out / "fit.json").write_text("{}")
    for folder in (out, tmp_path / "new"):
        assert main(["report", str(path), str(folder)]) == 0
    for given, folder, words in (
        (path, tmp_path, "holds other things"),
        (path, path, "is no folder"),
        (path, page, "did not write"),
        (out / "cells.csv", out, "is an input"),
    ):
        capsys.readouterr()
        assert main(["report", str(given), str(folder)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_a_stop_is_one_line(table, monkeypatch, capsys):
    monkeypatch.setattr("analysis.__main__.compare", Mock(side_effect=KeyboardInterrupt))
    assert main(["fit", str(table())]) == 130
    assert capsys.readouterr().err == "stopped; nothing half-written is left\n"
