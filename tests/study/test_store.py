import pytest

from scaling.errors import UserError
from scaling.study.store import Store, StudyFolder


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


def test_journals_of_different_remote_stores_are_different():
    journals = {StudyFolder(Store(f"s3://{bucket}/x"), "mine").journal for bucket in "ab"}
    assert len(journals) == 2


def test_what_is_written_is_read_and_listed(tmp_path):
    store = Store(str(tmp_path))
    store.write("a/b.json", b"1")
    assert (store.read("a/b.json"), store.read("a/c.json"), store.folders()) == (b"1", None, ["a"])
    store.delete("a/b.json")
    assert store.read("a/b.json") is None
    with pytest.raises(UserError, match="cannot be opened"):
        Store("nonsense://x").read("a")
