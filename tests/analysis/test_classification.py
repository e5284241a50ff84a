"""A study that classifies: the same analysis of error rates, and no word of dex or MAE."""

import re

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.answers.rates import learning_rate_law
from analysis.points.trials import best_trials
from analysis.report.figures import error_label, learning_rates
from analysis.report.page import write_report
from scaling.results import ERROR_RATE, MAE, measure_of
from tests.analysis.conftest import FIXED_NOISE_FIXED_SAMPLES, frame, study_rows


@pytest.fixture(scope="module")
def rows():
    table = frame(study_rows(FIXED_NOISE_FIXED_SAMPLES, label="log_g > 2.5", num_test=4000, eval_draws=3))
    rates = {f"{split}_error_rate": table[f"{split}_mae_dex"] for split in ("val", "test")}
    in_dex = [name for name in table.columns if re.search("_(dex|z|r2)$", name)]
    return table.assign(**dict.fromkeys(in_dex, np.nan), test_by_snr="[]", test_by_label="[]", held_out=False, **rates)


def test_a_table_is_judged_by_what_it_has(rows):
    assert measure_of(rows) is ERROR_RATE
    assert measure_of(rows.assign(test_mae_dex=0.3)) is MAE
    assert measure_of(rows.assign(test_error_rate=np.nan)) is MAE
    assert error_label(rows) == "test error rate of log g > 2.5"
    assert error_label(rows.assign(label="log_g", test_mae_dex=0.3)) == "test MAE of log g [dex]"


def test_the_trial_of_the_lowest_error_rate_stands_for_its_cell(rows):
    cells = best_trials(rows).cells
    assert len(cells) == 24
    assert set(cells["lr"]) == {1e-3}
    assert learning_rate_law(rows).optima["lr_opt"].median() == pytest.approx(1e-3, rel=0.01)
    assert learning_rates(rows) is not None
    perfect = rows.assign(test_error_rate=rows["test_error_rate"].where(rows["num_spectra"] > 512, 0.0))
    left = best_trials(perfect)
    assert len(left.cells) == 20
    assert set(left.exclusions["reason"].str.split(";").str[0]) == {
        "finished without a usable validation and test error rate"
    }


@pytest.mark.usefixtures("only_svg")
def test_the_report_gives_error_rates(rows, tmp_path):
    page = write_report(rows, tmp_path / "report", bootstrap=30).read_text()
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert "How far does the error rate of log g &gt; 2.5 fall" in text
    assert "The lowest test error rate is 0.133, reached by" in text
    assert "with 3 noise draws" in text
    assert not re.search(r"\bdex\b|\bMAE\b", text)


def test_the_command_fits_error_rates(rows, tmp_path, capsys):
    path = tmp_path / "results.parquet"
    rows.to_parquet(path)
    assert main(["fit", str(path), "--form", "chinchilla", "--bootstrap", "20"]) == 0
    assert "loss is test_error_rate" in capsys.readouterr().out
