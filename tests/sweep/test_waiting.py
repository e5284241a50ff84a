"""What a sweep says and does while trials wait for nodes."""

from types import SimpleNamespace

from scaling.study.declaration import Placement, Search
from scaling.sweep.limits import SAY_WAITING_SECONDS, WAIT_SECONDS
from tests.study.example import example_study
from tests.sweep.test_search import World

STUDY = example_study(
    search=Search(trials=4), seeds=(1, 2), placements=(Placement(), Placement(from_width=8, workers=2))
)


def test_what_does_not_fit_yet_is_asked_for_and_said_and_what_fits_runs_meanwhile(tmp_path):
    here = World(tmp_path, study=STUDY, cpus=(1.0,))
    done = 0
    while found := here.hand_out():
        assert found[1].cell.width == 4
        if here.search.live[found[0]].queued:
            break
        here.finish(found[0])
        done += 1
    assert done
    here.now += SAY_WAITING_SECONDS + 1
    assert here.hand_out() is None
    assert {"CPU": 1.0} in here.asked[-1]
    assert "waiting for 2 × 1 CPU; the cluster has 1 CPU and 0 GPU on 1 nodes" in here.lines[-1]
    here.offers.append(SimpleNamespace(id="new", host="new", cpus=2.0, gpus=0.0))
    assert here.run().remaining() == []


def test_an_empty_cluster_is_waited_for_and_not_for_all_time(tmp_path):
    here = World(tmp_path, cpus=())
    assert here.hand_out() is None
    here.now += WAIT_SECONDS + 1
    assert here.hand_out() is None
    assert here.hand_out() == "FINISHED"
    assert "waiting for 1 × 1 CPU; the cluster has 0 CPU" in here.search.stopped


def test_the_hour_begins_when_the_last_trial_has_ended(tmp_path):
    here = World(tmp_path, study=STUDY, cpus=(1.0,))
    while found := here.hand_out():
        here.now += 2 * WAIT_SECONDS
        here.finish(found[0])
    for _ in range(2):
        assert not here.search.stopped
        here.now += 0.6 * WAIT_SECONDS
        assert here.hand_out() is None
    assert "waiting for 2 × 1 CPU" in here.search.stopped
    assert "nothing came in 60 minutes" in here.search.stopped
