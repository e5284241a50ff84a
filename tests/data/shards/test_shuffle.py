import contextlib
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data.hdf5.reader import ERROR_ARRAY, FLUX_ARRAY, SpectraFile
from scaling.data.shards import convert as convert_module
from scaling.data.shards.convert import convert
from scaling.data.shards.manifest import MANIFEST, Manifest
from scaling.data.shards.order import study_positions
from scaling.data.shards.pipeline import write_shards_here
from scaling.data.shards.verify import describe_shards, verify
from scaling.data.simulated.writer import Simulation, write_simulation
from tests.data.shards.converting import contents, convert_here, read_sources, read_split, without_ray

ROWS = 300
SETTINGS = {"rows_per_shard": 64, "order": "shuffled", "order_seed": 7}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    simulation = Simulation(train=ROWS, val=20, test=20, pixels=1024, train_files=2)
    paths = write_simulation(tmp_path_factory.mktemp("sim"), simulation)
    with h5py.File(paths["train"][0], "a") as file:
        file[ERROR_ARRAY][2, 0] = np.nan
    return paths


@pytest.fixture(scope="module")
def shuffled(sources, tmp_path_factory):
    return convert_here(tmp_path_factory.mktemp("shuffled") / "shards", sources, **SETTINGS)


@pytest.fixture
def here(monkeypatch):
    """Conversions run in this process; a list of the shards that they write."""
    return without_ray(monkeypatch)


def test_every_source_row_is_there_once_in_the_seeds_order(shuffled, sources):
    flux, error, params = read_sources(sources["train"])
    found_flux, found_error, frame = read_split(shuffled, "train")
    positions = study_positions(ROWS, 7)
    assert np.array_equal(found_flux[positions], flux)
    assert np.array_equal(found_error[positions], error)
    assert frame["row_id"].tolist() == list(range(ROWS))
    found = frame.iloc[positions].reset_index(drop=True).drop(columns="row_id")
    pd.testing.assert_frame_equal(found, params, check_exact=True)
    for split in ("val", "test"):
        assert np.array_equal(read_split(shuffled, split)[0], read_sources(sources[split])[0])


def test_the_manifest_says_so(shuffled):
    manifest = Manifest.load(shuffled)
    order = manifest.order
    assert (order.kind, order.seed, order.asked) == ("shuffled", 7, "shuffled")
    assert manifest.filled_edges == 1
    assert "shuffled with seed 7 (asked: shuffled)" in describe_shards(shuffled)
    assert verify(shuffled, sources=True) == []


class KilledError(Exception):
    pass


@settings(max_examples=6, deadline=None)
@given(tasks=st.integers(1, 7), killed_after=st.integers(0, 6))
def test_only_the_seed_decides(tasks, killed_after, shuffled, sources, tmp_path_factory):
    """The same bits however many tasks there are, and where the first run is interrupted."""
    dest = tmp_path_factory.mktemp("again") / "shards"
    runs = []

    def interrupted(datasource, prepare, sink, _):
        put = sink._put

        def put_or_die(encoder, unfinished):
            if len(runs) == 1 and len(written) - before == killed_after:
                with unfinished:
                    raise KilledError
            return put(encoder, unfinished)

        runs.append(1)
        sink._put, before = put_or_die, len(written)
        return write_shards_here(datasource, prepare, sink, tasks)

    with pytest.MonkeyPatch.context() as patch:
        written = without_ray(patch)
        patch.setattr(convert_module, "write_shards", interrupted)
        with contextlib.suppress(KilledError):
            convert(dest, **sources, **SETTINGS)
        assert (dest / MANIFEST).exists() == (killed_after >= 7)
        convert(dest, **sources, **SETTINGS)
    assert sorted(written) == sorted(set(written))
    assert contents(dest) == contents(shuffled)
    shutil.rmtree(dest.parent)


def test_other_seeds_are_other_orders(shuffled, sources, here, tmp_path):
    convert(tmp_path / "other", **sources, **SETTINGS | {"order_seed": 8})
    flux, other = (read_split(dest, "train")[0] for dest in (shuffled, tmp_path / "other"))
    assert sorted(map(bytes, flux)) == sorted(map(bytes, other))
    assert (flux == other).all(axis=1).sum() < 10


def test_one_lost_shard_is_made_from_its_own_rows(shuffled, sources, here, tmp_path, monkeypatch):
    copy = shutil.copytree(shuffled, tmp_path / "shards")
    (copy / "train" / "part-00002.parquet").unlink()
    rows, read_rows = [], SpectraFile.read_rows
    monkeypatch.setattr(
        SpectraFile,
        "read_rows",
        lambda file, numbers, **how: (rows.extend(numbers), read_rows(file, numbers, **how))[1],
    )
    convert(copy, **sources, **SETTINGS)
    assert here == ["train/part-00002.parquet"]
    assert len(rows) == 64
    assert contents(copy) == contents(shuffled)


def test_a_drifting_order_is_shuffled_unless_forbidden(sources, here, tmp_path):
    paths = sources | {"train": [shutil.copy(path, tmp_path / f"{at}.h5") for at, path in enumerate(sources["train"])]}
    for path in paths["train"]:
        params = params_sorted(path)
        params.to_hdf(path, key="dataset/params", format="table")
    auto = convert(tmp_path / "auto", **paths, order="auto")
    assert (auto.order.kind, auto.order.seed, auto.order.drift.column) == ("shuffled", 0, "log_g")
    assert auto.problems == []
    forced = convert(tmp_path / "forced", **paths, order="source")
    assert forced.order.kind == "source"
    assert len(forced.problems) == 1
    assert "the order of train drifts (log_g" in forced.problems[0]
    assert np.array_equal(read_split(tmp_path / "forced", "train")[0], read_sources(paths["train"])[0])


def params_sorted(path):
    """The parameters of a file, with its log_g in increasing order; the file loses its own."""
    params = pd.read_hdf(path)
    with h5py.File(path, "a") as file:
        del file["dataset/params"]
        assert file[FLUX_ARRAY].shape[0] == len(params)
    return params.assign(log_g=np.sort(params["log_g"]))
