"""Any process may be killed, and data may be damaged: what happens to the study's rows."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import torch.multiprocessing

from scaling.commands.common import load_study
from scaling.data.shards.encode import parquet_options
from scaling.data.shards.shard import CHECKSUM
from scaling.errors import UserError
from scaling.study.store import Store, StudyFolder
from scaling.sweep.sweep import Sweep
from scaling.training.loop import train
from scaling.training.task import Context
from tests.study.example import example_row


def write_study(path, shards, samples, workers=1, recipe="", search="trials=1"):
    place = repr(shards) if "://" in str(shards) else f"Path({str(shards)!r})"
    text = f"""
        from pathlib import Path
        from scaling.study.declaration import *
        STUDY = Study(
            name="mine", question="?",
            data=Data(
                source=Sources(shards={place}, train=(Path("a.h5"),), val=Path("b.h5"), test=Path("c.h5")),
                num_spectra=(256,), rules=DataRules(noise="fixed")),
            ladder=Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0), widths=(8,),
            recipe=Recipe(budget=Budget(samples={samples}), batch_size=32, precision="fp32", evaluations=20, {recipe}),
            search=Search({search}), placements=(Placement(workers={workers}),))
    """
    path.write_text(textwrap.dedent(text))
    return path


def start(study, store, cache, cwd=None):
    arguments = [sys.executable, "-m", "scaling", "run", str(study), "--store", str(store), "--cache", str(cache)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)


def descendants(pid, name):
    """Process numbers below `pid` whose command line begins with `name`."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    processes = [line.split(None, 2) for line in listing.splitlines()]
    family, found = {str(pid)}, []
    while True:
        new = {child for child, parent, *_ in processes if parent in family} - family
        if not new:
            break
        family |= new
    for child, _, *command in processes:
        if child in family and command and command[0].startswith(name):
            found.append(int(child))
    return found


def wait_for(condition, driver):
    """Wait until something is so while the study runs; returns it."""
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.02)
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_killed_between_two_budgets_resumes_and_one_that_diverges_ends_no_search(tmp_path, shards):
    recipe = 'schedule="wsd", branches=(0.25,), loss="mse", clip_norm=1e30'
    search = "trials=3, factor=1e20"
    study_file = write_study(tmp_path / "mine.py", shards, samples=32_000, recipe=recipe, search=search)
    driver = start(study_file, tmp_path / "store", tmp_path / "cache")
    folder = StudyFolder(Store(str(tmp_path / "store")), "mine")
    study = load_study(str(study_file))
    (cell,) = study.cells()
    first, second, third = (folder.trial(cell.trial(number)) for number in range(3))
    wait_for(lambda: first.read("row-0.25.json"), driver)
    assert first.read_row() is None, "the whole budget is not finished"
    for victim in descendants(driver.pid, "ray::ImplicitFunc"):
        os.kill(victim, signal.SIGKILL)
    output = driver.communicate(timeout=200)
    assert driver.returncode == 0, output
    sweep = dataclasses.replace(Sweep.prepare(study, folder, shards, tmp_path / "cache"), access={256: "auto"})
    rows = {row.budget_share: row for row in map(first.read, ("row-0.25.json", "row.json"))}
    points, outcomes = [], []
    context = Context(
        rank=0,
        world=1,
        device=torch.device("cpu"),
        report=lambda metrics, state: points.append(metrics),
        load=lambda: None,
        branch=outcomes.append,
    )
    outcomes.append(train(sweep.trial(cell, 0, rows[1.0].lr).task(), context))
    assert sorted(rows) == [outcome.share for outcome in outcomes] == [0.25, 1.0]
    for expected in outcomes:
        row = rows[expected.share]
        assert (row.status, row.steps) == ("done", expected.steps)
        assert (row.val_mae_dex, row.test_mae_dex) == (expected.val.mae, expected.test.mae)
        assert 0 < row.mfu < 1.2
    curve = pd.read_csv(io.StringIO(first.read_progress()))
    columns = ["step", "budget_share", "train_loss", "val_mae_dex"]
    pd.testing.assert_frame_equal(curve[columns], pd.DataFrame(points)[columns], check_exact=True, check_dtype=False)
    diverged = third.read_row()
    assert (diverged.status, diverged.lr) == ("diverged", rows[1.0].lr * 1e20)
    assert f"of 250 at lr {diverged.lr:g}" in diverged.error
    assert (second.read_row().status, second.read_row().lr) == ("done", rows[1.0].lr / 1e20)
    table = pq.read_table(tmp_path / "store" / "mine" / "results.parquet").to_pandas()
    assert list(zip(table["trial"].str[-3:], table["budget_share"], strict=True)) == [
        ("t00", 0.25),
        ("t00", 1.0),
        ("t01", 0.25),
        ("t01", 1.0),
        ("t02", 1.0),
    ]


