"""States and curves are written while the training continues."""

import contextlib
import socket
import threading
from types import SimpleNamespace

import pytest
import torch

from scaling.training.recorder import Recorder
from scaling.training.trainer import _seldom


class SlowFolder:
    """Keeps what is written in memory, each state only when it may."""

    def __init__(self):
        self.may, self.state, self.curves, self.error = threading.Event(), None, [], None

    def read_state(self):
        return self.state

    def write_state(self, content):
        assert self.may.wait(60)
        if self.error:
            raise self.error
        self.state = content

    def write_progress(self, csv, events):
        self.curves.append(csv)


@pytest.fixture
def folder():
    return SlowFolder()


@pytest.fixture
def recorder(folder):
    with contextlib.closing(Recorder(folder, "identity", "setting", lambda metrics: None, keeps=True)) as recorder:
        yield recorder
        folder.may.set()


def report(recorder, weights, step):
    recorder.report({"step": step, "budget_share": 1.0}, {"weights": weights})


def test_a_state_is_that_of_its_report_whenever_it_is_written(folder, recorder):
    weights = torch.zeros(3)
    report(recorder, weights, 1)  # returns, though nothing is written
    weights += 1
    assert folder.state is None
    folder.may.set()
    recorder.flush()
    again = Recorder(folder, "identity", "setting", lambda metrics: None, keeps=True)
    assert again.load()["weights"].tolist() == [0, 0, 0]
    assert [point["step"] for point in again.curve] == [1]


def test_one_evaluation_is_written_at_a_time(folder, recorder):
    report(recorder, torch.zeros(1), 1)
    second = threading.Thread(target=report, args=(recorder, torch.zeros(1), 2))
    second.start()
    second.join(0.1)
    assert second.is_alive(), "it waits for the first"
    folder.may.set()
    second.join()
    recorder.flush()
    assert [len(curve.splitlines()) for curve in folder.curves] == [2, 3]


def test_an_error_of_the_thread_is_raised_at_the_next_report_or_flush(folder, recorder):
    folder.error = OSError("unreachable")
    folder.may.set()
    report(recorder, torch.zeros(1), 1)
    with pytest.raises(OSError, match="unreachable"):
        report(recorder, torch.zeros(1), 2)
    folder.error = None
    report(recorder, torch.zeros(1), 3)
    recorder.flush()
    recorder.flush()
    assert len(folder.curves) == 1


@pytest.fixture
def job(tmp_path):
    return SimpleNamespace(task=SimpleNamespace(cache_root=tmp_path))


def test_a_worker_waits_for_no_dashboard_between_its_reports(monkeypatch, job):
    times, forwarded = iter([0.0, 0.0, 1.0, 2.9, 3.0, 3.1, 7.0, 7.0]), []
    monkeypatch.setattr("scaling.training.trainer.REPORT_SECONDS", 3.0)
    monkeypatch.setattr("scaling.training.trainer.time", SimpleNamespace(monotonic=lambda: next(times)))
    forward = _seldom(forwarded.append, job, 0, torch.device("cpu"))
    for evaluation in range(5):
        forward({"step": evaluation})
    assert [metrics["step"] for metrics in forwarded] == [0, 3, 4]
    rank_1 = _seldom(forwarded.append, job, 1, torch.device("cpu"))
    rank_1({"step": 5})
    assert len(forwarded) == 3, "rank 0 decides for all"


def test_a_report_names_its_host_and_what_the_maps_there_take(tmp_path, job):
    (tmp_path / "train-0").mkdir()
    (tmp_path / "train-0" / "spectra.f32").write_bytes(b"1" * 8192)
    forwarded = []
    _seldom(forwarded.append, job, 0, torch.device("cpu"))({"step": 1.0})
    assert forwarded == [{"step": 1.0, "host": socket.gethostname(), "cache_bytes": 8192}]
