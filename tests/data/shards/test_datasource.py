"""`SpectraDatasource`: HDF5 files as a Ray dataset, as users of Ray Data read them."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scaling.data import SpectraDatasource
from scaling.data.shards.shard import ROW_GROUP_ROWS
from scaling.data.spectra import spectrum_snr
from scaling.errors import UserError
from tests.data.shards import small_files

PIXELS = 16
ROWS = (700, 300, 1)
COLUMNS = ["row_id", "flux", "error", "log_g", "T_eff", "count", "kind", "snr"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three files: of chunks that end anywhere, compressed, and of one row; and the columns of all."""
    root = tmp_path_factory.mktemp("files")
    layouts = ({"chunks": (90, PIXELS)}, {"chunks": (64, 5), "compression": "gzip"}, {})
    paths = [root / f"{at}.h5" for at in range(3)]
    parts = [
        small_files.write_file(path, rows, PIXELS, seed, **layout)
        for seed, (path, rows, layout) in enumerate(zip(paths, ROWS, layouts, strict=True))
    ]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS if name != "row_id"}
    return paths, columns | {"row_id": np.arange(sum(ROWS))}


def rows_here(source, tasks=1):
    """All rows, read in this process: one table of each task."""
    return [pa.concat_tables(task()) for task in source.get_read_tasks(tasks)]


def values(table, name):
    column = table[name].combine_chunks()
    return column.to_numpy_ndarray() if name in ("flux", "error") else column.to_numpy(zero_copy_only=False)


def assert_rows(table, columns, rows, names=COLUMNS, pixels=slice(None)):
    assert table.column_names == list(names)
    for name in names:
        found = values(table, name)
        expected = columns[name][rows]
        expected = expected[:, pixels] if expected.ndim == 2 else expected
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert np.array_equal(found, expected), name


@pytest.mark.ray
def test_ray_reads_every_value_as_the_files_have_it(files, ray_cluster):
    import ray

    paths, columns = files
    dataset = ray.data.read_datasource(SpectraDatasource(paths), override_num_blocks=3)
    assert dataset.count() == sum(ROWS)
    assert dataset.schema().names == COLUMNS
    assert dataset.schema().types[1:3] == [pa.fixed_shape_tensor(pa.float32(), [PIXELS])] * 2
    assert sorted(dataset.input_files()) == sorted(map(str, paths))
    batches = list(dataset.iter_batches(batch_size=256, batch_format="numpy"))
    assert {name: batch.shape[1:] for name, batch in batches[0].items() if batch.ndim > 1} == {
        "flux": (PIXELS,),
        "error": (PIXELS,),
    }
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in COLUMNS}
    order = np.argsort(found["row_id"])
    for name in COLUMNS:
        assert found[name].dtype == columns[name].dtype
        assert np.array_equal(found[name][order], columns[name])


@pytest.mark.ray
def test_ray_takes_some_rows_and_columns(files, ray_cluster):
    import ray

    paths, columns = files
    rows = np.random.default_rng(0).permutation(sum(ROWS))[:600]
    dataset = ray.data.read_datasource(SpectraDatasource(paths, rows=[rows[:200], rows[200:]], pixels=range(4, 12)))
    some = dataset.select_columns(["flux", "kind", "row_id"]).limit(70).take_batch(70)
    assert set(some) == {"flux", "kind", "row_id"}
    assert np.array_equal(some["flux"], columns["flux"][some["row_id"], 4:12])
    assert np.array_equal(some["kind"], columns["kind"][some["row_id"]])
    assert set(some["row_id"]) <= set(rows.tolist())
    assert dataset.limit(70).count() == 70
    assert dataset.sum("row_id") == rows.sum()


