"""Figures: what they show, that every axis has its unit, and that their files are those a journal accepts."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure

from analysis.answers.budget import error_budget
from analysis.answers.forecast import FAR, forecast
from analysis.intervals.compare import compare
from analysis.laws import LAWS
from analysis.points.example import DATA, SIZES
from analysis.points.table import Points
from analysis.report import figures
from analysis.report.figures.snr import mae_by_snr
from analysis.report.figures.style import COLUMN
from tests.analysis.conftest import frame, row

FIVE = Points(
    N=np.ones(5), D=np.array([5e4, 1e5, 2e5, 5e5, 1e6]), loss=np.array([0.5754, 0.4716, 0.4150, 0.3831, 0.3720])
)


@pytest.fixture(scope="module")
def observed(example):
    return figures.Observed.from_cells(example.cells)


@pytest.fixture(scope="module")
def drawn(example, observed):
    """Every figure of a study."""
    fitted, answers = example.fitted, example.answers
    budgets = [error_budget(fitted, N, D) for N in SIZES for D in DATA]
    return {
        "data": figures.error_against_data(observed, fitted),
        "size": figures.error_against_size(observed, fitted),
        "compute": figures.error_against_compute(observed, answers.path),
        "surface": figures.error_surface(observed, fitted, answers.path),
        "residuals": figures.residuals(fitted),
        "held_out": figures.held_out(example.score, fitted.level, observed.error),
        "profiles": figures.profiles(fitted, unit="dex"),
        "budgets": figures.error_budgets(budgets, observed, fitted.level),
        "learning_rates": figures.learning_rates(example.rows),
        "snr": mae_by_snr(example.cells, None),
        "one_curve": figures.one_curve(compare(FIVE, replicates=60), error="MAE [z]", x="D, training spectra"),
    }


def shown(figure):
    return [axes for axes in figure.axes if axes.get_visible() and axes.axison]


def lines(figure):
    return [line for axes in figure.axes for line in axes.lines]


def count(figure, *, face):
    """How many points have a face colour, legends not counted."""
    return sum(
        len(line.get_xdata()) for line in lines(figure) if line.get_marker() in "osD^vP" and line.get_mfc() == face
    )


def test_every_figure_is_a_column_wide_and_names_its_axes(drawn):
    for name, figure in drawn.items():
        assert isinstance(figure, Figure)
        assert figure.get_figwidth() == COLUMN, name
        shared = figure.get_supxlabel(), figure.get_supylabel()
        for axes in (each for each in shown(figure) if each.get_label() != "<colorbar>"):
            assert axes.get_xlabel() or shared[0], name
            assert axes.get_ylabel() or shared[1] or axes.get_shared_y_axes().get_siblings(axes), name
        told = [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel())] + list(shared)
        assert any("[" in text for text in told) or name == "profiles", name


def test_files_are_vector_and_raster_with_embedded_fonts_and_the_same_every_time(drawn, tmp_path):
    first = {kind: path.read_bytes() for kind, path in figures.save(drawn["data"], tmp_path, "data").items()}
    again = {kind: path.read_bytes() for kind, path in figures.save(drawn["data"], tmp_path, "data").items()}
    assert set(first) == {"svg", "pdf", "png"}
    assert first == again
    assert b"/FontFile2" in first["pdf"]
    assert b"/Type3" not in first["pdf"]
    assert first["svg"].lstrip().startswith(b"<?xml")
    assert {path.name for path in tmp_path.iterdir()} == {"data.svg", "data.pdf", "data.png"}


def test_drawing_leaves_matplotlibs_settings_alone(observed):
    names = ("font.size", "legend.frameon", "pdf.fonttype", "lines.linewidth")
    before = [mpl.rcParams[name] for name in names]
    figures.error_against_data(observed, None)
    assert [mpl.rcParams[name] for name in names] == before


def test_the_band_is_the_forecasts_interval_also_where_another_form_leads_the_forecast(example, observed):
    fitted = example.fitted
    form = next(
        name for name in fitted.fits if name != fitted.extrapolation.leading and "S" not in LAWS[name].variables
    )
    swapped = dataclasses.replace(fitted, best=form)
    axes = figures.error_against_data(observed, swapped).axes[0]
    bands = [each for each in axes.collections if isinstance(each, FillBetweenPolyCollection)]
    for size, band in zip(np.unique(observed.N), bands, strict=True):
        ends = band.get_paths()[0].vertices
        last = ends[ends[:, 0] == ends[:, 0].max(), 1]
        interval = forecast(swapped, [size], [ends[:, 0].max()])[["curve_low", "curve_high"]].to_numpy()[0]
        np.testing.assert_allclose([last.min(), last.max()], interval, rtol=1e-9)


def test_no_line_is_drawn_where_the_forecast_is_refused(example, observed, monkeypatch):
    monkeypatch.setattr("analysis.answers.forecast._doubtful", lambda comparison: True)
    axes = figures.error_against_data(observed, example.fitted).axes[0]
    dashed = [line for line in axes.lines if line.is_dashed() and len(line.get_xdata()) > 2]
    assert len(dashed) == len(np.unique(observed.N))
    for line in dashed:
        drawn = line.get_xdata()[np.isfinite(line.get_ydata())]
        assert observed.D.max() < drawn.max() <= FAR * example.fitted.points.D.max()


def test_held_out_points_are_open(example, drawn):
    held = example.held
    for name in ("data", "size", "compute"):
        assert count(drawn[name], face="white") == held
        assert count(drawn[name], face="white") < sum(
            len(line.get_xdata()) for line in lines(drawn[name]) if line.get_marker() in "osD^vP"
        )
    assert count(drawn["surface"], face="white") == held


def test_a_law_lies_within_its_band(drawn):
    axes = drawn["data"].axes[0]
    laws = [line for line in axes.lines if line.get_linestyle() == "-" and line.get_marker() == "None"]
    bands = [each for each in axes.collections if isinstance(each, FillBetweenPolyCollection)]
    assert len(laws) == len(bands) == len(SIZES)
    for law, band in zip(laws, bands, strict=True):
        edges = band.get_paths()[0].vertices
        for x, y in np.transpose(law.get_data())[::10]:
            near = edges[np.isclose(edges[:, 0], x), 1]
            assert near.min() <= y <= near.max()


def test_the_frontier_never_rises_and_lies_below_all_that_was_measured(observed, drawn):
    frontier = next(line for line in lines(drawn["compute"]) if line.get_linestyle() == "--")
    C, best = frontier.get_data()
    assert np.all(np.diff(best) <= 0)
    assert np.all(np.diff(C) >= 0)
    for flops, loss in zip(observed.flops, observed.loss, strict=True):
        assert loss >= best[np.searchsorted(C, flops, side="right") - 1] - 1e-12


def test_there_is_no_figure_over_compute_where_it_is_not_known(observed):
    unknown = dataclasses.replace(observed, flops=None)
    assert figures.error_against_compute(unknown) is None


def test_a_profile_crosses_its_threshold_at_the_ends_of_the_interval():
    law = compare(FIVE, replicates=60)
    figure = figures.profiles(law)
    for axes, (low, high) in zip(shown(figure), law.intervals[law.best].values(), strict=True):
        values, rise = axes.lines[0].get_data()
        assert np.interp([low, high], values, rise) == pytest.approx([1, 1], rel=0.1)
        assert rise.min() < 0.05


def test_a_robust_fit_shows_its_bootstrap_instead_of_a_profile():
    figure = figures.profiles(compare(FIVE, ["m2"], objective="huber", replicates=60))
    assert figure.get_supylabel() == "bootstrap refits"
    assert all(axes.patches for axes in shown(figure))


def test_the_bars_of_a_budget_add_up_to_the_law(example, drawn):
    tops = {}
    for axes in drawn["budgets"].axes:
        for bar in axes.patches:
            key = (axes.get_title(), round(bar.get_x(), 3))
            tops[key] = max(tops.get(key, 0.0), bar.get_y() + bar.get_height())
    assert len(tops) == len(SIZES) * len(DATA)
    N, D = np.meshgrid(SIZES, DATA)
    assert sorted(tops.values()) == pytest.approx(sorted(example.fitted.law.predict(N, D).ravel()))


@pytest.mark.parametrize(("best", "mark"), [(1e-3, "*"), (1e-1, ">"), (1e-5, "<")])
def test_an_optimum_outside_the_search_is_not_drawn_as_one(best, mark):
    rows = frame(
        row(cell="c", trial=f"{rate}", lr=rate, val_mae_dex=0.3 * (1 + 0.1 * np.log10(rate / best) ** 2))
        for rate in (3e-4, 1e-3, 3e-3)
    )
    marks = {line.get_marker() for line in lines(figures.learning_rates(rows))}
    assert mark in marks
    assert not marks & ({"*", ">", "<"} - {mark})


def test_one_learning_rate_a_cell_is_no_search():
    assert figures.learning_rates(frame([row(), row(num_spectra=2048, trial="b")])) is None


def test_one_curve_shows_where_it_extrapolates_and_how_far_its_floor_is_known():
    law = compare(FIVE, replicates=60)
    figure = figures.one_curve(law, error="MAE [z]", x="D, training spectra")
    axes = figure.axes[0]
    assert axes.get_xlim()[1] == pytest.approx(1e7)
    inside, outside = axes.lines[:2]
    assert inside.get_xdata().max() <= 1e6 < outside.get_xdata().min()
    assert inside.get_linestyle() != outside.get_linestyle()
    floor = next(line for line in axes.lines if line.get_linestyle() == ":")
    assert floor.get_ydata()[0] == pytest.approx(0.360, abs=0.001)


@pytest.mark.parametrize(
    ("value", "words"),
    [(512, "512"), (1024, "1k"), (16384, "16k"), (8833, "8.8k"), (4_880_000, "4.9M"), (3.2e10, "32G"), (1e13, "10T")],
)
def test_sizes_are_printed_as_people_say_them(value, words):
    assert figures.short(value) == words
