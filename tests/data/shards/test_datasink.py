"""`ShardDatasink`: a Ray dataset, however it was made, as a shard set."""

import itertools
import os
import signal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from ray.data.datasource import WriteResult

from scaling.data import ShardDatasink
from scaling.data.shards.manifest import MANIFEST, Manifest
from scaling.data.shards.pipeline import task_errors
from scaling.data.shards.verify import verify
from scaling.errors import UserError
from tests.data.shards.converting import contents, read_split

PIXELS, ROWS_PER_SHARD = 6, 600
SPLITS = {"train": 1800, "val": 600, "test": 500}
TOTAL = sum(SPLITS.values())
TENSOR = pa.fixed_shape_tensor(pa.float32(), [PIXELS])
SCHEMA = pa.schema(
    [("row_id", pa.int64()), ("flux", TENSOR), ("error", TENSOR), ("log_g", pa.float64()), ("kind", pa.string())]
)


def made(row_ids):
    """Spectra of some rows, as a NumPy batch."""
    numbers = np.asarray(row_ids, dtype=np.int64)
    flux = np.random.default_rng(7).normal(9, 1, (TOTAL, PIXELS)).astype(np.float32)[numbers]
    kind = np.array([f"kind {row % 3}" for row in numbers], dtype=object)
    return {"row_id": numbers, "flux": flux, "error": flux / 8, "log_g": numbers / 7, "kind": kind}


def arrow(row_ids, kind=TENSOR):
    """The same as a block, flux and error as some kind of tensors."""
    batch = made(row_ids)
    for name in ("flux", "error"):
        lists = pa.array(list(batch[name]), pa.list_(pa.float32(), PIXELS))
        batch[name] = pa.ExtensionArray.from_storage(TENSOR, lists) if kind == TENSOR else lists.cast(kind)
    return pa.table(batch)


def sink(dest, kind=ShardDatasink, **options):
    settings = {"splits": SPLITS, "wave": np.arange(1.0, PIXELS + 1), "schema": SCHEMA}
    return kind(dest, **settings, rows_per_shard=ROWS_PER_SHARD, **options)


def written_here(dest, tasks):
    """Write in this process; a list of blocks for each task."""
    target = sink(dest)
    target.on_write_complete(WriteResult(0, 0, [target.write(blocks, None) for blocks in tasks]))


def cut(rows, size):
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def shard_rows():
    """The rows of each shard."""
    return [rows for split in cut_splits() for rows in cut(split, ROWS_PER_SHARD)]


