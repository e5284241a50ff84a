import shutil
import stat

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
    own = tmp_path / "cache" / "spectral-scaling" / "journals"
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


def test_simulated_spectra_need_a_local_store(tmp_path):
    assert Store(str(tmp_path)).simulated("digest") == tmp_path / "data" / "digest"
    with pytest.raises(UserError, match="need a local store"):
        Store("s3://bucket/x").simulated("digest")
