import math

import pytest

from scaling.files import FullError
from scaling.study.declaration import Cell, Placement, Search
from scaling.study.store import FULL, Store, StudyFolder
from scaling.sweep.search import MAX_LOST, CellSearch, open_rounds, suggest_lr
from tests.study.example import example_row, example_study

SEARCH = Search(trials=6, factors=(0.5, 1.0), span=4.0, round_size=2)
CELL = Cell(width=256, num_spectra=1000, seed=1)


def error_at(lr: float) -> float:
    """A cell whose best learning rate is 3e-4."""
    return 0.3 + 0.1 * math.log(lr / 3e-4) ** 2


def fake_row(cell, number, lr):
    return example_row(cell=cell.key, trial=cell.trial(number), lr=lr, val_mae_dex=error_at(lr))


class FakeTrial:
    """A trial whose result is known: `finish` writes the row a process would have written."""

    def __init__(self, study, cell, number, lr, store):
        self.study, self.cell, self.number, self.lr, self.store = study, cell, number, lr, store
        self.key, self.output = cell.trial(number), self

    def about(self):
        return {"lr": self.lr}

    def read_row(self):
        return self.store.get(self.key)

    def write_row(self, row):
        self.store[self.key] = row

    def read_error(self):
        return None

    def failed_row(self, error):
        return example_row(
            cell=self.cell.key, trial=self.key, lr=self.lr, status="failed", error=error, val_mae_dex=math.nan
        )

    def finish(self):
        assert self.key not in self.store, "a trial was run twice"
        self.write_row(fake_row(self.cell, self.number, self.lr))


def make_search(study, store, journal, cpus=2.0):
    return CellSearch(
        study,
        lambda cell, number, lr: FakeTrial(study, cell, number, lr, store),
        list(store.values()),
        str(journal),
        lambda: {"CPU": cpus},
        lambda row: None,
    )


def drive(search, finish_first=0, stop_after=None):
    """Run a search to its end as Tune would, with any trial finishing first; None when stopped half-way."""
    live, count, ended = {}, 0, 0
    while True:
        config = search.suggest(f"id{count}")
        if config == search.FINISHED:
            return ended
        if config is not None:
            live[f"id{count}"] = config["trial"]
            count += 1
            continue
        assert live, "the search waits for nothing"
        name = list(live)[finish_first % len(live)]
        trial = live.pop(name)
        trial.finish()
        search.on_trial_complete(name)
        ended += 1
        if ended == stop_after:
            return None


def test_the_declared_factors_come_first_around_the_rungs_centre():
    rates = [suggest_lr(SEARCH, CELL, number, []) for number in range(2)]
    assert rates == [pytest.approx(1.5e-4), pytest.approx(3e-4)]
    assert SEARCH.centre(64) == pytest.approx(1.2e-3)
    assert SEARCH.centre(4) == 1e-2


def test_later_suggestions_are_reproducible_and_within_the_span():
    history = [(1.5e-4, error_at(1.5e-4)), (3e-4, error_at(3e-4)), (6e-4, math.nan)]
    first = suggest_lr(SEARCH, CELL, 4, history)
    assert first == suggest_lr(SEARCH, CELL, 4, history)
    assert first != suggest_lr(SEARCH, CELL, 5, history)
    assert 3e-4 / 4 <= first <= 3e-4 * 4


def test_a_round_opens_only_when_the_one_before_is_complete():
    assert [number for number, _ in open_rounds(SEARCH, CELL, {})] == [0, 1]
    rows = {0: fake_row(CELL, 0, 1.5e-4)}
    assert [number for number, _ in open_rounds(SEARCH, CELL, rows)] == [1]
    rows[1] = fake_row(CELL, 1, 3e-4)
    assert [number for number, _ in open_rounds(SEARCH, CELL, rows)] == [2, 3]
    for number in range(2, 6):
        rows[number] = fake_row(CELL, number, 3e-4)
    assert open_rounds(SEARCH, CELL, rows) == []


