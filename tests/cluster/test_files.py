"""The files that start a cluster, checked without one: by Ray's own validator, by the shell, and against this project."""

import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from cluster.environment import ROOT
from scaling.__main__ import _parser
from scaling.commands.common import load_study

FOLDER = ROOT / "cluster"


def load(name):
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize(("name", "gpus"), [("hosts.yaml", None), ("aws.yaml", 1)])
def test_ray_accepts_its_launchers_files(name, gpus):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load(name))
    validate_config(config)
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [each for each in commands if "ray start" in each]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in each for each in starts)
    if gpus is not None:
        workers = config["available_node_types"]["gpu"]
        assert (workers["resources"]["GPU"], workers["min_workers"]) == (gpus, 0)
        assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_the_slurm_script_is_a_script():
    script = FOLDER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage: sbatch cluster/slurm.sh STUDY STORE" in done.stderr


def test_a_rayjob_runs_this_project_as_nobody_behind_a_token():
    job = load("kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    (workers,) = cluster["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], workers)]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    python, flag, module, *words = shlex.split(job["spec"]["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "scaling")
    options = _parser().parse_args(words)
    assert load_study(options.study).name == "bosz_1m"
    assert options.store.startswith("/shared")


def test_the_image_has_what_it_copies_and_runs_as_nobody():
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    (base,) = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert ":" in base
    assert not base.endswith(":latest")
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER ray"]
    assert any(line.startswith("HEALTHCHECK ") for line in lines)
