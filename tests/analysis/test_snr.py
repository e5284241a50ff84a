import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from analysis.points.limit import read_limit, require_same_spectra
from analysis.points.trials import best_trials
from analysis.report.figures.snr import mae_by_snr, snr_bins
from scaling.errors import UserError

EDGES = [2.8, 3.7, 5.3, 8.2, 12.5, 17.2, 22.6]


def by_snr(scale):
    """The column `test_by_snr` of a cell whose error falls as 1/SNR."""
    lines = []
    for low, high, count in zip(EDGES, EDGES[1:], (50, 200, 250, 250, 200, 50), strict=False):
        mae = scale / (low * high) ** 0.5
        line = {"low": low, "high": high, "count": count, "mae_dex": mae, "bias_dex": 0.0, "rmse_dex": 1.2533 * mae}
        lines.append(line | {"sem_dex": 0.7555 * mae / (count - 1) ** 0.5})
    return json.dumps(lines)


@pytest.fixture
def cells(make_rows):
    """Two seeds of a grid of three sizes by two numbers of spectra."""
    changes = [
        {
            "cell": f"{n}-{d}-{seed}",
            "trial": f"{n}-{d}-{seed}",
            "num_params": n,
            "num_spectra": d,
            "seed": seed,
            "val_mae_dex": 30 / n + 100 / d + 0.01 * seed,
            "test_by_snr": by_snr(20 * (30 / n + 100 / d) + 0.4 * seed),
            "test_guess_mae_dex": 1.0,
        }
        for n in (800, 2000, 8800)
        for d in (512, 4096)
        for seed in (0, 1)
    ]
    return best_trials(make_rows(changes)).cells


@pytest.fixture
def limit_file(tmp_path):
    path = tmp_path / "limit.json"
    bins = [{**line, "snr": line["low"], "mae_without_prior_dex": 1.0} for line in json.loads(by_snr(0.4))]
    fields = {"label": "", "noise_level": 1.0, "rows": 1000, "num_rows": 1000, "guess_mae_dex": 1.0, "mae_dex": 0.06}
    fields |= {"rmse_dex": 0.08, "by_snr": bins, "assumes": "Gaussian errors.", "eval_pin": "pin-a"}
    path.write_text(json.dumps(fields))
    return path


def drawn(figure):
    """The curves of a figure by the name that its legend gives them."""
    handles = figure.axes[0].get_legend_handles_labels()
    lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles[0]]
    return dict(zip(handles[1], lines, strict=True))


def test_bins_are_those_of_the_rows(make_rows):
    line = {"low": 1.0, "high": 2.0, "count": 40, "mae_dex": 0.8, "bias_dex": 0.3, "rmse_dex": 1.0, "sem_dex": 0.1}
    bins = snr_bins(make_rows([{"test_by_snr": json.dumps([line])}, {"test_by_snr": "[]"}]))
    assert bins.to_dict("records") == [{"cell": 0, **line}]


def test_the_figure_shows_the_corners_the_limit_and_the_guess(cells, limit_file):
    lines = drawn(mae_by_snr(cells, dataclasses.replace(read_limit(limit_file), label="")))
    names = ["N = 800, D = 4k", "N = 8.8k, D = 512", "N = 8.8k, D = 4k (best)", "information limit", "always the mean"]
    assert set(lines) == set(names)
    best, limit = lines["N = 8.8k, D = 4k (best)"], lines["information limit"]
    assert np.allclose(best.get_xdata(), np.sqrt(np.multiply(EDGES[:-1], EDGES[1:])))
    assert np.allclose(best.get_xdata(), limit.get_xdata())
    mean_of_seeds = 20 * (30 / 8800 + 100 / 4096) + 0.2
    assert np.allclose(best.get_ydata() * best.get_xdata(), mean_of_seeds)
    assert np.allclose(limit.get_ydata() * limit.get_xdata(), 0.4)
    assert set(lines["always the mean"].get_ydata()) == {1.0}


def test_a_cell_of_its_own_is_drawn_where_it_is_the_best(cells, limit_file):
    cells.loc[(cells["num_params"] == 2000) & (cells["num_spectra"] == 4096), "val_mae_dex"] = 0.001
    lines = drawn(mae_by_snr(cells, None))
    assert "N = 2k, D = 4k (best)" in lines
    assert len(lines) == 5
    assert "information limit" not in lines


@pytest.mark.parametrize("text", ["", "[]", None])
def test_no_figure_without_errors_by_signal_to_noise(cells, text):
    assert mae_by_snr(cells.assign(test_by_snr=text), None) is None
    assert mae_by_snr(cells.drop(columns="test_by_snr"), None) is None


def test_one_bin_is_enough(cells):
    line = {"low": 7.0, "high": 7.0, "count": 9, "mae_dex": 0.5, "bias_dex": 0.0, "rmse_dex": 0.6, "sem_dex": 0.1}
    figure = mae_by_snr(cells.assign(test_by_snr=json.dumps([line])), None)
    figure.canvas.draw()
    assert len(drawn(figure)) == 4


@pytest.mark.parametrize(("column", "value"), [("label", "T_eff"), ("eval_pin", "pin-b")])
def test_a_limit_of_other_spectra_is_refused(cells, limit_file, column, value):
    limit = dataclasses.replace(read_limit(limit_file), **{column: value})
    with pytest.raises(UserError, match=value):
        require_same_spectra(cells, limit)


def test_a_limit_without_a_pin_is_taken_at_its_word(limit_file, cells):
    fields = json.loads(limit_file.read_text())
    del fields["eval_pin"]
    limit_file.write_text(json.dumps(fields))
    limit = read_limit(limit_file)
    assert limit.eval_pin == ""
    assert mae_by_snr(cells, limit) is not None
    pd.testing.assert_index_equal(limit.by_snr.columns, pd.Index(["low", "high", "mae_dex"]))


@pytest.mark.parametrize("change", [{"assumes": 5}, {"mae_dex": 0}, {"by_snr": [{}]}, {"by_snr": 5}, {"label": None}])
def test_what_is_no_limit_is_named(limit_file, change):
    limit_file.write_text(json.dumps(json.loads(limit_file.read_text()) | change))
    with pytest.raises(UserError, match=rf"limit\.json: {next(iter(change))}: .*make the limit again"):
        read_limit(limit_file)
    for content in (b"{", b"[]", b"\xff"):
        limit_file.write_bytes(content)
        with pytest.raises(UserError, match=r"limit\.json: .*JSON.*make the limit again"):
            read_limit(limit_file)
    limit_file.unlink()
    with pytest.raises(UserError, match=r"limit\.json: cannot be read"):
        read_limit(limit_file)