@pytest.mark.ray
def test_the_example_of_the_documentation_runs(files, ray_cluster):
    import ray

    paths, columns = files
    text = SpectraDatasource.__doc__.partition("for example:\n\n")[2].partition("\n\n    Args:")[0]
    names = {"ray": ray, "np": np, "paths": paths, "SpectraDatasource": SpectraDatasource, "spectrum_snr": spectrum_snr}
    assert len(text.splitlines()) == 5
    exec(textwrap.dedent(text), names)
    expected = np.histogram(spectrum_snr(columns["flux"], columns["error"]), np.linspace(0, 30, 61))[0]
    assert expected.sum() == sum(ROWS)
    assert np.array_equal(names["histogram"], expected)


@pytest.mark.parametrize(
    "rows",
    [
        range(1),
        range(650, 1001),
        range(700, 701),
        range(0, 1001, 7),
        range(1000, -1, -1),
        np.array([1000, 0, 699, 700, 5, 5, 0]),
        np.arange(1001, dtype=np.uint16)[::-3],
        np.random.default_rng(1).permutation(1001),
        [range(690, 710), np.array([3, 999, 3]), range(0, 10, 3), np.array([1000])],
    ],
    ids=lambda rows: " ".join(str(rows).split())[:60],
)
def test_rows_come_in_the_order_asked_for(files, rows):
    paths, columns = files
    wanted = np.concatenate(rows) if isinstance(rows, list) else np.asarray(rows)
    source = SpectraDatasource(paths, rows=rows)
    for tasks in (1, 100):
        tables = rows_here(source, tasks)
        assert_rows(pa.concat_tables(tables), columns, wanted.astype(np.int64))
    assert len(tables) == (4 if isinstance(rows, list) else len(source.get_read_tasks(100)))


@pytest.mark.parametrize("rows", [None, range(5, 905), np.array([900, 2, 700])], ids=str)
@pytest.mark.parametrize(
    ("columns", "pixels"),
    [
        (["flux"], None),
        (["log_g", "row_id"], None),
        (["kind", "error", "count"], range(3, 11, 2)),
        (["row_id", "error"], range(15, 16)),
        (None, range(1)),
    ],
)
def test_columns_and_pixels_are_those_asked_for(files, rows, columns, pixels):
    paths, all_columns = files
    wanted = np.arange(sum(ROWS)) if rows is None else np.asarray(rows)
    table = pa.concat_tables(rows_here(SpectraDatasource(paths, columns=columns, pixels=pixels, rows=rows)))
    which = slice(None) if pixels is None else list(pixels)
    assert_rows(table, all_columns, wanted, columns or COLUMNS, which)


def test_the_estimated_size_is_near_the_true_one(files):
    for options in (
        {},
        {"columns": ["row_id", "count"]},
        {"columns": ["flux"], "pixels": range(4)},
        {"rows": range(9)},
    ):
        source = SpectraDatasource(files[0], **options)
        true = sum(table.get_total_buffer_size() for table in rows_here(source))
        assert true / 2 <= source.estimate_inmemory_data_size() <= 2 * true


def test_blocks_are_bounded_and_a_task_stops_at_its_row_limit(files):
    source = SpectraDatasource(files[0])
    for units in (None, np.random.default_rng(0).permutation(1001)):
        (task,) = SpectraDatasource(files[0], rows=units).get_read_tasks(1)
        assert max(map(len, task())) <= ROW_GROUP_ROWS
    for limit in (1, 100, 600):
        for task in source.get_read_tasks(3, per_task_row_limit=limit):
            assert sum(map(len, task())) == min(limit, task.metadata.num_rows)


