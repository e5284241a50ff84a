"""Which learning rates are tried: a pure function of declaration and rows, that ends near the best one."""

import dataclasses
import math
import random

import pytest

from scaling.study.declaration import Cell, Search
from scaling.sweep.rates import RateLaw, Rates, anchors, best_row, bracketed, open_round
from tests.study.example import example_row, example_study

STUDY = example_study(
    widths=(4, 8, 16, 32),
    data=dataclasses.replace(example_study().data, num_spectra=(64, 128, 256, 512)),
    seeds=(1, 2),
    repeat_every=3,
    search=Search(trials=5, max_lr=1.0),
)


def best_rate(cell):
    return 3e-4 * 256 / cell.width * 1.6 * (cell.num_spectra / 128) ** 0.2


def row(cell, number, lr, error=None, status="done"):
    if error is None:
        error = 0.1 * math.exp(0.05 * math.log(lr / best_rate(cell)) ** 2)
    return example_row(
        cell=cell.key,
        trial=cell.trial(number),
        lr=lr,
        seed=cell.seed,
        status=status,
        val_mae_dex=error,
        test_mae_dex=error,
    )


def run(rates, seed=0, stop_after=None):
    """Take trials in a random order until none is due, several at a time."""
    shuffle, running, count = random.Random(seed), {}, 0
    while True:
        for cell in rates.rows:
            for number, lr in rates.due(cell):
                running.setdefault((cell, number), lr)
        if not running or count == stop_after:
            return rates
        (cell, number), lr = shuffle.choice(sorted(running.items(), key=lambda item: (item[0][0].key, item[0][1])))
        del running[cell, number]
        rates.add(row(cell, number, lr))
        count += 1


def tried(rates):
    return {row.trial: row.lr for rows in rates.rows.values() for row in rows.values()}


def test_every_cell_ends_near_its_best_rate_between_worse_ones_and_further_seeds_repeat_it():
    rates = run(Rates(STUDY, []))
    assert not rates.remaining()
    for cell, rows in rates.rows.items():
        best = best_row(rows)
        if cell.seed == 1:
            assert bracketed(rows)
            assert best.val_error < (1 + SEARCH.seed_noise) * 0.1
            assert len(rows) <= 5
        else:
            assert [found.lr for found in rows.values()] == [best_row(rates.rows[rates.first(cell)]).lr]
    assert sum(cell.seed == 2 for cell in rates.rows) == 6
    searched = [len(rows) for cell, rows in rates.rows.items() if cell.seed == 1 and cell not in rates.anchors]
    assert sum(searched) / len(searched) < 3.5  # the law predicts the best one


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_completion_and_a_kill_change_nothing(seed):
    expected = tried(run(Rates(STUDY, [])))
    assert tried(run(Rates(STUDY, []), seed=seed + 1)) == expected
    partly = run(Rates(STUDY, []), seed=seed, stop_after=10 * (seed + 1))
    rows = [found for cell in partly.rows.values() for found in cell.values()]
    assert tried(run(Rates(STUDY, rows))) == expected


def test_what_a_row_changes_is_said():
    rates, released = Rates(STUDY, []), 0
    ready = {cell: rates.due(cell) for cell in rates.rows}
    assert {cell for cell, due in ready.items() if due} == set(anchors(STUDY))
    while not released:
        cell = next(cell for cell in rates.anchors if rates.due(cell))
        number, lr = rates.due(cell)[0]
        changed = rates.add(row(cell, number, lr))
        assert cell in changed
        released = len(changed) == len(rates.rows)
    assert all(rates.due(cell) for cell in rates.rows if cell.seed == 1 and cell not in rates.anchors)


CELL = Cell(width=8, num_spectra=128, seed=1)
SEARCH = Search(trials=6)


def due(*found):
    """The next trials of a cell after (factor, error) of those tried, from a rate of 1."""
    rows = {
        number: row(CELL, number, lr, *((error,) if isinstance(error, float) else (math.nan, error)))
        for number, (lr, error) in enumerate(found)
    }
    return open_round(SEARCH, rows, 1.0)


def test_a_round_is_one_trial_then_two_beside_it_then_what_is_needed():
    assert due() == [(0, 1.0)]
    assert due((1.0, 0.2)) == [(1, 0.5), (2, 2.0)]
    assert due((1.0, 0.2), (0.5, 0.3)) == [(2, 2.0)]
    assert due((1.0, 0.2), (0.5, 0.201), (2.0, 0.201)) == []  # bracketed, and flat
    assert due((1.0, 0.2), (0.5, 0.3), (2.0, 0.19)) == [(3, 4.0)]  # at the edge
    assert due((1.0, 0.2), (0.5, 0.3), (2.0, 0.19), (4.0, 0.18)) == []  # extended once
    ((number, lr),) = due((1.0, 0.2), (0.5, 0.3), (2.0, 0.205))
    assert number == 3
    assert 1.0 < lr < 2.0


def test_trials_without_a_result():
    assert due((1.0, "diverged"), (0.5, "diverged"), (2.0, "diverged")) == [(3, 0.125)]
    ((_, lr),) = due((1.0, 0.2), (0.5, 0.21), (2.0, "diverged"))  # worse, whatever it was
    assert 0.5 < lr < 1.0
    assert due((1.0, 0.2), (0.5, "failed"), (2.0, 0.3)) == [(3, 0.5)]  # says nothing: tried again
    assert due(*[(1.0, "failed")] * 3) == []


def test_a_declared_rate_is_kept_where_one_trial_is_all():
    rates = Rates(dataclasses.replace(STUDY, search=Search(trials=1)), [])
    assert tried(run(rates)) == {
        cell.trial(0): STUDY.search.centre(cell.width) if STUDY.search.centre(cell.width) < 1e-2 else 1e-2
        for cell in STUDY.cells()
    }


def test_the_law_of_the_rate_is_recovered_and_one_odd_cell_moves_it_little():
    def searched(cell, shift=1.0):
        lr = best_rate(cell) * shift
        return {k: row(cell, k, lr * f, 0.1 if f == 1 else 0.11) for k, f in enumerate((1.0, 0.5, 2.0))}

    cells = [cell for cell in STUDY.cells() if cell.seed == 1]
    law = RateLaw.fit(STUDY, {cell: searched(cell) for cell in cells})
    assert max(abs(math.log(law.predict(cell) / best_rate(cell))) for cell in cells) < 0.1
    odd = {cell: searched(cell, 8.0 if cell == cells[5] else 1.0) for cell in cells}
    moved = RateLaw.fit(STUDY, odd)
    assert max(abs(math.log(moved.predict(cell) / law.predict(cell))) for cell in cells) < 0.2
    assert RateLaw.fit(STUDY, {}).predict(cells[3]) == STUDY.search.centre(cells[3].width)
