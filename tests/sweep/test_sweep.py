"""The whole chain on a local cluster: run, rerun, killed and continued, on either host."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
from ray import tune

from experiments.smoke import STUDY
from scaling.study.store import Store, StudyFolder
from tests import bombs

SECRETS = {
    name: f"hush-{name.lower()}-hush"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_CLIENT_SECRET", "HF_TOKEN", "WANDB_API_KEY")
}
RESULTS = [
    "trial",
    "lr",
    "val_mae_dex",
    "val_r2",
    "test_mae_dex",
    "test_r2",
    "best_epoch",
    "steps",
    "status",
    "fingerprint",
    "host",
]


IN_PROCESSES = """
import dataclasses
from experiments.smoke import STUDY as SMOKE
from scaling.study.declaration import Placement
STUDY = dataclasses.replace(SMOKE, placements=(Placement(),))
"""


def command(store, cache, study="experiments.smoke"):
    return [sys.executable, "-m", "scaling", "run", str(study), "--store", str(store), "--cache", str(cache)]


def results(store):
    table = pd.read_parquet(store / "smoke" / "results.parquet").sort_values("trial", ignore_index=True)
    return table[RESULTS]


@pytest.fixture(scope="module")
def rays_folder():
    """Where Ray keeps its own logs; the names of its sockets are short."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, rays_folder):
    """The smoke study's store after one run from beginning to end, with the seconds it took and what it printed."""
    root = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    done = subprocess.run(
        command(root / "store", root / "cache"),
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | SECRETS | {"RAY_TMPDIR": rays_folder},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "store", root / "cache", time.monotonic() - started, done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_the_chain_runs_from_spectra_to_report(undisturbed):
    store, _, _, printed = undisturbed
    every = pd.read_parquet(store / "smoke" / "results.parquet")
    table, baselines = every[every["family"] == "specvit"], every[every["family"] != "specvit"]
    assert baselines.groupby("family")["num_spectra"].apply(sorted).to_dict() == {
        family: list(STUDY.data.num_spectra) for family in ("ridge", "lightgbm")
    }
    assert set(baselines["eval_pin"]) == set(table["eval_pin"])
    assert (baselines["test_mae_dex"] < 0.8).all()
    assert len(table) == len(STUDY.cells()) * STUDY.search.trials
    assert set(table["status"]) <= {"done", "pruned"}
    done = table[table["status"] == "done"]
    assert set(done["cell"]) == {cell.key for cell in STUDY.cells()}
    assert table["trial"].is_unique
    assert table["eval_pin"].nunique() == 1
    assert set(table["host"]) == {"process", "ray_train"}
    assert (done["samples_seen"] == 8192).all()
    assert (done["test_mae_dex"] < 1.0).all()  # always answering the mean gives about 1.04 dex
    assert "cells 6/6" in printed
    assert "left" in printed
    assert "] The law: " in printed
    assert f"report: {store}/smoke/report/index.html (open it in a browser)" in printed
    assert (store / "smoke" / "report" / "index.html").stat().st_size > 10_000
    trial = StudyFolder(Store(str(store)), "smoke").trial(table["trial"].iloc[0])
    assert trial.read_state() is None  # nothing to resume once the row is there
    assert not (store / "smoke" / "ray-train").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_the_store_the_output_or_rays_logs(undisturbed, rays_folder):
    """Ray's token neither. Tune writes what it pickles in hexadecimal digits."""
    store, _, _, printed = undisturbed
    values = [value.encode() for value in (*SECRETS.values(), os.environ["RAY_AUTH_TOKEN"])]
    files = [path for place in (store, Path(rays_folder)) for path in place.rglob("*") if path.is_file()]
    expected = {"study.json", "row.json", "ray.log", "tuner.pkl", "params.json", "runtime_env_agent.log"}
    assert expected <= {path.name for path in files}
    for name, content in [("output", printed.encode()), *((path, path.read_bytes()) for path in files)]:
        for value in values:
            assert value not in content, name
            assert value.hex().encode() not in content.lower(), name


@pytest.mark.ray
@pytest.mark.slow
def test_tunes_own_results_open_from_the_store_and_agree_with_the_rows(undisturbed):
    store = undisturbed[0]
    found = tune.ResultGrid(tune.ExperimentAnalysis(str(store / "smoke" / "tune"))).get_dataframe()
    rows = pd.read_parquet(store / "smoke" / "results.parquet").set_index("trial")
    rows = rows[rows["family"] == "specvit"]
    found = found[~found["trial"].str.startswith(("ridge", "lightgbm"))]
    assert sorted(found["trial"]) == sorted(rows.index)
    for _, trial in found.iterrows():
        row = rows.loc[trial["trial"]]
        assert trial["config/lr"] == row["lr"]
        assert trial["config/num_params"] == row["num_params"]
        assert trial["status"] == row["status"]
        if row["status"] == "done":
            assert trial["val_mae_dex"] == row["val_mae_dex"]


@pytest.mark.ray
@pytest.mark.slow
def test_running_again_redoes_nothing(undisturbed):
    store, cache, _, _ = undisturbed
    rows = sorted((store / "smoke" / "trials").glob("*/row.json"))
    before = [path.stat().st_mtime_ns for path in rows]
    started = time.monotonic()
    done = subprocess.run(command(store, cache), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "all 18 trials have their rows" in done.stdout
    assert time.monotonic() - started < 30
    assert [path.stat().st_mtime_ns for path in rows] == before


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([("*/state.pt", "*/row.json")], id="once, in processes"),
        pytest.param([("*/state.pt",), ("*/row.json",)], id="twice, on both hosts", marks=pytest.mark.rehearsal),
    ],
)
def test_killed_and_continued_gives_the_undisturbed_rows(undisturbed, tmp_path, kills):
    """kill -9 of the driver once a trial trains, a trial has its row, or both at once; nothing that Tune left is loaded."""
    expected, study = results(undisturbed[0]), "experiments.smoke"
    if len(kills) == 1:  # two workers round differently from one: their cell is the other case's
        study = tmp_path / "in_processes.py"
        study.write_text(IN_PROCESSES)
    store, arguments = tmp_path / "store", command(tmp_path / "store", tmp_path / "cache", study)
    for wanted in kills:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        driver = subprocess.Popen(arguments, **quiet, start_new_session=True)
        deadline, trials = time.monotonic() + 120, store / "smoke" / "trials"
        while not all(list(trials.glob(each)) for each in wanted):
            assert time.monotonic() < deadline
            assert driver.poll() is None
            time.sleep(0.01)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    left = [path for name in ("*.pkl", "experiment_state*.json") for path in (store / "smoke" / "tune").rglob(name)]
    assert "tuner.pkl" in {path.name for path in left}
    for path in left:
        path.write_bytes(bombs.pickled(tmp_path / "mark"))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=280)
    assert not (tmp_path / "mark").exists()
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(store)
    assert found["trial"].is_unique
    if len(kills) == 1:
        assert list(found["trial"]) == list(expected["trial"])
        assert set(found["host"]) == {"process"}
        same = expected["host"] == "process"
        found, expected = found[same], expected[same]
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
