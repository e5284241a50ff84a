"""Backtests: the smaller runs by N·D are fitted as the whole is, and the others forecast."""

import numpy as np

from analysis.answers.backtest import backtests, held_out_score
from analysis.fitting.extrapolation import smallest
from analysis.intervals.compare import compare
from tests.analysis.test_checks import study


def test_a_backtest_is_the_score_of_a_fit_to_the_smaller_runs():
    points = study(seeds=2)
    found = compare(points, ["chinchilla"])
    half, more = backtests(found)
    small = smallest(points.N * points.D, 0.5)
    expected = held_out_score(compare(points.take(small), ["chinchilla"]), points.take(~small))
    assert half.score.table.equals(expected.table)
    assert (half.fitted, half.form, len(half.score.table)) == (small.sum(), "chinchilla", (~small).sum())
    assert more.fitted > half.fitted
    assert 1 < more.reach < half.reach
    assert half.words.startswith(
        f"Fitted to the {half.fitted} smallest runs by N·D, the laws (chinchilla weighs most) forecast the others"
    )


def test_a_wrong_law_fails_its_backtest_where_aicc_takes_it_for_true():
    for truth, weigh, passes in (
        ("chinchilla", "aicc", True),
        ("chinchilla", "backtest", True),
        ("broken", "aicc", False),
        ("broken", "backtest", True),  # its nested backtests widen the intervals
    ):
        inside = total = 0
        for seed in range(8):
            for test in backtests(compare(study(truth, seed=seed), ["chinchilla"], weigh=weigh), (0.5,)):
                inside, total = inside + test.score.inside, total + len(test.score.table)
        assert (inside / total > 0.8) == passes, (truth, weigh, inside / total)


def test_too_few_smaller_runs_give_no_backtest():
    points = study()
    smallest_grid = points.take((np.unique(points.N)[2] >= points.N) & (np.unique(points.D)[2] >= points.D))
    found = compare(smallest_grid, ["chinchilla"])
    assert backtests(found, (0.3,)) == []
    assert backtests(found, (1.0,)) == []
