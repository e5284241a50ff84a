"""Files of a shard set that are altered, or are something else: refused in one line, or made again."""

import os
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from scaling.data.shards.convert import CONVERSION, convert
from scaling.data.shards.manifest import MANIFEST, STATISTICS, Manifest
from scaling.data.shards.shard import is_as_listed, row_groups
from scaling.data.shards.verify import verify
from scaling.errors import UserError
from tests.data.shards.converting import contents, one_line, without_ray

FIRST = "train/part-00000.parquet"


@pytest.mark.parametrize("place", [MANIFEST, STATISTICS, FIRST, CONVERSION])
def test_a_fifo_or_a_folder_in_place_of_a_file_is_not_waited_for(place, dest, original, sources, monkeypatch):
    """Each call would block on a FIFO that nobody writes to."""
    without_ray(monkeypatch)
    shard = Manifest.load(dest).shards("train")[0]
    for make in (os.mkfifo, os.mkdir):
        (dest / place).unlink()
        make(dest / place)
        if place == MANIFEST:
            with pytest.raises(UserError, match=r"no manifest\.json, so not a shard set"):
                Manifest.load(dest)
            with pytest.raises(UserError, match=r"no manifest\.json, so not a shard set"):
                verify(dest)
        elif place == STATISTICS:
            with pytest.raises(UserError, match=r"statistics\.parquet"):
                Manifest.load(dest).pixel_statistics()
            assert len(verify(dest)) == 1
        elif place == FIRST:
            assert not is_as_listed(Manifest.load(dest).folder, shard)
            with pytest.raises(UserError, match="cannot be read"):
                list(row_groups(Manifest.load(dest).folder, FIRST))
            assert ["cannot be read" in problem for problem in verify(dest)] == [True]
        else:
            assert verify(dest) == []
        if make is os.mkfifo and place != CONVERSION:  # what is no file is replaced, and what is a folder is not
            convert(dest, **sources, rows_per_shard=16)
            assert contents(dest) == contents(original)
        else:
            with pytest.raises(UserError, match=re.escape(str(dest))) as raised:
                convert(dest, **sources, rows_per_shard=16)
            one_line(raised.value)
            (dest / place).unlink() if make is os.mkfifo else (dest / place).rmdir()
            shutil.copy(original / place, dest / place)


def test_a_link_out_of_the_set_is_followed_only_by_its_content(dest, original, tmp_path):
    """The names lead nowhere else; a folder that is a link is the user's own, and what is in it is still compared."""
    shutil.move(dest / "train", tmp_path / "elsewhere")
    (dest / "train").symlink_to(tmp_path / "elsewhere")
    assert verify(dest) == []
    shutil.copy(original / "val" / "part-00000.parquet", tmp_path / "elsewhere" / "part-00000.parquet")
    assert len(verify(dest)) == 1


def test_statistics_that_are_not_the_manifests_are_refused(dest, original, sources, monkeypatch):
    table = pq.read_table(original / STATISTICS)
    at = table.column_names.index("flux_mean")
    scaled = table.set_column(at, "flux_mean", [np.asarray(table["flux_mean"]) * 7])
    without_ray(monkeypatch)
    for change in (
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: pq.write_table(scaled, path),
    ):
        change(dest / STATISTICS)
        with pytest.raises(UserError, match=r"statistics\.parquet: (is missing|differs)") as raised:
            Manifest.load(dest).pixel_statistics()
        one_line(raised.value)
        assert len(verify(dest)) == 1
        convert(dest, **sources, rows_per_shard=16)
        assert contents(dest) == contents(original)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "garbage",
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace("identity", "other"),
        lambda text: text.replace('"kind": "source"', '"kind": "sorted"'),
        lambda text: text.replace('"rows_per_shard": 16', '"rows_per_shard": "16"'),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_conversion_that_was_not_written_down_whole_is_not_resumed(change, finished, dest, sources, monkeypatch):
    without_ray(monkeypatch)
    path = dest / CONVERSION
    path.write_text(change(path.read_text()))
    if not finished:
        (dest / MANIFEST).unlink()
    before = contents(dest)
    with pytest.raises(UserError, match=r"conversion\.json: .*remove this folder, or convert into another") as raised:
        convert(dest, **sources, rows_per_shard=16)
    one_line(raised.value)
    assert contents(dest) == before


@pytest.mark.parametrize("content", [b"", b"{}", b"garbage", b"[" * 1000])
def test_a_manifest_that_cannot_be_used_is_made_again(content, dest, original, sources, monkeypatch):
    written = without_ray(monkeypatch)
    (dest / MANIFEST).write_bytes(content)
    convert(dest, **sources, rows_per_shard=16)
    assert written == []
    assert contents(dest) == contents(original)
