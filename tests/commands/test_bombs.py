"""No pickle is loaded from a store, a shard set, a node's cache, or a model: a mark would be left by one that is.

The same of HDF5 files: tests/data/hdf5/hostile.py; of checkpoints of the original: tests/inference/test_lightning.py; of
Tune's folder: tests/sweep/test_sweep.py and tests/sweep/test_tuning.py.
"""

import contextlib
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401 - registers the types by which Arrow would unpickle
import torch
import xxhash

from analysis.__main__ import main as analyse
from scaling.__main__ import main
from scaling.data.batches import DataRules, Worker
from scaling.data.batches.cache import map_split
from scaling.data.batches.cachefolder import Mark
from scaling.data.batches.whitening import fit_whitening
from scaling.data.shards.convert import convert
from scaling.data.shards.manifest import STATISTICS, Manifest, statistics_checksum
from scaling.errors import UserError
from scaling.model.modeling_specvit import SpecViTForRegression
from scaling.study.store import Store, StudyFolder
from scaling.sweep.journal import Journal, sweep_page
from scaling.training.recorder import Recorder
from tests import bombs
from tests.inference.models import RULES, trained
from tests.study.example import example_row, example_study

TRIAL = "mine/trials/w0004-d00000064-s42-t00"
KINDS = (bombs.OBJECT, "nested", "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "arrow.py_extension_type")


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


@pytest.fixture
def there(tmp_path, shards, study_file):
    """What the commands below name: a study's file, its store with one row, and a shard set, to be damaged."""
    row = example_row(study="mine", cell="w0004-d00000064-s42", trial="w0004-d00000064-s42-t00", num_spectra=64)
    StudyFolder(Store(str(tmp_path / "store")), "mine").trial(row.trial).write_row(row)
    shutil.copytree(shards, tmp_path / "shards")
    names = {name: tmp_path / name for name in ("store", "shards", "mark", "file")}
    return names | {"study": study_file((str(shards), str(tmp_path / "shards")))}


@pytest.mark.parametrize(
    "load",
    [
        lambda mark: pickle.loads(bombs.pickled(mark)),
        lambda mark: torch.load(io.BytesIO(bombs.torch_file(mark)), weights_only=False),
        lambda mark: np.load(io.BytesIO(bombs.npz(mark)), allow_pickle=True)["weight"],
        lambda mark: pq.read_table(io.BytesIO(bombs.parquet(mark))).to_pandas(),
        lambda mark: pq.read_table(io.BytesIO(bombs.parquet(mark, kind="nested")))["bomb"].to_pylist(),
    ],
)
def test_what_is_planted_would_leave_the_mark(load, mark):
    load(mark)
    assert mark.exists()


STATUS, REPORT = "status {study} --store {store}", "report {study} --store {store}"
FILES = {
    "a row": (f"store/{TRIAL}/row.json", bombs.pickled, STATUS, "row.json: cannot be read as JSON"),
    "a branch's row": (f"store/{TRIAL}/row-0.5.json", bombs.pickled, REPORT, "row-0.5.json: cannot be read as JSON"),
    "a curve": ("store/mine/trials/w0004-d00000128-s42-t00/progress.csv", bombs.pickled, STATUS, ""),
    "the declaration": ("store/mine/study.json", bombs.pickled, STATUS, ""),
    "the limit": ("store/mine/limit.json", bombs.pickled, STATUS, ""),
    "an anchor": ("store/mine/anchors/x.json", bombs.pickled, REPORT, "x.json: "),
    "speeds": ("store/speeds.json", bombs.pickled, "plan {study} --store {store}", "speeds.json: "),
    "calibration": ("file", bombs.pickled, "plan {study} --calibration {file}", "file: "),
    "the table": ("file", bombs.parquet, "analysis fit {file}", "file: cannot be read as a table (column bomb is"),
    "a table by name": ("file", bombs.pickled, "analysis fit {file}", "file: cannot be read as a table"),
    "the manifest": ("shards/manifest.json", bombs.pickled, "inspect {shards}", "manifest.json: cannot be read"),
    "a shard": ("shards/test/part-00000.parquet", bombs.pickled, "limit {shards}", "this shard cannot be read"),
    "a model": ("file.safetensors", bombs.pickled, "inspect {file}.safetensors", "not a model file"),
    "a model of torch": ("file.safetensors", bombs.torch_file, "inspect {file}.safetensors", "not a model file"),
    "a folder of torch": ("file/pytorch_model.bin", bombs.torch_file, "evaluate {file} {shards}", "no such file"),
    "a checkpoint": ("file.ckpt", bombs.torch_file, "evaluate {file}.ckpt {shards}", "not loaded, because it holds"),
    "a pickle": ("file.ckpt", bombs.pickled, "evaluate {file}.ckpt {shards}", "not loaded, because it holds"),
}
"""Where, what, the command that reads it, and what that says; nothing where the file is not used."""


@pytest.mark.parametrize(("path", "make", "command", "words"), FILES.values(), ids=FILES)
def test_a_command_loads_none(there, tmp_path, mark, capsys, path, make, command, words):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_bytes(make(mark))
    arguments = command.format(**there).split()
    run = analyse if arguments[0] == "analysis" else main
    status = run(arguments[1:] if run is analyse else arguments)
    error = capsys.readouterr().err
    assert not mark.exists()
    assert (status, error.count("\n")) == ((2, 1) if words else (0, 0)), error
    assert words in error


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_a_shard_loads_none(there, mark, capsys, kind):
    """Wherever the columns of a shard are read: by `inspect`, by the node's cache, and by a conversion that goes on."""
    path = there["shards"] / "test" / "part-00000.parquet"
    path.write_bytes(bombs.parquet(mark, pq.read_table(path), kind))
    assert main(["inspect", str(there["shards"])]) == 1
    assert "part-00000.parquet: " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"part-00000\.parquet: ") as raised:
        map_split(there["shards"], "test", 64, there["store"] / "cache")
    assert "\n" not in str(raised.value)
    made_from = Manifest.load(there["shards"]).sources.items()
    hdf5 = {split: [Path(source.path) for source in sources] for split, sources in made_from}
    (there["shards"] / "manifest.json").unlink()
    convert(there["shards"], **hdf5, rows_per_shard=128, on_ray=False)
    map_split(there["shards"], "test", 64, there["store"] / "cache")
    assert not mark.exists()


