"""A shard set on an object store is the same as one in a folder."""

import contextlib
import time

import pytest

from scaling.data.shards import manifest
from scaling.data.shards.convert import CONVERSION, convert
from scaling.data.shards.manifest import MANIFEST, STATISTICS, Manifest
from scaling.data.shards.verify import describe_shards, verify
from scaling.errors import UserError
from scaling.folder import Folder
from tests import s3
from tests.data.shards import small_files
from tests.data.shards.converting import contents, convert_here, without_ray

SETTINGS = {"rows_per_shard": 600, "order": "shuffled"}
FILES = sorted([CONVERSION, MANIFEST, STATISTICS, *(f"train/part-0000{at}.parquet" for at in range(4))])
FILES = sorted([*FILES, "test/part-00000.parquet", "val/part-00000.parquet"])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return small_files.write_splits(tmp_path_factory.mktemp("files"), train=2000, val=100, test=50)


@pytest.fixture(scope="module")
def local(sources, tmp_path_factory):
    """The bytes of the same conversion into a folder."""
    return contents(convert_here(tmp_path_factory.mktemp("local") / "shards", sources, **SETTINGS))


@pytest.fixture
def here(monkeypatch):
    """Converts in this process; the list of the shards that were written."""
    return without_ray(monkeypatch)


def objects(dest):
    folder = Folder.at(dest)
    names = [f"{split}/{name}" for split in ("train", "val", "test") for name in folder.files(split)]
    return {name: folder.read(name) for name in [*folder.files(), *names]}


@pytest.mark.ray
def test_a_conversion_on_ray_writes_what_a_local_one_does(sources, local, s3_server, tmp_path, ray_cluster):
    dest = s3_server(tmp_path.name)
    convert(dest, **sources, **SETTINGS)
    assert objects(dest) == local
    assert sorted(local) == FILES
    assert verify(dest, sources=True) == []
    assert "2000 spectra in 4 shards" in describe_shards(dest)


def test_what_is_lost_is_written_again_and_no_more(sources, local, s3_server, tmp_path, here):
    dest = s3_server(tmp_path.name)
    convert(dest, **sources, **SETTINGS)
    assert len(here) == 6
    folder = Folder.at(dest)
    folder.delete("train/part-00002.parquet")
    folder.write("val/part-00000.parquet", b"cut")
    assert len(verify(dest)) == 2
    here.clear()
    convert(dest, **sources, **SETTINGS)
    assert sorted(here) == ["train/part-00002.parquet", "val/part-00000.parquet"]
    folder.delete(MANIFEST)
    with pytest.raises(UserError, match=r"no manifest\.json, so not a shard set"):
        Manifest.load(dest)
    convert(dest, **sources, **SETTINGS)
    assert len(here) == 2
    assert objects(dest) == local


def test_other_sources_are_not_mixed_on_an_object_store_either(sources, s3_server, tmp_path, here):
    dest = s3_server(tmp_path.name)
    convert(dest, **sources, **SETTINGS)
    with pytest.raises(UserError, match="holds shards of other sources or settings"):
        convert(dest, **sources | {"val": sources["test"]}, **SETTINGS)
    other = s3_server(tmp_path.name + "-other")
    Folder.at(other).write("file", b"x")
    with pytest.raises(UserError, match="is not empty and holds no conversion"):
        convert(other, **sources, **SETTINGS)


@contextlib.contextmanager
def counted(port):
    """Counts the requests to a server by method."""
    requests = []

    class Counted(s3.Proxy):
        def _is_to_fail(self, method, path):
            requests.append((method, path))
            return super()._is_to_fail(method, path)

    with Counted(port) as proxy:
        yield proxy, requests


def proxied(uri, proxy):
    return uri.replace(f"127.0.0.1:{_port(uri)}", f"127.0.0.1:{proxy.port}")


def _port(uri):
    return int(uri.partition("endpoint_override=127.0.0.1:")[2].partition("&")[0])


def test_a_shard_is_read_by_few_requests(sources, s3_server, tmp_path, here):
    uri = s3_server(tmp_path.name)
    convert(uri, **sources, **SETTINGS)
    with counted(_port(uri)) as (proxy, requests):
        assert verify(proxied(uri, proxy)) == []
    of_a_shard = [method for method, path in requests if "part-00002.parquet" in path]
    assert len(of_a_shard) <= 3
    assert len(requests) <= 40


def test_a_process_asks_for_a_manifest_and_its_statistics_once(sources, s3_server, tmp_path, here, monkeypatch):
    uri = s3_server(tmp_path.name)
    convert(uri, **sources, **SETTINGS)
    with counted(_port(uri)) as (proxy, requests):
        there = proxied(uri, proxy)
        monkeypatch.setattr(manifest, "REMEMBERED_SECONDS", 1e9)
        first = Manifest.load(there).pixel_statistics()
        asked = len(requests)
        again = Manifest.load(there).pixel_statistics()
        assert (len(requests), asked > 0) == (asked, True)
        assert all((first[name] == again[name]).all() for name in first)
        Folder.at(uri).delete(MANIFEST)
        with pytest.raises(UserError, match=r"no manifest\.json"):  # what converts or prepares a study sees it as it is
            Manifest.read(there)
        monkeypatch.setattr(manifest, "REMEMBERED_SECONDS", 1e-3)
        with pytest.raises(UserError, match=r"no manifest\.json"):
            Manifest.load(there)


@pytest.mark.parametrize("status", [500, None])
def test_reads_that_fail_for_a_while_are_made_again(status, sources, s3_server, tmp_path, here):
    uri = s3_server(tmp_path.name)
    convert(uri, **sources, **SETTINGS)
    with s3.Proxy(_port(uri)) as proxy:
        proxy.status = status
        proxy.faults |= {("GET", "part-00001.parquet"): 2, ("GET", "manifest.json"): 1, ("GET", "statistics"): 1}
        assert verify(proxied(uri, proxy)) == []
        assert proxy.failed == 4


def test_a_read_that_fails_once_with_arrows_own_error_is_made_again(
    sources, local, s3_server, tmp_path, here, monkeypatch
):
    dest = s3_server(tmp_path.name)
    convert(dest, **sources, **SETTINGS)
    failed, call = set(), Folder._call
    monkeypatch.setattr("scaling.retry.FIRST_WAIT_SECONDS", 0.001)

    def flaky(folder, function, path):
        def once(filesystem, target):
            if path.endswith(("parquet", "json")) and path not in failed:
                failed.add(path)
                raise OSError("AWS Error NETWORK_CONNECTION")
            return function(filesystem, target)

        return call(folder, once, path)

    monkeypatch.setattr(Folder, "_call", flaky)
    assert verify(dest) == []
    assert len(failed) == 8


def test_an_endpoint_where_nothing_answers_is_one_line(sources, s3_server, tmp_path, free_port, here, monkeypatch):
    monkeypatch.setenv("SCALING_PATIENCE", "0")
    dest = s3.location(free_port, "x")
    for call in (lambda: convert(dest, **sources, **SETTINGS),):
        started = time.monotonic()
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{free_port}") as raised:
            call()
        assert "\n" not in str(raised.value)
        assert time.monotonic() - started < 60
