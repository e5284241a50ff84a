import shutil

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaling.data.hdf5.reader import ERROR_ARRAY, FLUX_ARRAY, open_spectra
from scaling.data.shards.convert import convert
from scaling.data.shards.manifest import MANIFEST, STATISTICS, Manifest
from scaling.data.shards.verify import describe_shards, verify
from scaling.data.simulated.rows import COLUMNS
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.data.spectra import spectrum_snr
from scaling.errors import UserError
from tests.data.shards.converting import contents, damage, mtimes, read_sources, read_split, without_ray

ROWS_PER_SHARD = 64
SIMULATION = Simulation(train=300, val=70, test=64, pixels=1024, train_files=2)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    paths = write_simulation(tmp_path_factory.mktemp("sim"), SIMULATION)
    with h5py.File(paths["train"][0], "a") as file:
        file[ERROR_ARRAY][2, 0] = np.nan
        file[FLUX_ARRAY][3, 5] = -0.25
    return paths


@pytest.fixture(scope="module")
def shards(sources, tmp_path_factory, ray_cluster):
    dest = tmp_path_factory.mktemp("shards")
    convert(dest, **sources, rows_per_shard=ROWS_PER_SHARD)
    return dest


@pytest.fixture
def here(monkeypatch):
    """Conversions run in this process; a list of the shards that they write."""
    return without_ray(monkeypatch)


@pytest.fixture
def copy(shards, tmp_path):
    """A shard set that a test may damage."""
    return shutil.copytree(shards, tmp_path / "shards")


@pytest.mark.ray
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_shards_hold_the_sources_bit_for_bit(shards, sources, split):
    manifest = Manifest.load(shards)
    rows = [pq.read_metadata(shards / shard.file).num_rows for shard in manifest.shards(split)]
    assert rows == [shard.rows for shard in manifest.shards(split)]
    assert rows[:-1] == [ROWS_PER_SHARD] * (len(rows) - 1)
    flux, error, params = read_sources(sources[split])
    found_flux, found_error, frame = read_split(shards, split)
    assert np.array_equal(found_flux, flux)
    assert np.array_equal(found_error, error)
    assert frame.pop("row_id").tolist() == list(range(len(params)))
    pd.testing.assert_frame_equal(frame, params, check_exact=True)


@pytest.mark.ray
def test_shards_are_plain_parquet(shards):
    file = pq.ParquetFile(shards / "train" / "part-00000.parquet")
    assert file.schema_arrow.names == ["row_id", "flux", "error", *COLUMNS]
    assert file.schema_arrow.field("flux").type == pa.fixed_shape_tensor(pa.float32(), [1024])
    flux = file.metadata.row_group(0).column(1)
    assert (flux.path_in_schema, flux.compression) == ("flux.list.element", "ZSTD")
    assert "BYTE_STREAM_SPLIT" in flux.encodings
    assert not any("DICTIONARY" in encoding for encoding in flux.encodings)


