"""`scaling dashboard` serves what there is and ends cleanly; trackers see plain values only."""

import os
import signal
import socket
import subprocess
import sys
import types
import urllib.request

import pytest

from scaling.errors import UserError
from scaling.study.store import Store, StudyFolder
from scaling.sweep import dashboards
from scaling.sweep.journal import Journal
from scaling.sweep.live import LivePage
from tests.study.example import example_row, example_study


def free_ports():
    """The first of three free ports."""
    for base in range(20000 + os.getpid() % 10000, 40000, 7):
        with socket.socket() as a, socket.socket() as b, socket.socket() as c:
            try:
                for n, each in enumerate((a, b, c)):
                    each.bind((dashboards.HOST, base + n))
            except OSError:
                continue
            return base
    raise AssertionError("no free ports")


@pytest.fixture
def ports():
    return free_ports()


@pytest.fixture
def folder(tmp_path):
    """A store with a study of one trial."""
    study, row = example_study(), example_row()
    folder = StudyFolder(Store(str(tmp_path / "store")), study.name)
    folder.write_declaration(b"{}")
    folder.trial(row.trial).write_row(row)
    Journal(study, folder.journal, [row])
    return folder


def get(address):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=20) as answer:
        return answer.read().decode()


PROGRAM = """
import sys
from scaling.__main__ import main
sys.exit(main(["dashboard", sys.argv[1], "--store", sys.argv[2], "--port-base", sys.argv[3]]))
"""


def test_a_study_without_a_report_is_drawn_from_its_rows(folder):
    live = LivePage(folder, example_study())
    assert b"best cell w0004-d00000128-s1" in live.read()  # before anything is drawn
    live._draw()
    page = live.read().decode()
    assert '<meta http-equiv="refresh" content="60">' in page
    assert "<li>best cell w0004-d00000128-s1" in page
    assert "1 trial, of which 1 finished" in page


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "example_module.py"
    path.write_text("from tests.study.example import example_study\nSTUDY = example_study()\n")
    return path


@pytest.mark.slow
def test_all_pages_answer_and_a_signal_ends_them(folder, module, ports):
    command = [sys.executable, "-c", PROGRAM, str(module), folder.store.uri, str(ports)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as served:
        try:
            lines = [served.stdout.readline().strip() for _ in range(4)]
            assert [line.split()[-1] for line in lines[:3]] == [
                f"http://127.0.0.1:{ports}/#hparams",
                f"http://127.0.0.1:{ports + 1}/dashboard/studies/0",
                f"http://127.0.0.1:{ports + 2}/",
            ]
            assert "TensorBoard" in get(f"http://127.0.0.1:{ports}/")
            assert '"study_name":"example"' in get(f"http://127.0.0.1:{ports + 1}/api/studies").replace(" ", "")
            page = get(f"http://127.0.0.1:{ports + 2}/")
            assert "best cell w0004-d00000128-s1: val MAE 0.500 dex, test MAE 0.500 dex" in page
            folder.store.write(f"{folder.name}/report/index.html", b"the report")
            folder.store.write(f"{folder.name}/report/figures/a.svg", b"<svg/>")
            assert get(f"http://127.0.0.1:{ports + 2}/") == "the report"
            assert get(f"http://127.0.0.1:{ports + 2}/figures/a.svg") == "<svg/>"
            folder.trial(example_row().trial).write_progress("step,val_mae_dex\n", b"")
            assert (
                get(f"http://127.0.0.1:{ports + 2}/trials/{example_row().trial}/progress.csv") == "step,val_mae_dex\n"
            )
            with pytest.raises(OSError, match="404"):
                get(f"http://127.0.0.1:{ports + 2}/trials/{example_row().trial}/row.json")
            with pytest.raises(OSError, match="404"):
                get(f"http://127.0.0.1:{ports + 2}/../study.json")
            served.send_signal(signal.SIGTERM)
            assert served.wait(30) == 0
            assert "dashboards ended" in served.stdout.read()
        finally:
            served.kill()
    for port in range(ports, ports + 3):
        with socket.socket() as probe:
            assert probe.connect_ex((dashboards.HOST, port)) != 0


def test_a_taken_port_and_a_mistyped_store_are_refused(folder, ports, tmp_path):
    with socket.socket() as taken:
        taken.bind((dashboards.HOST, ports + 1))
        taken.listen()
        with pytest.raises(UserError, match=f"--port-base {ports}: port {ports + 1} cannot be used"):
            dashboards.serve(folder, example_study(), ports, print)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no such study there"):
        dashboards.serve(StudyFolder(Store(str(tmp_path / "empty")), "example"), example_study(), ports, print)
    assert not list((tmp_path / "empty").iterdir())


def test_what_is_not_there_is_said(folder, monkeypatch):
    monkeypatch.setattr(dashboards.shutil, "which", lambda *arguments, **options: None)
    assert "pip install 'spectral-scaling[dashboards]'" in dashboards._optuna(folder, example_study(), 1).problem
    elsewhere = StudyFolder(Store("unknown://bucket/results"), "example")
    assert "cannot read unknown://bucket/results/example/trials" in dashboards._tensorboard(elsewhere, 1).problem


def test_trackers_get_plain_values(monkeypatch):
    seen = []

    class Logger:
        def __init__(self, **options):
            self.options = options

        def log_trial_start(self, trial):
            seen.append(dict(trial.config))

        def log_trial_result(self, iteration, trial, result):
            seen.append(result)

    trial = types.SimpleNamespace(config={"trial": object(), "num_params": 813, "lr": 1e-2, "precision": "fp32"})
    logger = dashboards._plain(Logger)(project="mine")
    logger.log_trial_start(trial)
    logger.log_trial_result(
        1, trial, {"step": 4, "val_mae_dex": 0.5, "config": trial.config, "row": "{}", "done": False}
    )
    assert seen == [
        {"num_params": 813, "lr": 1e-2, "precision": "fp32"},
        {"step": 4, "val_mae_dex": 0.5, "done": False},
    ]
    assert "trial" in trial.config
    assert logger.options == {"project": "mine"}


def test_a_tracker_that_is_not_installed_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(dashboards.importlib.util, "find_spec", lambda name: None)
    dashboards.check_trackers(None, None)
    assert dashboards.logger_callbacks("example", None, None) == []
    with pytest.raises(
        UserError, match=r"--mlflow postgresql://…: .*holds a password"
    ) as raised:  # Tune would pickle it
        dashboards.check_trackers(None, "postgresql://me:hush@host/mlflow")
    assert "hush" not in str(raised.value)
    for options, name in (((("mine"), None), "wandb"), ((None, "file:///x"), "mlflow")):
        with pytest.raises(UserError, match=rf"--{name} .*pip install 'spectral-scaling\[tracking\]'"):
            dashboards.check_trackers(*options)