@pytest.mark.slow
def test_any_order_of_finishing_and_any_interruption_give_the_same_trials(tmp_path):
    study = example_study(search=SEARCH)
    total = len(study.cells()) * SEARCH.trials
    expected: dict = {}
    assert drive(make_search(study, expected, tmp_path / "undisturbed")) == total
    for finish_first, stops in ((1, []), (0, [3]), (1, [5, 7]), (2, [1, 1, 1, 9])):
        store: dict = {}
        journal = tmp_path / f"journal-{finish_first}-{len(stops)}"
        for stop in stops:
            assert drive(make_search(study, store, journal), finish_first, stop) is None
        drive(make_search(study, store, journal), finish_first)
        assert {key: row.lr for key, row in store.items()} == {key: row.lr for key, row in expected.items()}


def test_a_trial_without_a_row_is_recorded_as_failed(tmp_path):
    study, store = example_study(), {}
    search = make_search(study, store, tmp_path / "journal")
    trial = lose(search)
    assert store[trial.key].status == "failed"
    assert "without a row" in store[trial.key].error


def lose(search):
    """Hand out a trial whose process is lost, until it is given up."""
    for attempt in "abc":
        trial = search.suggest(attempt)["trial"]
        assert trial.read_row() is None
        search.on_trial_complete(attempt, error=True)
    assert trial.read_row() is not None
    return trial


@pytest.mark.parametrize("told_by", ["the trial's process", "the driver, who cannot write its row"])
def test_a_full_store_ends_the_search_without_a_row_and_lets_running_trials_end(tmp_path, told_by):
    study, store = example_study(), {}
    search = make_search(study, store, tmp_path / "journal")
    first, second = (search.suggest(name)["trial"] for name in "ab")
    reason = "store x: no"
    forgotten = []
    first.delete_row = lambda: forgotten.append(first.key)
    if told_by == "the trial's process":
        first.read_error = lambda: FULL + reason
    else:

        def write_row(row):
            raise FullError(reason)

        first.write_row = write_row
        search.lost[first.key] = MAX_LOST
    search.on_trial_complete("a", error=True)
    assert search.no_room == reason
    assert search.suggest("c") is None
    second.finish()
    search.on_trial_complete("b")
    assert search.suggest("d") == search.FINISHED
    assert list(store) == [second.key]
    assert forgotten == [first.key] * (told_by == "the trial's process")


def test_an_elastic_trial_starts_on_what_is_left_of_a_cluster(tmp_path):
    places = (Placement(), Placement(from_width=8, from_spectra=256, workers=3, min_workers=2))
    study = example_study(placements=places)
    assert make_search(study, {}, tmp_path / "one", cpus=1.0).suggest("a") is None
    search = make_search(study, {}, tmp_path / "two", cpus=2.0)
    assert study.placement(search.suggest("a")["trial"].cell).min_workers == 2
    assert search.suggest("b") is None, "it may grow again"


def test_ray_train_trials_go_first_and_nothing_overtakes_them(tmp_path):
    study = example_study(placements=(Placement(), Placement(from_width=8, from_spectra=256, workers=2)))
    search = make_search(study, {}, tmp_path / "journal")
    first = search.suggest("a")["trial"]
    assert study.placement(first.cell).host == "ray_train"
    assert search.suggest("b") is None  # both CPUs are taken, and none may wait beside it
    first.finish()
    search.on_trial_complete("a")
    second = search.suggest("c")["trial"]
    assert (second.cell, second.number) == (first.cell, 1)


def test_a_factor_at_the_edge_of_the_span_stays_within_it(tmp_path):
    study = example_study(search=Search(trials=5, factors=(1 / 3, 1.0, 3.0), span=3.0))
    store: dict = {}
    assert drive(make_search(study, store, tmp_path / "journal")) == len(study.cells()) * 5


def test_a_failed_row_keeps_the_state_to_go_on_from(tmp_path):
    trial = StudyFolder(Store(str(tmp_path)), "mine").trial("t")
    trial.write_state(b"state")
    trial.write_error("lost")
    trial.write_row(example_row(status="failed"))
    trial.delete_row()
    assert trial.read_state() == b"state"
    assert trial.read_error() is None
    trial.write_row(example_row())
    assert trial.read_state() is None
