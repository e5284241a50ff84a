"""A study on a cluster whose nodes die, submitted through the job API: its rows are those of one machine that nothing happened to."""

import subprocess
import sys
import tempfile
import time

import pandas as pd
import pytest

from experiments.smoke import STUDY
from tests.cluster.nodes import Node, a_head, ask

RESULTS = ["trial", "lr", "val_mae_dex", "val_r2", "test_mae_dex", "test_r2", "best_epoch", "steps", "status"]
ALL = len(STUDY.cells()) * STUDY.search.trials + len(STUDY.baseline_cells())


def rows(store):
    return list((store / "smoke" / "trials").glob("*/row.json"))


def wait_for(condition, seconds=150):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def submit(url, store, cache, *options):
    done = ask(url, "submit", "experiments.smoke", "--store", store, "--cache", cache, *options)
    return done, next(word for word in done.stdout.split() if word.startswith("smoke-")).rstrip(":")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.rehearsal
@pytest.mark.timeout(600)
def test_a_worker_is_lost_another_joins_the_head_is_lost_and_the_rows_are_the_same(tmp_path):
    store, cache = tmp_path / "store", tmp_path / "cache"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        with a_head(cpus=1) as (head, url, address):
            first, second = (Node(folder, f"--address={address}", "--num-cpus=1") for _ in range(2))
            _, job = submit(url, store, cache, "--detach")
            wait_for(lambda: len(rows(store)) >= 1)
            first.kill()
            third = Node(folder, f"--address={address}", "--num-cpus=1")
            there = len(rows(store))
            wait_for(lambda: len(rows(store)) >= there + 3)
            log = ask(url, "logs", job).stdout
            before = len(rows(store))
            assert before < ALL, "it ended before the head was lost"
            head.kill()
            for node in (second, third):
                node.kill()
        with a_head(cpus=2) as (_, url, _):
            done, job = submit(url, store, cache)
            assert done.returncode == 0, done.stdout + done.stderr
            log += done.stdout
            assert ask(url, "fetch", job, tmp_path / "out").returncode == 0
    assert "Traceback" not in log
    assert len(rows(store)) == ALL
    alone = tmp_path / "alone"
    command = [
        sys.executable,
        "-m",
        "scaling",
        "run",
        "experiments.smoke",
        "--store",
        str(alone),
        "--cache",
        str(cache),
    ]
    subprocess.run(command, capture_output=True, check=True, timeout=280)
    found, expected = (
        pd.read_parquet(path).sort_values("trial", ignore_index=True)[RESULTS]
        for path in (tmp_path / "out" / "results.parquet", alone / "smoke" / "results.parquet")
    )
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
