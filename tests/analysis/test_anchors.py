"""Anchors: shown beside a study where they compare with it, and never fitted."""

import dataclasses
import json

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from analysis.points.anchors import Anchor, parse_anchor, require_same_evaluation
from analysis.report import figures
from analysis.report.figures.style import ALARM
from analysis.report.page import write_report
from scaling.errors import UserError
from tests.analysis.conftest import FIXED_NOISE_FIXED_SAMPLES, frame, row, study_rows

ANCHOR = Anchor(
    name="original",
    label="log_g",
    num_params=4_809_729,
    num_spectra=1_000_000,
    test_mae_dex=0.11,
    test_mae_sem_dex=0.004,
    test_mae_z=0.09,
    test_r2=0.98,
    num_test=8192,
    eval_pin="pin-a",
)


@pytest.mark.parametrize(
    ("draw", "at", "name"),
    [
        (figures.error_against_data, ANCHOR.num_spectra, "original, N = 4.8M"),
        (figures.error_against_size, ANCHOR.num_params, "original, D = 1M"),
    ],
)
def test_an_anchor_stands_where_it_belongs_with_its_error(draw, at, name):
    observed = figures.Observed.from_cells(frame(study_rows(FIXED_NOISE_FIXED_SAMPLES, rates=(1e-3,))))
    figure = draw(observed, None, [ANCHOR, dataclasses.replace(ANCHOR, name="x" * 90, num_spectra=512)])
    figure.canvas.draw()
    axes = figure.axes[0]
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert np.allclose(star.get_xydata(), [[at, 0.11]])
    assert star.get_color() == ALARM
    bar = next(each for each in axes.collections if isinstance(each, LineCollection)).get_segments()[0]
    assert np.allclose(bar, [[at, 0.106], [at, 0.114]])
    assert axes.get_xlim()[1] > at
    legend = figure.legends[-1]
    assert legend.get_texts()[0].get_text() == name
    assert legend.get_window_extent().width < figure.bbox.width
    assert (
        len({line.get_marker() for line in axes.lines if line.get_color() == ALARM and line.get_marker() != "None"})
        >= 2
    )


@pytest.mark.usefixtures("no_figures")
def test_the_report_shows_it_and_the_fit_ignores_it(tmp_path):
    one_size = dataclasses.replace(
        FIXED_NOISE_FIXED_SAMPLES, sizes=np.array([29953]), mae=FIXED_NOISE_FIXED_SAMPLES.mae[3:]
    )
    rows = frame(study_rows(one_size, rates=(1e-3,))).assign(held_out=False)
    write_report(rows, tmp_path / "without", bootstrap=40)
    write_report(rows, tmp_path / "with", bootstrap=40, anchors=[ANCHOR])
    without, found = (json.loads((tmp_path / name / "fit.json").read_text()) for name in ("without", "with"))
    assert found.pop("anchors") == [dataclasses.asdict(ANCHOR)]
    assert without.pop("anchors") == []
    assert found == without
    page = (tmp_path / "with" / "index.html").read_text()
    assert "original (N = 4,809,729, D = 1,000,000) has a test MAE of 0.110 ± 0.004 dex" in page
    assert "is not part of the fit" in page
    assert "Beside the study" not in (tmp_path / "without" / "index.html").read_text()


@pytest.mark.parametrize(("column", "value"), [("eval_pin", "pin-b"), ("label", "T_eff")])
def test_what_does_not_compare_is_refused(column, value):
    anchor = dataclasses.replace(ANCHOR, **{column: value})
    with pytest.raises(UserError, match=f"anchor original: {column} {value}.*not comparable"):
        require_same_evaluation(frame([row()]), [anchor])
    require_same_evaluation(frame([row()]), [ANCHOR])


FIELDS = dataclasses.asdict(ANCHOR)
WRONG = [{"name": "x"}, FIELDS | {"num_params": 1.5}, FIELDS | {"test_mae_dex": None}, FIELDS | {"test_mae_dex": "0.1"}]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", *(json.dumps(wrong).encode() for wrong in WRONG)])
def test_what_is_no_anchor_is_named(content):
    with pytest.raises(UserError, match=r"anchors/x\.json: .*make the anchor again"):
        parse_anchor(content, "anchors/x.json")


def test_an_anchor_is_what_was_written_with_more_beside_it():
    assert parse_anchor(json.dumps(FIELDS | {"model": "x"}), "x.json") == ANCHOR
    unknown = parse_anchor(json.dumps(FIELDS | {"test_mae_sem_dex": None}), "x.json")
    assert np.isnan(unknown.test_mae_sem_dex)