@pytest.mark.ray
def test_the_manifest_describes_the_training_split(shards, sources):
    manifest = Manifest.load(shards)
    flux, error, params = read_sources(sources["train"])
    assert (manifest.pixels, manifest.filled_edges, manifest.rows_per_shard) == (1024, 1, ROWS_PER_SHARD)
    order = manifest.order
    assert (order.kind, order.seed, order.asked, order.drift.passed) == ("source", None, "auto", True)
    assert manifest.problems == []
    assert [source.path for source in manifest.sources["train"]] == [str(path) for path in sources["train"]]
    with open_spectra(sources["val"][0]) as spectra:
        assert np.array_equal(manifest.wave, spectra.wave)
        assert manifest.sources["val"][0].fingerprint == spectra.fingerprint()
    label = manifest.labels["log_g"]
    found = (label.mean, label.std, label.min, label.max, label.nan)
    values = params["log_g"].to_numpy()
    assert found == pytest.approx((values.mean(), values.std(), values.min(), values.max(), 0), rel=1e-12)
    assert manifest.labels["L_H"].nan == 300
    assert np.isnan(manifest.labels["L_H"].mean)
    assert "interp_param" not in manifest.labels
    expected = np.percentile(spectrum_snr(flux, error).astype(float), [5, 25, 50, 75, 95])
    assert list(manifest.snr.values()) == expected.tolist()
    assert manifest.snr_rows == 300

    statistics = pd.read_parquet(shards / "statistics.parquet")
    clipped = np.maximum(flux, 0).astype(np.float64)
    np.testing.assert_allclose(statistics["flux_mean"], clipped.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(statistics["flux_std"], clipped.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics["error_rms"], np.sqrt((error.astype(float) ** 2).mean(axis=0)), rtol=1e-6)
    assert np.array_equal(statistics["wave"], manifest.wave)
    assert "300 spectra in 5 shards" in describe_shards(shards)


@pytest.mark.ray
def test_the_digest_is_of_the_first_rows(shards):
    manifest = Manifest.load(shards)
    digests = {manifest.digest(split, rows) for split in ("train", "val") for rows in (1, 64, 65, 70)}
    assert len(digests) == 8
    first, second, *rest = manifest.splits["train"]
    other = second.model_copy(update={"checksum": "0" * 32})
    changed = manifest.model_copy(update={"splits": manifest.splits | {"train": [first, other, *rest]}})
    assert changed.digest("train", 64) == manifest.digest("train", 64)
    assert changed.digest("train", 65) != manifest.digest("train", 65)
    for rows in (0, 301):
        with pytest.raises(UserError, match=f"{rows} spectra of train asked for: it holds 1 to 300"):
            manifest.digest("train", rows)
    with pytest.raises(UserError, match="no split 'other'"):
        manifest.num_rows("other")


@pytest.mark.ray
def test_running_again_does_nothing(shards, sources):
    before = mtimes(shards), (shards / MANIFEST).stat().st_mtime_ns
    said = []
    manifest = convert(shards, **sources, rows_per_shard=ROWS_PER_SHARD, say=said.append)
    assert (mtimes(shards), (shards / MANIFEST).stat().st_mtime_ns) == before
    assert said == ["8 of 8 shards are there and whole"]
    assert manifest.num_rows("train") == 300


def test_an_interrupted_conversion_redoes_what_is_missing(copy, sources, here):
    published = (copy / MANIFEST).read_text()
    before = mtimes(copy / "train")
    missing, torn, altered = (copy / "train" / f"part-{number:05d}.parquet" for number in (1, 3, 4))
    missing.unlink()
    torn.write_bytes(torn.read_bytes()[:5000])
    damage(altered)
    (copy / MANIFEST).unlink()
    (copy / STATISTICS).unlink()
    (copy / "train" / ".part-00001.parquet.killed.tmp").write_text("half")
    convert(copy, **sources, rows_per_shard=ROWS_PER_SHARD)
    after = mtimes(copy / "train")
    assert {path for path in before if before[path] != after[path]} == {missing, torn, altered}
    assert (copy / MANIFEST).read_text() == published
    assert here == [f"train/part-{number:05d}.parquet" for number in (1, 3, 4)]
    assert list(copy.rglob("*.tmp")) == []
    assert verify(copy, sources=True) == []


def test_a_finished_set_is_repaired(copy, sources, here):
    whole = contents(copy)
    missing, torn = copy / "train" / "part-00001.parquet", copy / "val" / "part-00000.parquet"
    other = copy / "train" / "part-00003.parquet"
    missing.unlink()
    torn.write_bytes(torn.read_bytes()[:5000])
    shutil.copy(copy / "train" / "part-00002.parquet", other)
    (copy / STATISTICS).unlink()
    convert(copy, **sources, rows_per_shard=ROWS_PER_SHARD)
    assert contents(copy) == whole


def test_a_repair_from_changed_sources_is_refused(copy, sources, here, tmp_path):
    changed = shutil.copy(sources["val"][0], tmp_path / "changed.h5")
    with h5py.File(changed, "a") as file:
        file[FLUX_ARRAY][20, 7] += 1.0  # a row that the fingerprint does not cover
    shard = copy / "val" / "part-00000.parquet"
    shard.unlink()
    with pytest.raises(UserError, match=r"val/part-00000\.parquet: .*changed\.h5 no longer hold"):
        convert(copy, **sources | {"val": [changed]}, rows_per_shard=ROWS_PER_SHARD)
    assert not shard.exists()
    assert list(copy.rglob("*.tmp")) == []


def test_spectra_in_two_splits_are_a_problem(sources, here, tmp_path):
    leaky = shutil.copy(sources["val"][0], tmp_path / "leaky.h5")
    with h5py.File(leaky, "a") as file, h5py.File(sources["train"][1]) as train:
        for name in (FLUX_ARRAY, ERROR_ARRAY):
            file[name][5], file[name][9] = train[name][7], train[name][8]
            file[name][11] = file[name][10]
    manifest = convert(tmp_path / "out", **sources | {"val": [leaky]})
    assert manifest.problems == [
        "1 spectrum of val repeat another of the same split",
        "2 spectra of val are also in train, first: val row 5 = train row 157",
    ]
    assert manifest.problems[1] in describe_shards(tmp_path / "out")
    assert Manifest.load(tmp_path / "out").problems == manifest.problems


def with_params(path, change):
    """Rewrite the parameter table of a file."""
    params = change(pd.read_hdf(path))
    with h5py.File(path, "a") as file:
        del file["dataset/params"]
    params.to_hdf(path, key="dataset/params", format="table")


def test_text_is_kept_as_text_and_other_kinds_are_refused(sources, here, tmp_path):
    names = ["G", "K", "M"]

    def add(params, column):
        return params.assign(kind=column)

    files = {split: [shutil.copy(paths[0], tmp_path / f"{split}.h5")] for split, paths in sources.items()}
    for (path,) in files.values():
        with_params(path, lambda table: add(table, pd.Categorical.from_codes(np.arange(len(table)) % 3, names)))
    convert(tmp_path / "out", **files)
    frame = read_split(tmp_path / "out", "val")[2]
    assert frame["kind"].tolist() == [names[row % 3] for row in range(len(frame))]
    with_params(files["val"][0], lambda table: add(table, pd.Timestamp("2026-01-01")))
    with pytest.raises(UserError, match=r"val\.h5: parameter column 'kind' is datetime64.*convert or drop it"):
        convert(tmp_path / "other", **files)
    assert not (tmp_path / "other").exists()


@pytest.mark.ray
def test_other_sources_or_settings_are_not_mixed(copy, sources, tmp_path):
    with pytest.raises(UserError, match="holds shards of other sources or settings"):
        convert(copy, **sources, rows_per_shard=32)
    (copy / MANIFEST).unlink()
    with pytest.raises(UserError, match="holds shards of other sources or settings"):
        convert(copy, **sources | {"val": sources["test"]}, rows_per_shard=ROWS_PER_SHARD)
    with pytest.raises(UserError, match="is not empty and holds no conversion"):
        convert(sources["val"][0].parent, **sources)


@pytest.mark.ray
def test_moved_sources_are_the_same_sources(shards, sources, tmp_path):
    moved = [shutil.copy(path, tmp_path / f"{index}.h5") for index, path in enumerate(sources["train"])]
    convert(shards, **sources | {"train": moved}, rows_per_shard=ROWS_PER_SHARD)


@pytest.mark.ray
def test_a_bad_row_is_one_line_and_publishes_nothing(sources, tmp_path):
    bad = shutil.copy(sources["val"][0], tmp_path / "bad.h5")
    with h5py.File(bad, "a") as file:
        file[FLUX_ARRAY][66] = 0.0
    dest = tmp_path / "out"
    with pytest.raises(UserError, match=r"bad\.h5: flux is 0 in every pixel .* row 66, 1 such") as raised:
        convert(dest, **sources | {"val": [bad]}, rows_per_shard=ROWS_PER_SHARD)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"no manifest\.json, so not a shard set"):
        Manifest.load(dest)


