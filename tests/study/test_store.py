import dataclasses
import shutil
import stat
import threading

import pytest

from scaling.errors import UserError
from scaling.study.store import Store, StudyFolder
from tests.study.example import example_row


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("/data/results", "/data/results/mine/report"),
        ("s3://bucket/path/", "s3://bucket/path/mine/report"),
        ("s3://bucket/path?region=eu-west-1", "s3://bucket/path/mine/report?region=eu-west-1"),
        ("/data/odd?name", "/data/odd?name/mine/report"),
    ],
)
def test_options_of_a_uri_stay_at_its_end(uri, place):
    assert Store(uri).locate("mine/report") == place


def test_journals_of_remote_stores_lie_in_the_users_own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    journals = {StudyFolder(Store(f"s3://{bucket}/x"), "mine").journal for bucket in "ab"}
    assert len(journals) == 2
    own = tmp_path / "cache" / "spectral-scaling" / "views"
    for journal in journals:
        assert own in journal.parents
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    shutil.rmtree(own)
    own.symlink_to(tmp_path)
    with pytest.raises(UserError, match="a real folder of yours"):
        StudyFolder(Store("s3://a/x"), "mine").journal  # noqa: B018


def test_what_killed_processes_left_is_removed_with_the_row(tmp_path):
    trial = StudyFolder(Store(str(tmp_path)), "mine").trial("t")
    trial.write_state(b"state")
    (tmp_path / "mine/trials/t/.state.pt.0123.tmp").write_bytes(b"half")
    trial.write_row(example_row())
    assert [path.name for path in (tmp_path / "mine/trials/t").iterdir()] == ["row.json"]


def test_a_row_belongs_to_its_folder(tmp_path):
    folder = StudyFolder(Store(str(tmp_path)), "example")
    row = example_row()
    path = tmp_path / "example" / "trials" / row.trial / "row.json"
    trial = folder.trial(row.trial)
    trial.write_row(row)
    assert folder.rows() == folder.rows_with_branches() == [row]
    for other in (
        dataclasses.replace(row, trial="w0004-d00000128-s1-t01"),
        dataclasses.replace(row, study="another"),
        dataclasses.replace(row, cell="w0008-d00000128-s1"),
        dataclasses.replace(row, budget_share=0.25),
    ):
        path.write_text(other.to_json())
        for read in (folder.rows, folder.rows_with_branches, trial.read_row):
            with pytest.raises(UserError, match=rf"row\.json: is that of study {other.study}.* delete it"):
                read()
    path.unlink()
    path.mkdir()
    for read in (folder.rows, folder.rows_with_branches, trial.read_row):
        with pytest.raises(UserError, match=r"row\.json: a folder"):
            read()


CURVES = [b"", b"\n", b"step\n", b"step,val_mae_dex\n", b"step,val_mae_dex\n1,x\n", b"\xff\x00", b"a,b\n1\n", b'"' * 9]


def test_a_curve_that_cannot_be_read_says_so(tmp_path):
    folder = StudyFolder(Store(str(tmp_path)), "example")
    trial = folder.trial("t")
    for content in CURVES:
        folder.store.write("example/trials/t/progress.csv", content)
        assert folder.unfinished() == {"t": "its progress.csv cannot be read; it is rewritten when the trial resumes"}
    trial.write_progress("step,val_mae_dex\n4,0.5\n8,0.25\n", b"")
    assert folder.unfinished() == {"t": "step 8, val MAE 0.250 dex"}


def test_simulated_spectra_need_a_local_store(tmp_path):
    assert Store(str(tmp_path)).simulated("digest") == tmp_path / "data" / "digest"
    with pytest.raises(UserError, match="need a local store"):
        Store("s3://bucket/x").simulated("digest")


@pytest.fixture(params=["local", "s3"])
def study(request, tmp_path):
    """A study's folder in an empty store."""
    uri = tmp_path / "store" if request.param == "local" else request.getfixturevalue("s3_server")(tmp_path.name)
    return StudyFolder(Store(str(uri)), "mine")


def row_of(trial, **changes):
    return example_row(study="mine", cell="w0004-d00000128-s1", trial=trial, **changes)


A, B, C, D, E = (f"w0004-d00000128-s1-t{number:02d}" for number in range(5))


def test_rows_branches_and_curves_are_read_side_by_side_in_the_order_of_trials(study):
    for trial in (C, A, B):
        study.trial(trial).write_row(row_of(trial))
    study.trial(A).write_row(row_of(A, budget_share=0.5))
    study.trial(A).write_progress("step,val_mae_dex\n1,0.5\n", b"")
    study.trial(D).write_progress("step,val_mae_dex\n1,0.5\n2,0.25\n", b"")
    study.trial(E).write_state(b"state")
    assert [row.trial for row in study.rows()] == [A, B, C]
    found = [(row.trial, row.budget_share) for row in study.rows_with_branches()]
    assert found == [(A, 0.5), (A, 1.0), (B, 1.0), (C, 1.0)]
    assert study.unfinished() == {D: "step 2, val MAE 0.250 dex"}


def test_a_failed_row_never_replaces_one_that_is_there(study):
    trial, done = study.trial(A), row_of(A)
    failed = dataclasses.replace(done, status="failed", error="lost")
    trial.write_row(failed)
    assert trial.read_row().error == "lost"
    trial.write_row(done)
    trial.write_row(failed)
    assert trial.read_row() == done


def test_a_row_that_is_seen_late_is_waited_for(tmp_path):
    trial = StudyFolder(Store(str(tmp_path)), "mine").trial(A)
    assert trial.await_row(0.0) is None
    later = threading.Timer(0.3, trial.write_row, [row_of(A)])
    later.start()
    assert trial.await_row(30.0) == row_of(A)
    later.join()
