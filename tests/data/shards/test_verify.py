import shutil

import h5py
import pandas as pd
import pytest

from scaling.data.hdf5.reader import ERROR_ARRAY, FLUX_ARRAY
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.order import study_positions
from scaling.data.shards.verify import verify
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.errors import UserError
from tests.data.shards.converting import convert_here, damage

ROWS = 1200


@pytest.fixture(scope="module", params=["source", "shuffled"])
def converted(request, tmp_path_factory):
    """A folder with sources and the shards made from them."""
    root = tmp_path_factory.mktemp("verify")
    paths = write_simulation(root / "hdf5", Simulation(train=ROWS, val=20, test=20, pixels=1024, train_files=2))
    convert_here(root / "shards", paths, rows_per_shard=700, order=request.param)
    return root


@pytest.fixture
def copy(converted, tmp_path):
    """Shards that a test may damage."""
    return shutil.copytree(converted / "shards", tmp_path / "shards")


@pytest.fixture
def moved(converted, tmp_path):
    """Shards whose sources are a copy that a test may change."""
    files = shutil.copytree(converted / "hdf5", tmp_path / "hdf5")
    dest = shutil.copytree(converted / "shards", tmp_path / "shards")
    manifest = Manifest.load(dest)
    paths = {
        split: [
            one.model_copy(update={"path": one.path.replace(str(converted / "hdf5"), str(files))}) for one in sources
        ]
        for split, sources in manifest.sources.items()
    }
    (dest / "manifest.json").write_bytes(manifest.model_copy(update={"sources": paths}).content())
    return dest, files


def test_damage_is_found(converted, copy):
    assert verify(converted / "shards", sources=True) == []
    (copy / "train" / "part-00000.parquet").unlink()
    damage(copy / "train" / "part-00001.parquet")
    shutil.copy(copy / "test" / "part-00000.parquet", copy / "val" / "part-00000.parquet")
    (copy / "test" / "part-00000.parquet").write_text("no")
    shutil.copy(copy / "val" / "part-00000.parquet", copy / "test" / "part-00009.parquet")
    (copy / "statistics.parquet").unlink()
    for sources in (False, True):
        found = [problem.removeprefix(f"{copy}/") for problem in verify(copy, sources)]
        for problem, expected in zip(
            found,
            [
                "train/part-00000.parquet: this shard cannot be read (no such file)",
                "train/part-00001.parquet: this shard cannot be read",
                "val/part-00000.parquet: not the shard in the manifest, it differs from the manifest's checksum",
                "test/part-00000.parquet: this shard cannot be read",
                "test/part-00009.parquet is not in the manifest",
                "statistics.parquet: is missing",
            ],
            strict=True,
        ):
            assert problem.startswith(expected)


@pytest.mark.parametrize("name", ["flux", "error", "log_g", "interp_param"])
def test_a_source_that_differs_in_one_value_is_found(name, moved):
    dest, files = moved
    path = files / "train_1" / "dataset.h5"
    if name in ("flux", "error"):
        with h5py.File(path, "a") as file:
            file[{"flux": FLUX_ARRAY, "error": ERROR_ARRAY}[name]][17, 3] *= 1.01
            file[{"flux": FLUX_ARRAY, "error": ERROR_ARRAY}[name]][18, 3] *= 1 + 1e-12  # the same as float32
    else:
        params = pd.read_hdf(path)
        params.loc[17, name] = "T_eff" if name == "interp_param" else 1.23
        with h5py.File(path, "a") as file:
            del file["dataset/params"]
        params.to_hdf(path, key="dataset/params", format="table")
    assert verify(dest) == []
    row_id = ROWS // 2 + 17
    if Manifest.load(dest).order.kind == "shuffled":
        row_id = study_positions(ROWS, 0)[row_id]
    shard, row = divmod(int(row_id), 700)
    assert verify(dest, sources=True) == [
        f"train/part-{shard:05d}.parquet row {row} differs from {path} row 17 in {name}"
    ]


def test_sources_that_are_gone(moved):
    dest, files = moved
    shutil.move(files / "val", files / "elsewhere")
    assert verify(dest) == []
    with pytest.raises(UserError, match=r"val/dataset\.h5: this source file is gone: put it back"):
        verify(dest, sources=True)
    shutil.copytree(files / "test", files / "val")
    assert "val/part-00000.parquet row 0 differs" in verify(dest, sources=True)[0]
    shutil.copy(files / "train_0" / "dataset.h5", files / "val" / "dataset.h5")
    with pytest.raises(UserError, match=r"val/dataset\.h5: 600 spectra, 20 when it was converted"):
        verify(dest, sources=True)
