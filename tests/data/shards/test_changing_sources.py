"""Sources that change, or go, while they are converted."""

import os
import shutil

import h5py
import pytest

from scaling.data.hdf5.reader import FLUX_ARRAY
from scaling.data.shards import convert as convert_module
from scaling.data.shards.convert import convert
from scaling.data.shards.manifest import MANIFEST
from scaling.data.shards.pipeline import write_shards_here
from scaling.errors import UserError
from tests.data.shards import small_files
from tests.data.shards.converting import without_ray


def change_a_row(path):
    with h5py.File(path, "a") as file:
        file[FLUX_ARRAY][33] += 1.0  # no row that the fingerprint covers


@pytest.mark.parametrize("order", ["source", "shuffled"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), r"train\.h5: no such file on .*every node sees"),
        (lambda path: os.truncate(path, path.stat().st_size // 3), r"train\.h5"),
        (lambda path: path.write_bytes(b""), r"train\.h5"),
        (change_a_row, r"train\.h5: was changed while it was read"),
        (lambda path: small_files.write_file(path, 100, 8, seed=9), r"train\.h5: was changed while it was read"),
        (lambda path: small_files.write_file(path, 90, 8), r"train\.h5"),
    ],
    ids=["gone", "cut", "empty", "changed", "replaced", "shorter"],
)
def test_a_source_that_changes_after_it_was_looked_at_publishes_nothing(change, said, order, tmp_path, monkeypatch):
    for split, rows in (("train", 100), ("val", 10), ("test", 10)):
        small_files.write_file(tmp_path / f"{split}.h5", rows, 8)
    sources = {split: [tmp_path / f"{split}.h5"] for split in ("train", "val", "test")}
    without_ray(monkeypatch)

    def after_a_change(*arguments):
        change(sources["train"][0])
        return write_shards_here(*arguments)

    monkeypatch.setattr(convert_module, "write_shards", after_a_change)
    dest = tmp_path / "shards"
    with pytest.raises(UserError, match=said) as raised:
        convert(dest, **sources, rows_per_shard=16, order=order)
    assert "\n" not in str(raised.value)
    assert not (dest / MANIFEST).exists()


def test_a_split_folder_that_is_a_file_is_one_line(tmp_path, monkeypatch):
    for split in ("train", "val", "test"):
        small_files.write_file(tmp_path / f"{split}.h5", 20, 8)
    sources = {split: [tmp_path / f"{split}.h5"] for split in ("train", "val", "test")}
    without_ray(monkeypatch)
    dest = tmp_path / "shards"
    convert(dest, **sources)
    shutil.rmtree(dest / "train")
    (dest / "train").write_text("")
    with pytest.raises(UserError, match=r"shards: .*[Nn]ot a directory.*name another place") as raised:
        convert(dest, **sources)
    assert "\n" not in str(raised.value)