def test_statistics_signed_again_load_none(there, mark):
    manifest = Manifest.load(there["shards"])
    content = bombs.parquet(mark, pq.read_table(there["shards"] / STATISTICS))
    signed = manifest.model_copy(update={"statistics": statistics_checksum(content)})
    (there["shards"] / STATISTICS).write_bytes(content)
    (there["shards"] / "manifest.json").write_bytes(signed.content())
    with pytest.raises(UserError, match=r"statistics\.parquet: cannot be read \(column bomb is"):
        Manifest.load(there["shards"]).pixel_statistics()
    assert not mark.exists()


def test_a_cache_signed_again_loads_none(shards, tmp_path, mark):
    cache = tmp_path / "cache"
    before = np.array(map_split(shards, "test", 64, cache).flux)
    part = next(cache.glob("test-*/params/00000.parquet"))
    found, place = bombs.parquet(mark, pq.read_table(part)), part.parents[1] / "marks" / "00000.json"
    part.write_bytes(found)
    signed = Mark.read(place)
    signed.digests["params"] = xxhash.xxh3_128_hexdigest(found)
    signed.write(place)
    with pytest.raises(UserError, match=r"params: cannot be read \(column bomb is"):
        map_split(shards, "test", 64, cache).params(["log_g"])
    place.write_bytes(bombs.pickled(mark))
    mapped = map_split(shards, "test", 64, cache)
    assert (mapped.flux == before).all()
    assert len(mapped.params(["log_g"])) == 64
    worker = Worker(cache_root=cache, device=torch.device("cpu"))
    first = fit_whitening(shards, DataRules(), "pca", 4, worker)
    path = next(cache.glob("train-*/whitening-*.map"))
    for content in (bombs.npz(mark), bombs.pickled(mark)):
        path.write_bytes(xxhash.xxh3_128_digest(content) + content)
        assert fit_whitening(shards, DataRules(), "pca", 4, worker).weight.equal(first.weight)
    assert not mark.exists()


def test_a_state_signed_again_is_set_aside(tmp_path, mark, caplog):
    folder = StudyFolder(Store(str(tmp_path)), "mine").trial("a-t00")
    for body in (bombs.torch_file(mark, loop={}, curve=[]), bombs.pickled(mark)):
        head = {"identity": "i", "setting": "s", "checksum": xxhash.xxh3_128_hexdigest(body)}
        folder.write_state(json.dumps(head).encode() + b"\n" + body)
        with contextlib.closing(Recorder(folder, "i", "s", lambda _: None, keeps=True)) as recorder:
            assert recorder.load() is None
        assert "state.pt: damaged" in caplog.text
        assert folder.read_state() is None
    assert not mark.exists()


def test_optunas_journal_is_set_aside(tmp_path, mark):
    study, path = example_study(), tmp_path / "optuna.journal"
    for content in (
        bombs.pickled(mark),
        b'{"op_code": 0, "snapshot": "' + bombs.pickled(mark).hex().encode() + b'"}\n',
    ):
        for name in ("optuna.journal", "optuna.journal.snapshot"):
            (tmp_path / name).write_bytes(content)
        assert sweep_page(path, study.name) == ""
        Journal(study, path, []).close()
        assert (tmp_path / "optuna.journal.damaged").read_bytes().startswith(content)
    assert not mark.exists()


def test_transformers_load_none_from_a_trials_folder(shards, cache_root, tmp_path, mark):
    _, model, _ = trained(shards, cache_root, tmp_path / "store", RULES["one label"])
    model.unlink()
    model.with_name("pytorch_model.bin").write_bytes(bombs.torch_file(mark))
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        SpecViTForRegression.from_pretrained(model.parent)
    assert not mark.exists()
