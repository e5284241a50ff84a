"""From rows to points."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.table import points_from_columns
from analysis.trials import best_trials, law_cells, points_from_cells
from scaling.errors import UserError

trials = st.lists(
    st.tuples(st.sampled_from([512, 1024]), st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.3]), st.booleans()),
    min_size=1,
    max_size=25,
)


@given(trials=trials)
@settings(max_examples=30, deadline=None)
def test_every_cell_gives_its_best_and_every_loser_has_a_reason(make_rows, trials):
    rows = make_rows(
        {"trial": f"t{k}", "num_spectra": d, "seed": seed, "val_mae_dex": mae if done else float("nan")}
        | {"status": "done" if done else "failed", "error": "" if done else "out of memory"}
        for k, (d, seed, mae, done) in enumerate(trials)
    )
    table = best_trials(rows)
    done = rows[rows["status"] == "done"]
    best = done.groupby(["num_spectra", "seed"])["val_mae_dex"].min()
    found = table.cells.set_index(["num_spectra", "seed"])["val_mae_dex"]
    pd.testing.assert_series_equal(found.sort_index(), best.sort_index(), check_index_type=False)
    assert set(table.exclusions["trial"]) == set(rows["trial"]) - set(done["trial"])
    assert table.cells["trials"].sum() == len(done)
    for (d, seed), lost in table.exclusions.groupby(["num_spectra", "seed"]):
        alone = (d, seed) not in best.index
        assert lost["reason"].str.contains("failed: out of memory").all()
        assert lost["reason"].str.contains("no finished trial").all() == alone


@pytest.mark.parametrize(("best", "edge"), [(0, "smallest"), (1, ""), (2, "largest")])
def test_the_edge_of_the_search_is_told(make_rows, best, edge):
    rates = [1e-4, 1e-3, 1e-2]
    table = best_trials(
        make_rows({"trial": f"{k}", "lr": lr, "val_mae_dex": 0.2 if k == best else 0.3} for k, lr in enumerate(rates))
    )
    assert table.cells["edge_of_search"].tolist() == [edge]


def test_two_rates_have_no_edge(make_rows):
    table = best_trials(make_rows({"trial": f"{k}", "lr": lr} for k, lr in enumerate([1e-3, 1e-2])))
    assert table.cells["edge_of_search"].tolist() == [""]


def test_rows_of_different_evaluations_never_mix(make_rows):
    with pytest.raises(UserError, match="pin-a, pin-b"):
        best_trials(make_rows({"trial": pin, "eval_pin": pin} for pin in ("pin-a", "pin-b")))


def test_a_failed_trial_has_no_evaluation_to_mix(make_rows):
    rows = make_rows([{"trial": "a"}, {"trial": "b", "eval_pin": "", "status": "failed"}])
    assert len(best_trials(rows).cells) == 1


def test_missing_columns_are_named():
    with pytest.raises(UserError, match="test_mae_dex"):
        best_trials(pd.DataFrame({"lr": [1.0]}))


def test_the_law_is_of_the_transformer(demo_rows):
    cells = law_cells(best_trials(demo_rows).cells)
    assert set(cells["family"]) == {"specvit"}
    assert len(points_from_cells(cells)) == 48


def test_two_unknown_families_must_be_told_apart(make_rows):
    rows = make_rows({"trial": name, "family": name} for name in ("ridge", "lightgbm"))
    with pytest.raises(UserError, match="lightgbm, ridge"):
        law_cells(best_trials(rows).cells)


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [("N", np.nan, "'N', row 2"), ("D", -3.0, "'D', row 2"), ("loss", 0.0, "'loss', row 2"), ("loss", "x", "'x'")],
)
def test_bad_values_are_named(grid_frame, column, value, word):
    frame = grid_frame.astype(object)
    frame.loc[2, column] = value
    with pytest.raises(UserError, match=word):
        points_from_columns(frame, "N", "D", "loss")


def test_too_few_sizes_are_refused(grid_frame):
    with pytest.raises(UserError, match="'N' holds too few"):
        points_from_columns(grid_frame[grid_frame["N"] < 3000], "N", "D", "loss")


def test_a_missing_column_is_named(grid_frame):
    with pytest.raises(UserError, match="no column 'tokens'"):
        points_from_columns(grid_frame, "N", "tokens", "loss")


def test_a_short_range_is_warned_of(grid_frame):
    points = points_from_columns(grid_frame[grid_frame["D"] <= 4096], "N", "D", "loss")
    assert [warning.split()[0] for warning in points.warnings] == ["D"]