def cut_splits():
    edges = np.cumsum([0, *SPLITS.values()])
    return [list(range(low, high)) for low, high in itertools.pairwise(edges)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What a set is whose blocks are whole shards of the schema's own types."""
    dest = tmp_path_factory.mktemp("plain") / "shards"
    written_here(dest, [[arrow(rows)] for rows in shard_rows()])
    return contents(dest)


def assert_holds_everything(dest):
    assert verify(dest) == []
    manifest = Manifest.load(dest)
    assert [len(manifest.shards(split)) for split in SPLITS] == [3, 1, 1]
    for split, rows in zip(SPLITS, cut_splits(), strict=True):
        expected = made(rows)
        flux, error, others = read_split(dest, split)
        assert np.array_equal(flux, expected["flux"])
        assert np.array_equal(error, expected["error"])
        assert others["row_id"].tolist() == list(range(len(rows)))
        assert others["log_g"].tolist() == expected["log_g"].tolist()
        assert others["kind"].tolist() == list(expected["kind"])
    assert manifest.labels["log_g"].max == (SPLITS["train"] - 1) / 7
    assert manifest.sources == {split: [] for split in SPLITS}


def rechunked(make, size):
    """A function of a batch that gives it in blocks of some rows."""

    def rows(batch):
        numbers = batch["id"]
        for at in range(0, len(numbers), size):
            yield make(numbers[at : at + size])

    return rows


@pytest.mark.ray
@pytest.mark.parametrize("size", [1, 100, 700])
def test_a_dataset_of_ray_is_written_whatever_the_size_of_its_blocks(size, plain, tmp_path, ray_cluster):
    """Two write tasks, the second of which begins with a split."""
    import ray

    dest = tmp_path / "shards"
    numbers = [ray.data.range(1800, override_num_blocks=1), ray.data.range(1100, override_num_blocks=1)]
    second = numbers[1].map_batches(lambda batch: {"id": batch["id"] + 1800}, batch_size=None)
    dataset = numbers[0].union(second).map_batches(rechunked(made, size), batch_size=None)
    dataset.write_datasink(sink(dest))
    assert_holds_everything(dest)
    assert contents(dest) == plain


@pytest.mark.ray
def test_items_and_data_frames_are_written(plain, tmp_path, ray_cluster):
    import ray

    batch = made(range(TOTAL))
    items = [{name: values[row] for name, values in batch.items()} for row in range(TOTAL)]
    ray.data.from_items(items, override_num_blocks=1).write_datasink(sink(tmp_path / "items"))
    assert contents(tmp_path / "items") == plain
    frame = pd.DataFrame({name: list(values) for name, values in batch.items()})
    ray.data.from_pandas(frame).write_datasink(sink(tmp_path / "frame"))
    assert contents(tmp_path / "frame") == plain


@pytest.mark.parametrize(
    "change",
    [
        lambda table: arrow(range(TOTAL), pa.list_(pa.float64())),
        lambda table: arrow(range(TOTAL), pa.list_(pa.float32(), PIXELS)),
        lambda table: arrow(range(TOTAL), pa.large_list(pa.float32())),
        lambda table: table.set_column(0, "row_id", table["row_id"].cast(pa.uint16())),
        lambda table: table.set_column(4, "kind", table["kind"].cast(pa.large_string())),
        lambda table: table.set_column(4, "kind", table["kind"].dictionary_encode()),
        lambda table: table.select(["kind", "error", "log_g", "flux", "row_id"]).append_column("more", table["log_g"]),
        lambda table: pa.concat_tables([table.slice(0, 0), table.slice(0, 5), table.slice(5)]),
        lambda table: table.to_pandas(),
    ],
)
def test_other_types_of_the_same_values_are_converted(change, plain, tmp_path):
    written_here(tmp_path / "shards", [[change(arrow(range(TOTAL)))]])
    assert contents(tmp_path / "shards") == plain


def test_tensors_of_rays_own_are_converted(plain, tmp_path):
    from ray.data.extensions import ArrowTensorArray, ArrowTensorType, ArrowTensorTypeV2

    batch = made(range(TOTAL))
    table = pa.table({name: values for name, values in batch.items() if name not in ("flux", "error")})
    for dtype in (np.float32, np.float64):
        tensors = table
        for name in ("flux", "error"):
            column = ArrowTensorArray.from_numpy(batch[name].astype(dtype))
            assert isinstance(column.type, ArrowTensorType | ArrowTensorTypeV2 | pa.FixedShapeTensorType)
            tensors = tensors.append_column(name, column)
        written_here(tmp_path / dtype.__name__, [[tensors]])
        assert contents(tmp_path / dtype.__name__) == plain
    for kind in (ArrowTensorType, ArrowTensorTypeV2):
        tensors = table
        for name in ("flux", "error"):
            lists = pa.array(list(batch[name]), kind((PIXELS,), pa.float32()).storage_type)
            tensors = tensors.append_column(name, pa.ExtensionArray.from_storage(kind((PIXELS,), pa.float32()), lists))
        written_here(tmp_path / kind.__name__, [[tensors]])
        assert contents(tmp_path / kind.__name__) == plain


def replaced(name, values):
    table = arrow(range(TOTAL))
    at = table.column_names.index(name)
    return table.set_column(at, name, values(table[name]))


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([arrow(range(300))], r"train/part-00000\.parquet: a write task ends after 300 of its 600 rows"),
        ([arrow(range(300, 900))], r"part-00000\.parquet: a write task has row_id 300 to 599 where 0 follows"),
        ([arrow(range(300, 600)), arrow(range(300))], "where 0 follows: sort the dataset"),
        ([arrow(range(0, 600, 2)), arrow(range(1, 600, 2))], "sort the dataset by row_id"),
        ([arrow([*range(599), 598])], "where 512 follows"),
        ([arrow(range(600)), arrow(range(1200, 1800))], r"train/part-00001\.parquet: no task wrote this shard"),
        ([arrow(range(TOTAL)), arrow(range(600))], r"train/part-00000\.parquet: two tasks wrote this shard"),
        ([replaced("row_id", lambda ids: pa.array(np.arange(TOTAL) + 1))], "where 0 follows"),
        ([replaced("row_id", lambda ids: pa.array(np.arange(TOTAL) - 5))], "row_id -5: the splits have rows 0 to 2899"),
        ([replaced("row_id", lambda ids: pa.array(np.arange(TOTAL) + TOTAL))], "row_id 2900: the splits have rows"),
        ([replaced("row_id", lambda ids: ids.cast(pa.float64()))], "'row_id' of the dataset is double: expected int64"),
        ([replaced("row_id", lambda ids: pa.array([None, *range(1, TOTAL)]))], "a value is missing"),
        ([arrow(range(TOTAL)).drop_columns(["error"])], "the dataset has no column 'error'"),
        ([replaced("log_g", lambda column: pa.array(["x"] * TOTAL))], "'log_g' of the dataset is string"),
        ([replaced("flux", lambda column: pa.array([[1.0] * 5] * TOTAL))], r"rows of float64 of shape \(5,\)"),
        ([replaced("flux", lambda column: pa.array([[1.0] * 6, [1.0]] * (TOTAL // 2)))], "'flux' of the dataset is"),
        ([replaced("flux", lambda column: pa.array([["a"] * 6] * TOTAL))], "'flux' of the dataset is"),
        (
            [replaced("flux", lambda column: pa.array([[1.0] * 5 + [None]] * TOTAL))],
            "the dataset: flux is not finite in row 0",
        ),
        ([replaced("error", lambda column: pa.array([[0.0] * 6] * TOTAL))], "the dataset: error is 0 or negative"),
        ([replaced("flux", lambda column: pa.array(range(TOTAL)))], r"rows of int64 of shape \(\)"),
        ([], "no task wrote this shard"),
        ([arrow([])], "no task wrote this shard"),
    ],
)
def test_what_is_no_shard_set_is_one_line_and_no_manifest(blocks, said, tmp_path):
    with pytest.raises(UserError, match=said) as raised:
        written_here(tmp_path / "shards", [[block] for block in blocks] if "tasks" in said else [blocks])
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="not a shard set"):
        Manifest.load(tmp_path / "shards")


def test_a_schema_that_is_not_of_spectra_is_refused(tmp_path):
    for schema in (SCHEMA.remove(0), SCHEMA.set(1, pa.field("flux", pa.float32()))):
        with pytest.raises(UserError, match="the schema's column"):
            ShardDatasink(tmp_path, splits=SPLITS, wave=np.arange(6.0), schema=schema)
    with pytest.raises(UserError, match="the schema's column 'flux'"):
        ShardDatasink(tmp_path, splits=SPLITS, wave=np.arange(7.0), schema=SCHEMA)


@pytest.mark.ray
def test_a_mistake_on_ray_is_one_line_and_leaves_nothing_that_looks_finished(tmp_path, ray_cluster):
    import ray

    dest = tmp_path / "shards"
    dataset = ray.data.range(TOTAL, override_num_blocks=2).map_batches(lambda batch: made(batch["id"]), batch_size=None)
    with pytest.raises(UserError, match="a write task") as raised, task_errors(dest):
        dataset.write_datasink(sink(dest))
    assert "\n" not in str(raised.value)
    assert not (dest / MANIFEST).exists()
    assert list(dest.rglob("*.tmp")) == []
    for path in dest.rglob("*.parquet"):  # what is there is whole
        assert len(pd.read_parquet(path, columns=["row_id"])) == ROWS_PER_SHARD


@pytest.mark.ray
def test_a_write_task_that_is_killed_and_run_again_leaves_each_file_once(plain, tmp_path, ray_cluster):
    import ray

    marker, dest = tmp_path / "killed", tmp_path / "shards"

    class Killed(ShardDatasink):
        def _put(self, encoder, unfinished):
            summary = super()._put(encoder, unfinished)
            if encoder.planned.file == "train/part-00001.parquet" and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return summary

    dataset = ray.data.range(TOTAL, override_num_blocks=1).map_batches(lambda batch: made(batch["id"]), batch_size=None)
    dataset.write_datasink(sink(dest, Killed))
    assert marker.exists()
    assert contents(dest) == plain


@pytest.mark.ray
def test_a_finished_set_is_not_written_over(plain, tmp_path, ray_cluster):
    import ray

    dest = tmp_path / "shards"
    written_here(dest, [[arrow(range(TOTAL))]])
    dataset = ray.data.range(TOTAL, override_num_blocks=1).map_batches(lambda batch: made(batch["id"]), batch_size=None)
    with pytest.raises(UserError, match="holds a finished shard set"), task_errors(dest):
        dataset.write_datasink(sink(dest))
    assert contents(dest) == plain
