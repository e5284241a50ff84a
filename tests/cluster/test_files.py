"""The files that start a cluster, checked without one: by Ray's own validator, by the shell, and against this project."""

import json
import re
import shlex
import shutil
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.environment import ROOT
from scaling.__main__ import _parser
from scaling.commands.common import load_study
from tests.cluster.crd import JOB, SCHEMA

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
    job = yaml.safe_load(JOB.read_text())
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


def schema_faults(job):
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    return [error.message for error in validator.iter_errors(job)]


def test_a_rayjob_has_only_fields_that_kuberay_publishes():
    assert schema_faults(yaml.safe_load(JOB.read_text())) == []


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("shutdownAfterJobFinishes: true", "shutdownAfterJob: true", "'shutdownAfterJob' was unexpected"),
        ("secretName: ray-token", "secret: ray-token", "'secret' was unexpected"),
        ("mode: token", "mode: tokens", "'tokens' is not one of ['disabled', 'token']"),
        ('num-cpus: "0"', "num-cpus: 0", "0 is not of type 'string'"),
        ("maxReplicas: 8", 'maxReplicas: "8"', "'8' is not of type 'integer'"),
        ("runAsNonRoot: true", "nonRoot: true", "'nonRoot' was unexpected"),
        ("image: *image", "imageName: *image", "'imageName' was unexpected"),
        ("name: ray-worker", "args: []", "'name' is a required property"),
        ("sizeLimit: 200Gi", "size: 200Gi", "'size' was unexpected"),
        ("sizeLimit: 200Gi", "sizeLimit: 200 GB", "'200 GB' does not match"),
    ],
)
def test_a_field_that_kuberay_does_not_have_is_found(right, wrong, fault):
    content = JOB.read_text()
    assert right in content
    assert any(fault in found for found in schema_faults(yaml.safe_load(content.replace(right, wrong))))


@pytest.mark.skipif(shutil.which("yq") is None, reason="needs yq")
def test_the_same_file_gives_a_cluster_that_stays():
    (command,) = re.findall(r"^#  +(yq .+?) *\| kubectl apply", JOB.read_text(), re.MULTILINE)
    made = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    found = yaml.safe_load(made.stdout)
    job = yaml.safe_load(JOB.read_text())
    assert found == {
        "apiVersion": job["apiVersion"],
        "kind": "RayCluster",
        "metadata": job["metadata"],
        "spec": job["spec"]["rayClusterSpec"],  # what its CRD wants, to the letter (KubeRay 1.7.0)
    }


def instructions(dockerfile) -> list[tuple[str, str]]:
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.startswith("#")]
    found = [line.split(maxsplit=1) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]
    return [(name, rest) for name, rest in found]


def image_faults(dockerfile):
    """What hadolint and a careful reader would say of an image, of the rules that this project holds."""
    said = instructions(dockerfile)
    of: dict[str, list[str]] = {name: [rest for each, rest in said if each == name] for name, _ in said}
    apt, pip = ([run for run in of.get("RUN", []) if word in run] for word in ("apt-get install", "pip install"))
    rules = {
        "base": all(re.search(r":[^:]*[0-9]", base) for base in of["FROM"]),
        "ADD": "ADD" not in of,
        "apt recommends": all("--no-install-recommends" in run for run in apt),
        "apt lists": all("apt-get update" in run and "rm -rf /var/lib/apt/lists/*" in run for run in apt),
        "pip cache": all("--no-cache-dir" in run for run in pip),
        "pip constraints": all("--constraint constraints.txt" in run for run in pip),
        "sudo": not any("sudo " in run for run in of.get("RUN", [])),
        "folder": all(folder.startswith("/") for folder in of.get("WORKDIR", [])),
        "user": of.get("USER", ["0"])[-1].isdigit() and int(of.get("USER", ["0"])[-1]) > 0,
        "command": all(is_json(command) for name in ("CMD", "ENTRYPOINT") for command in of.get(name, [])),
        "health": all(is_json(command.partition("CMD ")[2]) for command in of.get("HEALTHCHECK", [""])),
        "labels": "org.opencontainers.image.licenses=" in " ".join(of.get("LABEL", [])),
    }
    return [name for name, kept in rules.items() if not kept]


def is_json(text: str) -> Any:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


def test_the_image_keeps_to_the_rules():
    file = FOLDER / "Dockerfile"
    assert image_faults(file.read_text()) == []
    copied = [word for name, rest in instructions(file.read_text()) if name == "COPY" for word in rest.split()[:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    if shutil.which("hadolint"):
        subprocess.run(["hadolint", "--no-color", file], check=True)


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("python:3.12-slim-bookworm", "python:latest", "base"),
        ("python:3.12-slim-bookworm", "python", "base"),
        ("COPY scaling", "ADD scaling", "ADD"),
        (" --no-install-recommends", "", "apt recommends"),
        ("rm -rf /var/lib/apt/lists/*", "true", "apt lists"),
        (" --no-cache-dir", "", "pip cache"),
        ("pip install", "sudo pip install", "sudo"),
        ("WORKDIR /", "WORKDIR ", "folder"),
        ("USER 1000", "USER 0", "user"),
        ("USER 1000\n", "", "user"),
        ('CMD ["ray", "start", "--head"', 'CMD ray "start", "--head"', "command"),
        ("HEALTHCHECK", "# HEALTHCHECK", "health"),
        ("LABEL", "ENV", "labels"),
    ],
)
def test_an_image_that_breaks_a_rule_is_found(right, wrong, rule):
    content = (FOLDER / "Dockerfile").read_text()
    assert right in content
    assert image_faults(content.replace(right, wrong)) == [rule]
