"""A study whose shards and store are on an S3-compatible server that fails, and whose driver is killed."""

import os
import signal
import time

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from benchmarks.object_store import copy
from scaling.commands.common import load_study
from scaling.folder import Folder
from scaling.study.lease import lease
from scaling.study.store import Store, StudyFolder
from scaling.sweep import dashboards
from tests import s3
from tests.study.example import example_row, example_study
from tests.sweep.test_faults import start, wait_for, write_study


def results(folder):
    return {row.trial: (row.status, row.lr, row.steps, row.val_mae_dex, row.test_mae_dex) for row in folder.rows()}


def finish(driver):
    output, errors = driver.communicate(timeout=250)
    assert driver.returncode == 0, output + errors
    assert "Traceback" not in output + errors
    return output


@pytest.mark.ray
@pytest.mark.rehearsal
def test_a_server_restart_and_a_killed_driver_change_no_row(tmp_path, shards, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    search = dict(samples=32_000, search="trials=2, prune=False")
    local = write_study(tmp_path / "local.py", shards, **search)
    finish(start(local, tmp_path / "store", tmp_path / "cache"))
    undisturbed = results(StudyFolder(Store(str(tmp_path / "store")), "mine"))
    assert len(undisturbed) == 2

    (tmp_path / "s3").mkdir()
    with s3.server(tmp_path / "s3") as server:
        there, store = s3.location(server.port, "shards"), s3.location(server.port, "results")
        copy(Folder.at(shards), Folder.at(there))
        study_file = write_study(tmp_path / "remote.py", there, **search)
        (cell,) = load_study(str(study_file)).cells()
        folder = StudyFolder(Store(store), "mine")
        curve = lambda: (folder.trial(cell.trial(0)).read_progress() or "").splitlines()  # noqa: E731

        driver = start(study_file, store, tmp_path / "cache-s3")
        wait_for(lambda: len(curve()) > 3, driver)
        server.kill()
        time.sleep(5.0)
        assert driver.poll() is None, driver.communicate()
        server.start()
        reached = len(curve())
        wait_for(lambda: len(curve()) > reached, driver)
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
        assert folder.trial(cell.trial(0)).read_row() is None, "the trial was not finished when its driver was killed"

        output = finish(start(study_file, store, tmp_path / "cache-s3"))
        assert results(folder) == undisturbed
        assert len(curve()) == 1 + 20
        assert "(`scaling dashboard` with this STUDY and --store serves it)" in output
        assert folder.store.read("mine/report/index.html")


def test_a_journal_shows_what_other_machines_finished(s3_server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(dashboards.shutil, "which", lambda name, **options: name)
    study, folder = example_study(), StudyFolder(Store(s3_server(tmp_path.name)), "example")

    def finished():
        page = dashboards._optuna(folder, study, 1)
        storage = JournalStorage(JournalFileBackend(page.command[1]))
        return len(optuna.load_study(study_name="example", storage=storage).get_trials(states=[TrialState.COMPLETE]))

    assert finished() == 0
    folder.trial("w0004-d00000128-s1-t00").write_row(example_row())
    assert finished() == 1
    with lease(folder.store, folder.running_path, print, seconds=3.0):  # a sweep of this machine keeps its own journal
        folder.trial("w0004-d00000128-s1-t01").write_row(example_row(trial="w0004-d00000128-s1-t01"))
        assert finished() == 1
    assert finished() == 2