def test_sources_must_match(sources, tmp_path):
    other = write_simulation(tmp_path / "sim", Simulation(train=1, val=8, test=1, pixels=2048))["val"]
    with pytest.raises(UserError, match=r"train_0.*1024 pixels.*val.*2048 pixels.*different pixel grids"):
        convert(tmp_path / "out", **sources | {"val": other})
    with pytest.raises(UserError, match="no source file for the test split"):
        convert(tmp_path / "out", **sources | {"test": []})
    with pytest.raises(UserError, match="rows_per_shard is 0"):
        convert(tmp_path / "out", **sources, rows_per_shard=0)
    with pytest.raises(UserError, match="order is 'random': name one of auto, source, shuffled"):
        convert(tmp_path / "out", **sources, order="random")
    with pytest.raises(UserError, match="order seed is -1"):
        convert(tmp_path / "out", **sources, order_seed=-1)
    narrow = shutil.copy(sources["val"][0], tmp_path / "narrow.h5")
    params = pd.read_hdf(narrow).drop(columns="mag")
    with h5py.File(narrow, "a") as file:
        del file["dataset/params"]
    params.to_hdf(narrow, key="dataset/params", format="table")
    with pytest.raises(UserError, match="only one has the parameter column 'mag'"):
        convert(tmp_path / "out", **sources | {"val": [narrow]})
    assert not (tmp_path / "out").exists()


def test_manifests_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="run `scaling shard"):
        Manifest.load(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Manifest.load(tmp_path)
    (tmp_path / MANIFEST).write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="format version 99, expected 3"):
        Manifest.load(tmp_path)
