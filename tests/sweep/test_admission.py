"""Where a trial may start: node by node, and no large trial starves behind small ones."""

import random
from types import SimpleNamespace

import pytest

from scaling.study.declaration import Placement
from scaling.sweep.admission import Admission, fits_ever

SMALL, HALF = Placement(gpus=0.25, cpus=1), Placement(gpus=0.5, cpus=1)
WHOLE, PAIR = Placement(gpus=1, cpus=2), Placement(gpus=1, cpus=2, workers=2)


def nodes(*gpus, cpus=16.0):
    return [SimpleNamespace(id=f"n{i}", cpus=cpus, gpus=float(count)) for i, count in enumerate(gpus)]


def start(admission, placement, offers, waiting=()):
    found = admission.place(placement, offers, waiting)
    if found:
        key = f"t{len(admission.running)}-{random.random()}"
        admission.start(key, placement, found)
        return key
    return None


def test_small_trials_fill_a_node_before_the_next_and_no_more_than_fit():
    admission, offers = Admission(), nodes(1, 1)
    assert [admission.running[start(admission, SMALL, offers)].nodes for _ in range(8)] == [("n0",)] * 4 + [("n1",)] * 4
    assert start(admission, SMALL, offers) is None


def test_fractions_of_0_4_leave_holes_that_are_not_counted_as_room():
    admission, offers = Admission(), nodes(2)
    forty = Placement(gpus=0.4, cpus=1)
    assert [start(admission, forty, offers) is not None for _ in range(5)] == [True] * 4 + [False]
    assert start(admission, Placement(gpus=0.2, cpus=1), offers)


def test_a_worker_does_not_span_nodes_and_workers_do():
    assert not fits_ever(Placement(gpus=4, cpus=1), nodes(2, 2))
    assert fits_ever(Placement(gpus=2, cpus=1, workers=2), nodes(2, 2))
    assert Admission().place(PAIR, nodes(1, 1)) == ("n0", "n1")
    assert Admission().place(PAIR, nodes(1, 2)) == ("n1", "n1")
    assert not fits_ever(Placement(gpus=0, cpus=17), nodes(0, 0))


def test_no_small_trial_refills_what_a_large_one_waits_for():
    admission, offers = Admission(), nodes(4)
    running = [start(admission, SMALL, offers) for _ in range(16)]
    ended = random.Random(0).sample(running, 16)
    began = None
    for key in ended:
        admission.end(key)
        began = began or start(admission, WHOLE, offers)
        if began is None:
            assert start(admission, SMALL, offers, [WHOLE]) is None
    assert began is not None
    assert start(admission, SMALL, offers) is None  # it was handed out, and has not begun
    admission.begin(began)
    assert start(admission, SMALL, offers)


def test_small_trials_go_on_where_the_large_one_cannot_run():
    admission, offers = Admission(), nodes(1, 4)
    four = Placement(gpus=4, cpus=4)
    for _ in range(20):
        start(admission, SMALL, offers)
    on_first = next(key for key, run in admission.running.items() if run.nodes == ("n0",))
    admission.end(on_first)
    assert start(admission, SMALL, offers, [four])
    admission.end(next(key for key, run in admission.running.items() if run.nodes == ("n1",)))
    assert start(admission, SMALL, offers, [four]) is None


def test_an_elastic_trial_starts_smaller_only_where_the_cluster_has_shrunk():
    elastic = Placement(gpus=1, cpus=1, workers=4, min_workers=2)
    admission = Admission()
    start(admission, WHOLE, nodes(4))
    assert admission.place(elastic, nodes(4)) == ()  # it waits for the fourth
    assert Admission().place(elastic, nodes(3)) == ("n0",) * 3
    assert not fits_ever(elastic, nodes(1))


@pytest.mark.parametrize("seed", range(3))
def test_no_mixture_starves(seed):
    """Trials of all kinds come and go at random; each is admitted once enough has ended."""
    chance, admission, offers = random.Random(seed), Admission(), nodes(1, 2, 4)
    todo = [chance.choice([SMALL, HALF, WHOLE, PAIR, Placement(gpus=0.4, cpus=1)]) for _ in range(200)]
    for _ in range(20_000):
        waiting = []
        for placement in list(todo[:6]):
            key = start(admission, placement, offers, waiting)
            if key:
                admission.begin(key)
                todo.remove(placement)
            else:
                waiting.append(placement)
        if not todo:
            return
        if admission.running:
            admission.end(chance.choice(sorted(admission.running)))
    pytest.fail(f"{len(todo)} trials were never admitted ")
