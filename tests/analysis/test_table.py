"""From tables to points: the best trial of each cell, and checked columns."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.points.table import column_names, points_from_columns, require_falling
from analysis.points.trials import best_trials, largest_cell, law_cells, points_from_cells
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
def test_the_edge_of_the_search_is_reported(make_rows, best, edge):
    rates = [1e-4, 1e-3, 1e-2]
    table = best_trials(
        make_rows({"trial": f"{k}", "lr": lr, "val_mae_dex": 0.2 if k == best else 0.3} for k, lr in enumerate(rates))
    )
    assert table.cells["edge_of_search"].tolist() == [edge]


def test_a_pruned_trial_was_tried_and_is_no_exclusion(make_rows):
    lost = {"status": "pruned", "val_mae_dex": float("nan"), "test_mae_dex": float("nan")}
    table = best_trials(
        make_rows(
            {"trial": f"{k}", "lr": lr} | (lost if k == 2 else {"val_mae_dex": 0.3 - 0.1 * k})
            for k, lr in enumerate([1e-4, 1e-3, 1e-2])
        )
    )
    assert table.cells["edge_of_search"].tolist() == [""]
    assert table.cells["learning_rates"].tolist() == [3]
    assert table.exclusions.empty


def test_two_rates_have_no_edge(make_rows):
    table = best_trials(make_rows({"trial": f"{k}", "lr": lr} for k, lr in enumerate([1e-3, 1e-2])))
    assert table.cells["edge_of_search"].tolist() == [""]


@pytest.mark.parametrize("column", ["eval_pin", "label", "noise", "budget"])
def test_rows_of_different_rules_never_mix(make_rows, column):
    rows = make_rows({"trial": name, "study": name, column: f"rule-{name}"} for name in ("a", "b"))
    with pytest.raises(UserError, match=rf"column {column} holds rule-a \(study a\), rule-b \(study b\)"):
        best_trials(rows)


def test_studies_of_the_same_rules_keep_their_own_cells(make_rows):
    table = best_trials(make_rows({"trial": name, "study": name} for name in ("a", "b")))
    assert table.cells["study"].tolist() == ["a", "b"]
    assert table.warnings == []


def test_studies_that_trained_longer_or_more_coarsely_are_named(make_rows):
    rows = make_rows(
        {"trial": name, "study": name, "samples_seen": seen, "precision": precision}
        for name, seen, precision in (("a", 1000, "fp32"), ("b", 4000, "bf16"))
    )
    precision, samples = best_trials(rows).warnings
    assert "bf16, fp32" in precision
    assert "1000 to 4000" in samples


def test_a_table_given_twice_counts_once(make_rows):
    rows = make_rows({"trial": f"{k}", "lr": lr} for k, lr in enumerate([1e-3, 1e-2]))
    table = best_trials(pd.concat([rows, rows], ignore_index=True))
    assert table.cells["trials"].tolist() == [2]
    assert "2 rows are copies" in table.warnings[0]


def test_the_largest_cell_is_one_that_was_run(make_rows):
    sizes = [(100, 9000), (900, 5000), (2000, 1000)]
    rows = make_rows({"trial": f"{n}", "num_params": n, "num_spectra": d} for n, d in sizes)
    assert largest_cell(best_trials(rows).cells)[["num_params", "num_spectra"]].tolist() == [900, 5000]


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


def test_two_unknown_families_need_a_choice(make_rows):
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


def test_a_constant_or_missing_size_gives_a_curve(grid_frame):
    one = grid_frame[grid_frame["N"] == grid_frame["N"].min()]
    assert points_from_columns(one, "N", "D", "loss").axis == "D"
    assert points_from_columns(one, None, "D", "loss").axis == "D"
    other = grid_frame[grid_frame["D"] == grid_frame["D"].min()]
    assert points_from_columns(other, "N", None, "loss").axis == "N"
    with pytest.raises(UserError, match="neither N nor D varies"):
        points_from_columns(one.head(1), "N", "D", "loss")


def test_too_few_cells_are_refused(grid_frame):
    with pytest.raises(UserError, match="3 distinct cells are too few"):
        points_from_columns(grid_frame.iloc[[0, 7, 14]], "N", "D", "loss")


def test_copies_count_once_and_repeats_do_not_vanish(grid_frame):
    twice = pd.concat([grid_frame, grid_frame.head(4)], ignore_index=True)
    points = points_from_columns(twice, "N", "D", "loss")
    assert len(points) == len(grid_frame)
    assert "4 rows repeat another one exactly" in points.warnings[0]
    seeds = twice.assign(Seed=[0] * len(grid_frame) + [1] * 4)
    assert len(points_from_columns(seeds, "N", "D", "loss")) == len(twice)


def test_equal_losses_are_warned_of(grid_frame):
    points = points_from_columns(grid_frame.assign(loss=0.3), "N", "D", "loss")
    assert any("all values of loss are equal" in warning for warning in points.warnings)


def test_samples_seen_and_standard_errors_are_columns_too(grid_frame):
    points = points_from_columns(
        grid_frame.assign(seen=3e5, error=0.01), "N", "D", "loss", samples_seen="seen", sem="error"
    )
    assert set(points.S) == {3e5}
    assert set(points.sem) == {0.01}


@pytest.mark.parametrize("names", [("N", "D", "Loss"), ("num_params", "tokens", "MAE"), ("Params", "x", "error")])
def test_usual_names_are_found_in_any_case(names):
    assert tuple(column_names(pd.DataFrame(columns=list(names)), None, None, None).values()) == names


def test_a_given_name_wins_and_a_missing_loss_is_named():
    frame = pd.DataFrame(columns=["N", "D", "loss", "mae"])
    assert column_names(frame, None, None, "mae")["loss"] == "mae"
    with pytest.raises(UserError, match="no column of the loss"):
        column_names(frame[["N", "D"]], None, None, None)
    with pytest.raises(UserError, match="no column of N or D"):
        column_names(frame[["loss"]], None, None, None)


def test_one_column_cannot_be_two_things(grid_frame):
    with pytest.raises(UserError, match="must differ"):
        points_from_columns(grid_frame, "N", "N", "loss")


def test_what_rises_with_size_is_no_error():
    sizes = {"N": [1e3, 1e4, 1e5] * 4, "D": np.repeat([1e4, 1e5, 1e6, 1e7], 3)}
    error = 0.1 * (np.array(sizes["N"]) * sizes["D"]) ** -0.05
    require_falling(points_from_columns(pd.DataFrame({**sizes, "loss": error}), "N", "D", "loss"), "loss")
    accuracy = points_from_columns(pd.DataFrame({**sizes, "right": 1 - error}), "N", "D", "right")
    with pytest.raises(UserError, match=r"column 'right' rises with size \(rank correlation 1.00\)"):
        require_falling(accuracy, "right")
