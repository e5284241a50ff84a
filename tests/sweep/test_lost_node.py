"""A sweep on several raylets: a node is killed under its trials; the rows are those of an undisturbed sweep."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from experiments.smoke import STUDY as SMOKE
from scaling.study.declaration import Placement, Search
from scaling.study.store import Store, StudyFolder
from scaling.sweep import cluster

STUDY = dataclasses.replace(
    SMOKE,
    widths=(4, 8),
    data=dataclasses.replace(SMOKE.data, num_spectra=(256, 512)),
    recipe=dataclasses.replace(SMOKE.recipe, evaluations=16),
    search=Search(trials=3, prune=False),
    placements=(Placement(),),
)


def results(rows):
    return {row["trial"]: (row["lr"], row["status"], row["val_mae_dex"], row["test_mae_dex"]) for row in rows}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.rehearsal
def test_a_killed_node_changes_no_row_and_is_one_line(tmp_path):
    found, printed = {}, {}
    for name in ("disturbed", "undisturbed"):
        with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # not below tmp_path: names of sockets are short
            os.mkdir(f"{folder}/ray")
            settings = os.environ | {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
            command = [sys.executable, "-m", "tests.sweep.test_lost_node", name, str(tmp_path)]
            done = subprocess.run(
                command, env=settings | cluster.ENVIRONMENT, capture_output=True, text=True, timeout=280
            )
        assert done.returncode == 0, done.stdout + done.stderr
        printed[name] = done.stdout
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert results(found["disturbed"]["rows"]) == results(found["undisturbed"]["rows"])
    lines = found["disturbed"]["lines"]
    assert 1 <= sum("lost" in line and "resumes from its last checkpoint" in line for line in lines) <= 2
    assert printed["disturbed"] == ""


def program(name, folder):
    """Run the study on three nodes; in the disturbed case one of them is killed under its trial."""
    from ray.cluster_utils import Cluster

    from scaling.sweep.run import run_study

    raylets = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [raylets.add_node(num_cpus=1) for _ in range(2)]
    store, lines = folder / name, []
    trials = store / STUDY.name / "trials"

    def kill_one():
        while not list(trials.glob("*/state.pt")):
            time.sleep(0.05)
        raylets.remove_node(nodes[0], allow_graceful=False)

    with cluster.ray_cluster(raylets.address):
        run = threading.Thread(
            target=run_study,
            args=(STUDY, str(store)),
            kwargs={
                "address": raylets.address,
                "cache": folder / "cache",
                "retry": False,
                "say": lines.append,
            },
        )
        run.start()
        if name == "disturbed":
            kill_one()
            raylets.add_node(num_cpus=1)
        run.join()
    rows = [dataclasses.asdict(row) for row in StudyFolder(Store(str(store)), STUDY.name).rows()]
    (folder / f"{name}.json").write_text(json.dumps({"rows": rows, "lines": lines}))
    raylets.shutdown()


if __name__ == "__main__":
    program(sys.argv[1], Path(sys.argv[2]))
