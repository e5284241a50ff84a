"""Clusters of several raylets on this machine, as this file run as a program starts them: each node is a node to Ray."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from scaling.errors import NodeError, UserError
from scaling.sweep import cluster, code
from scaling.sweep.code import PACKAGE, code_hash
from scaling.sweep.health import try_gpu
from scaling.sweep.nodes import Node, Nodes


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ray://head:10001", "Ray Client is not supported"),
        ("http://head:8265", "give HOST:PORT"),
        ("head", "HOST:PORT"),
    ],
)
def test_an_address_that_is_not_of_a_cluster_is_refused(address, problem, monkeypatch):
    with pytest.raises(UserError, match=problem), cluster.ray_cluster(address):
        pass
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=rf"RAY_ADDRESS.*{problem}"), cluster.ray_cluster():
        pass


def test_the_token_is_its_owners_alone(tmp_path):
    path = tmp_path / "ray" / "auth_token"
    mask = os.umask(0o022)
    try:
        cluster.private_token(path)
        token = path.read_text()
        assert (len(token), path.stat().st_mode & 0o777) == (64, 0o600)
        path.chmod(0o644)
        cluster.private_token(path)
        assert (path.read_text(), path.stat().st_mode & 0o777) == (token, 0o600)
    finally:
        os.umask(mask)


@pytest.mark.ray
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_other_users_reach_nothing_of_rays_folder(ray_cluster):
    """Ray opens it to all of them, the sockets of its daemons too."""
    import ray

    session = ray._private.worker._global_node.get_session_dir_path()
    assert os.stat(session).st_mode & 0o777 == 0o777
    assert session.startswith(os.environ["RAY_TMPDIR"])
    for user, status in ((0, 0), (65534, 2)):
        assert subprocess.run(["ls", session], capture_output=True, user=user).returncode == status


def test_what_the_job_has_set_stays(monkeypatch, tmp_path):
    from ray.runtime_env.runtime_env import _merge_runtime_env

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALING_CACHE", "/a")
    monkeypatch.setenv("SCALING_CACHE_LIMIT", "3")
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "7")
    job = {"env_vars": {"SCALING_CACHE": "/a", "TUNE_MAX_PENDING_TRIALS_PG": "7", "MINE": "1"}}
    for more, ships in (({}, True), ({"working_dir": "gcs://a.zip"}, True), ({"py_modules": ["gcs://b.zip"]}, False)):
        monkeypatch.setenv(cluster.JOB_CONFIG, json.dumps({"runtime_env": job | more}))
        wanted = cluster._runtime_env(joins=True)
        merged = _merge_runtime_env(job | more, wanted)
        assert merged is not None
        assert merged["env_vars"].items() >= {"SCALING_CACHE_LIMIT": "3", **job["env_vars"]}.items()
        assert ("py_modules" in wanted) == ships
    monkeypatch.setenv(cluster.JOB_CONFIG, json.dumps({"runtime_env": {"working_dir": "gcs://a.zip"}}))
    monkeypatch.chdir(PACKAGE.parent)
    assert "py_modules" not in cluster._runtime_env(joins=True), "the working folder holds it"
    monkeypatch.delenv(cluster.JOB_CONFIG)
    assert "py_modules" not in cluster._runtime_env(joins=False)


def test_the_code_goes_with_the_study_of_the_working_folder_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("mine/__init__", "mine/deep", "alone", "other"):
        (tmp_path / f"{name}.py").write_text("" if name == "other" else "STUDY = 1")
    for name in ("mine.deep", "alone", "other"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        __import__(name)
    assert cluster._own_code() == sorted(str(path) for path in (PACKAGE, tmp_path / "mine", tmp_path / "alone.py"))


def test_the_code_outside_a_checkout_is_named_by_its_content(monkeypatch, tmp_path):
    def name(folder, content):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "a.py").write_text(content)
        (folder / "data.npz").write_text(str(folder))
        monkeypatch.setattr(code, "PACKAGE", folder)
        monkeypatch.setattr(code, "code_hash", code_hash.__wrapped__)
        return code.code_commit()

    monkeypatch.delenv(code.COMMIT, raising=False)
    first = name(tmp_path / "one", "x = 1")
    assert first.startswith("source-")
    assert name(tmp_path / "two", "x = 1") == first
    assert name(tmp_path / "three", "x = 2") != first
    monkeypatch.setenv(code.COMMIT, "0123abc+changes")
    assert code.code_commit() == "0123abc+changes"


def nodes_of(*hosts):
    said = []
    nodes = Nodes(Path("shards"), Path("cache"), said.append, gpus_needed=False, code="")
    nodes._good = {host: Node(id=host, host=host, cpus=1.0, gpus=0.0, room=1) for host in hosts}
    return nodes, said


def test_nodes_that_are_bad_one_after_the_other_stop_the_sweep():
    nodes, said = nodes_of("a", "b", "c", "d", "e")
    for host in ("a", "b", "gone", "b"):
        nodes.set_aside(host, "its disk is full")
    nodes.trial_finished()
    nodes.set_aside("c", "its GPU is lost")
    assert not nodes.problem
    assert said == [
        f"set aside: node {host}" for host in ("a: its disk is full", "b: its disk is full", "c: its GPU is lost")
    ]
    assert nodes.pending() == "set aside: node a, b: its disk is full; node c: its GPU is lost"
    nodes.set_aside("d", "its disk is full")
    assert not nodes.problem
    nodes.set_aside("e", "its disk is full")
    assert "node a, b, d, e: its disk is full" in nodes.problem
    nodes, _ = nodes_of("a")
    nodes.set_aside("a", "no disk")
    assert "node a: no disk" in nodes.problem, "there is no other"


@pytest.mark.gpu
def test_a_gpu_that_works_has_no_problem():
    assert try_gpu() == ""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.rehearsal
def test_a_cluster_that_changes(tmp_path, shards):
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # not below tmp_path: names of sockets are short
        os.mkdir(f"{folder}/ray")
        settings = os.environ | {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
        settings |= cluster.ENVIRONMENT
        command = [sys.executable, "-m", "tests.sweep.test_cluster", str(shards), str(tmp_path)]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["first"] == [found["head"]], "GPUs that PyTorch cannot use, and a node that has just died"
    (line,) = found["said"]
    assert "cannot use the GPU" in line
    assert found["look_seconds"] < 1.0, "a node that joins is checked meanwhile"
    assert set(found["joined"]) == {found["head"], found["third"]}
    assert found["left"] == [found["head"]]
    assert "is other code" in found["other"]
    assert found["error"].startswith("the workers cannot start: ")
    assert found["error_node"] == found["second"]
    assert found["free"] == 2.0


def program(shards, folder):
    """Start a cluster, change it, and write down what is seen."""
    import ray
    from ray.cluster_utils import Cluster

    raylets = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    _, second, lost = (raylets.add_node(num_cpus=1, num_gpus=gpus) for gpus in (1, 1, 0))
    found = {"head": raylets.head_node.node_id, "second": second.node_id, "said": []}

    def nodes(code, gpus_needed=False):
        return Nodes(shards, folder / "cache", found["said"].append, gpus_needed=gpus_needed, code=code)

    def until(condition):
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.2)
        return [node.id for node in watched.look()]

    with cluster.ray_cluster(raylets.address):
        raylets.remove_node(lost, allow_graceful=False)
        watched = nodes(code_hash(), gpus_needed=True)
        found["first"] = [node.id for node in watched.wait_for_first()]
        third = raylets.add_node(num_cpus=1)
        found["third"] = third.node_id
        time.sleep(2.0)
        began = time.monotonic()
        watched.look()
        found["look_seconds"] = time.monotonic() - began
        found["joined"] = until(lambda: len(watched.look()) == 2)
        raylets.remove_node(third)
        found["left"] = until(lambda: len(watched.look()) == 1)
        try:
            nodes("another").wait_for_first()
        except UserError as error:
            found["other"] = str(error)
        found |= failing_start(shards, folder, (second.node_id, "0" * 56))
        deadline = time.monotonic() + 30
        while ray.available_resources().get("GPU") != 2.0 and time.monotonic() < deadline:
            time.sleep(0.2)
        found["free"] = ray.available_resources().get("GPU")
    raylets.shutdown()
    (folder / "found.json").write_text(json.dumps(found))


def failing_start(shards, folder, nodes):
    """A trial on a GPU that PyTorch cannot use."""
    from scaling.training.trainer import run_under_ray_train
    from tests.training.test_trainer import small_job

    try:
        job = small_job(shards, folder, folder, "trial", gpus=1.0)
        run_under_ray_train(job, str(folder / "storage"), max_failures=1, nodes=nodes)
    except NodeError as error:
        return {"error": str(error), "error_node": error.node}
    return {}


if __name__ == "__main__":
    program(Path(sys.argv[1]), Path(sys.argv[2]))