def test_a_long_range_is_many_tasks_and_each_is_bounded_in_memory(tmp_path, monkeypatch):
    small_files.write_file(tmp_path / "a.h5", 3000, 2, chunks=(3000, 2))
    monkeypatch.setattr("scaling.data.shards.datasource.UNIT_ROWS", 256)
    for rows in (None, range(1, 2999), np.arange(2999)):
        source = SpectraDatasource([tmp_path / "a.h5"], rows=rows)
        assert (source.num_tasks(1), source.num_tasks(5), source.num_tasks(1000)) == (1, 5, 12)
        sizes = [task.metadata.num_rows for task in source.get_read_tasks(1000)]
        assert max(sizes) <= 256
        assert sum(sizes) == (3000 if rows is None else len(rows))
        monkeypatch.setattr("scaling.data.shards.datasource.TASK_BYTES", 512 * source.row_bytes)
        assert source.num_tasks(1) == 6
        assert len(source.get_read_tasks(1)) == 6
        monkeypatch.setattr("scaling.data.shards.datasource.TASK_BYTES", 2**29)


@pytest.mark.parametrize("rows", [None, range(100, 1000)])
def test_each_compressed_chunk_is_read_once_however_many_tasks(tmp_path, monkeypatch, rows):
    """What the processes ask the kernel for is hardly more than the file has."""
    path = tmp_path / "a.h5"
    small_files.write_file(path, 1000, 512, chunks=(100, 512), compression="gzip", compression_opts=1)
    monkeypatch.setattr("scaling.data.shards.datasource.UNIT_ROWS", 128)
    source = SpectraDatasource([path], columns=["flux", "error"], rows=rows)
    tasks = source.get_read_tasks(1000)
    assert len(tasks) == 5
    before = _bytes_asked_for()
    assert sum(len(block) for task in tasks for block in task()) == (1000 if rows is None else 900)
    share = 1.0 if rows is None else 0.9
    assert _bytes_asked_for() - before < 1.15 * share * path.stat().st_size


def _bytes_asked_for():
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"columns": ["flux", "fluxx"]}, r"0\.h5: no column 'fluxx'; there are row_id, flux"),
        ({"columns": []}, r"columns \[\]: name at least one"),
        ({"columns": ["flux", "flux"]}, "each once"),
        ({"pixels": range(0)}, r"pixels range\(0, 0\): give a range within 0 to 16"),
        ({"pixels": range(17)}, "give a range within 0 to 16"),
        ({"pixels": range(-1, 3)}, "give a range within 0 to 16"),
        ({"pixels": range(9, 3, -1)}, "give a range within 0 to 16"),
        ({"rows": range(0)}, "that are not empty"),
        ({"rows": []}, "give at least one"),
        ({"rows": range(1002)}, r"rows range\(0, 1002\): give rows within 0 to 1001"),
        ({"rows": range(-1, 5)}, "give rows within 0 to 1001"),
        ({"rows": np.array([0, 1001, 1])}, r"rows \[ 0 1001 1\]: give rows within 0 to 1001"),
        ({"rows": [range(5), np.array([3, -2, 1])]}, "give rows within 0 to 1001"),
        ({"rows": [range(5), np.array([], dtype=int)]}, "that are not empty"),
        ({"rows": np.array([0.5])}, "arrays of whole numbers"),
        ({"rows": np.array([[1]])}, "arrays of whole numbers"),
        ({"rows": np.arange(100_000)}, "give rows within 0 to 1001"),
    ],
    ids=str,
)
def test_what_is_not_there_is_one_line_before_anything_is_read(files, options, said):
    with pytest.raises(UserError, match=said) as raised:
        SpectraDatasource(files[0], **options)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_files_that_cannot_be_used_are_one_line(files, tmp_path):
    small_files.write_file(tmp_path / "other.h5", 3, PIXELS + 1)
    (tmp_path / "text.h5").write_text("text")
    for paths, said in (
        ([], "no source file"),
        ([files[0][0], tmp_path / "missing.h5"], r"missing\.h5: no such file"),
        ([tmp_path / "text.h5"], r"text\.h5 is not an HDF5 file"),
        ([files[0][0], tmp_path / "other.h5"], "different pixel grids"),
        ([tmp_path], "is a folder"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            SpectraDatasource(paths)
        assert "\n" not in str(raised.value)