def _undisturbed(rank, port, task, queue):
    """One of two workers; the first tells the trial's scores."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    context = Context(
        rank=rank, world=2, device=torch.device("cpu"), report=lambda metrics, state: None, load=lambda: None
    )
    outcome = train(task, context)
    if rank == 0:
        queue.put((outcome.val.mae, outcome.test.mae))
    torch.distributed.destroy_process_group()


@pytest.mark.ray
@pytest.mark.rehearsal
def test_a_killed_worker_and_then_a_killed_controller_change_nothing(tmp_path, shards, free_port, ray_cluster):
    # With another cluster on this host, as `ray_cluster` is, Ray Train alone would not free a killed controller's CPUs.
    study_file = write_study(tmp_path / "mine.py", shards, samples=32_000, workers=2)
    driver = start(study_file, tmp_path / "store", tmp_path / "cache")
    folder = StudyFolder(Store(str(tmp_path / "store")), "mine")
    study = load_study(str(study_file))
    (cell,) = study.cells()

    def curve():
        text = folder.trial(cell.trial(0)).read_progress()
        return [] if text is None else [int(line.split(",")[0]) for line in text.splitlines()[1:]]

    for name in ("ray::RayTrainWorker", "ray::TrainController"):
        before = len(curve())
        wait_for(lambda before=before: len(curve()) > before, driver)
        os.kill(descendants(driver.pid, name)[-1], signal.SIGKILL)
    output = driver.communicate(timeout=250)
    assert driver.returncode == 0, output
    (row,) = folder.rows()
    assert (row.status, row.steps, row.error) == ("done", 1000, "")
    assert curve() == list(range(50, 1001, 50))
    sweep = dataclasses.replace(Sweep.prepare(study, folder, shards, tmp_path / "cache"), access={256: "auto"})
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_undisturbed, (free_port, sweep.trial(cell, 0, row.lr).task(), queue), nprocs=2)
    assert (row.val_mae_dex, row.test_mae_dex) == queue.get()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "workers",
    [pytest.param(1, id="own process"), pytest.param(2, id="Ray Train", marks=pytest.mark.rehearsal)],
)
def test_an_altered_shard_fails_its_trials_with_its_name_and_can_be_retried(tmp_path, shards, workers):
    damaged = tmp_path / "damaged"
    shutil.copytree(shards, damaged)
    shard, other = damaged / "train" / "part-00000.parquet", damaged / "train" / "part-00001.parquet"
    whole = shard.read_bytes()
    # A whole file with the checksum of the listed one in its footer and other spectra: only reading it tells.
    spectra, listed = pq.read_table(other), pq.read_metadata(shard).metadata[CHECKSUM]
    with pq.ParquetWriter(shard, spectra.schema, **parquet_options(spectra.schema)) as writer:
        writer.write_table(spectra)
        writer.add_key_value_metadata({CHECKSUM: listed})
    # Paths relative to where the command is run: workers run in folders of their own.
    write_study(tmp_path / "mine.py", "damaged", samples=640, workers=workers)
    driver = start("mine.py", "store", "cache", cwd=tmp_path)
    _, errors = driver.communicate(timeout=200)
    assert driver.returncode == 1
    assert "part-00000.parquet" in errors
    assert "Traceback" not in errors
    (row,) = StudyFolder(Store(str(tmp_path / "store")), "mine").rows()
    assert row.status == "failed"
    assert "part-00000.parquet" in row.error
    assert "\n" not in row.error
    if workers > 1:
        return

    shard.write_bytes(whole)
    arguments = [
        sys.executable,
        "-m",
        "scaling",
        "run",
        "mine.py",
        "--store",
        "store",
        "--cache",
        "cache",
        "--retry-failed",
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = StudyFolder(Store(str(tmp_path / "store")), "mine").rows()
    assert row.status == "done"


def state_head(identity):
    return json.dumps({"identity": identity, "setting": "0.01", "checksum": ""}).encode() + b"\n..."


def test_what_another_declaration_left_is_refused_before_a_study_resumes(tmp_path, shards):
    study = load_study(str(write_study(tmp_path / "mine.py", shards, samples=640)))
    folder = StudyFolder(Store(str(tmp_path / "store")), "mine")
    sweep = Sweep.prepare(study, folder, shards, tmp_path / "cache")
    (cell,) = study.cells()
    trial = folder.trial(cell.trial(0))
    trial.write_state(state_head(sweep.fingerprint(cell)))
    sweep.left()
    trial.write_state(state_head("another"))
    with pytest.raises(UserError, match=r"t00/state\.pt: this unfinished trial was begun under another declaration"):
        sweep.left()
    trial.write_state(b"damaged: its worker restarts")
    sweep.left()
    branch = example_row(study="mine", cell=cell.key, trial=cell.trial(0), fingerprint="another", budget_share=0.25)
    trial.write_row(branch)
    with pytest.raises(UserError, match="was run under another declaration"):
        sweep.left()


@pytest.mark.parametrize("fault", ["another in its place", "gone", "torn"])
def test_a_shard_that_is_not_the_listed_one_ends_a_study_before_it_begins(tmp_path, shards, fault):
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    shard, other = damaged / "train" / "part-00001.parquet", damaged / "train" / "part-00000.parquet"
    if fault == "another in its place":
        shutil.copy(other, shard)
    elif fault == "gone":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size // 2)
    study = load_study(str(write_study(tmp_path / "mine.py", damaged, samples=640)))
    folder = StudyFolder(Store(str(tmp_path / "store")), "mine")
    with pytest.raises(UserError, match=r"part-00001\.parquet: this shard is missing or not the one in manifest\.json"):
        Sweep.prepare(study, folder, damaged, tmp_path / "cache")
