"""A study through the job API of a cluster, as a newcomer sends it there."""

import http.client
import json
import os
import subprocess
import textwrap
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from ray.exceptions import AuthenticationError

from cluster.environment import ROOT, dependencies, runtime_env
from cluster.jobs import Cluster
from scaling.errors import UserError
from scaling.sweep.cluster import JOB_CONFIG, require_lasting
from tests.cluster.nodes import BIN, TOKEN, a_head, ask


@pytest.fixture(scope="module")
def cluster_head():
    with a_head() as found:
        yield found


@pytest.fixture
def head(cluster_head):
    return cluster_head[1]


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_is_submitted_followed_listed_and_fetched(head, tmp_path, shards):
    module = ROOT / "experiments" / f"of_a_test_{os.getpid()}.py"
    module.write_text(study_text(shards))
    try:
        name = f"experiments.{module.stem}"
        done = ask(
            head, "submit", name, "--store", tmp_path / "store", "--cache", tmp_path / "cache", "--env", "MINE=7"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        job = next(word for word in done.stdout.split() if word.startswith(module.stem)).rstrip(":")
        assert "cells 1/1" in done.stdout
        assert f"job {job}: succeeded" in done.stdout
        assert f"logs --address {head} {job} --follow" in done.stdout
        row = pd.read_parquet(tmp_path / "store" / "mine" / "results.parquet").iloc[0]
        assert row["code_commit"] not in ("", "unknown")
        assert row["status"] == "done"
        assert f"{job}  " in ask(head, "status").stdout
        assert "cells 1/1" in ask(head, "logs", job).stdout
        fetched = ask(head, "fetch", job, tmp_path / "out")
        assert fetched.returncode == 0, fetched.stdout + fetched.stderr
        for path in ("results.parquet", "report/index.html", "report/fit.json"):
            assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "store" / "mine" / path).read_bytes()
        assert failed_tasks(head) == {}
        again = ask(head, "fetch", job, tmp_path / "out")
        assert (again.returncode, "is not empty" in again.stderr) == (2, True)
    finally:
        module.unlink()


def failed_tasks(head):
    """What the dashboard's page of a job counts as failed, of all jobs: how many tasks of each name."""
    question = urllib.request.Request(f"{head}/api/v0/tasks/summarize", headers={"Authorization": f"Bearer {TOKEN}"})
    found = json.load(urllib.request.urlopen(question))["data"]["result"]["result"]["node_id_to_summary"]["cluster"]
    counts = {name: each["state_counts"] for name, each in found["summary"].items()}
    assert counts["_trainable.train"]["FINISHED"] >= 1
    return {name: each["FAILED"] for name, each in counts.items() if "FAILED" in each}


def study_text(shards):
    text = f"""
        import os
        from pathlib import Path
        from scaling.study.declaration import *
        assert os.environ.get("MINE") == "7"
        STUDY = Study(
            name="mine", question="?",
            data=Data(
                source=Sources(shards=Path({str(shards)!r}), train=(Path("a.h5"),), val=Path("b.h5"), test=Path("c.h5")),
                num_spectra=(64,), rules=DataRules(noise="fixed")),
            ladder=Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0), widths=(4,),
            recipe=Recipe(budget=Budget(samples=256), batch_size=32, precision="fp32", evaluations=2),
            search=Search(trials=1), placements=(Placement(workers=2),))
    """
    return textwrap.dedent(text)


@pytest.mark.ray
@pytest.mark.slow
def test_what_goes_wrong_is_one_line(head, tmp_path):
    for arguments, words in (
        (("logs", "nosuch"), "nosuch"),
        (("fetch", "nosuch", tmp_path / "out"), "nosuch"),
        (("submit", "mine.py", "--store", tmp_path), "give a module of the working tree"),
        (
            ("submit", "experiments.smoke", "--store", tmp_path, "--env", "AWS_SECRET_ACCESS_KEY=x"),
            "looks like a secret",
        ),
        (("submit", "experiments.smoke", "--store", "s3://KEY:hush@bucket/x"), "holds a password"),
    ):
        done = ask(head, *arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    for token in ("0" * 64, ""):
        refused = ask(head, "submit", "experiments.smoke", "--store", tmp_path, token=token)
        assert refused.returncode == 2
        assert "token is missing or wrong" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    nobody = ask("http://127.0.0.1:9", "status")
    assert (nobody.returncode, len(nobody.stderr.splitlines())) == (2, 1)
    assert ask("head:6379", "status").stderr.count("give the dashboard's URL") == 1
    secret = ask("http://me:hush@head:8265", "status").stderr
    assert "holds a password" in secret
    assert "hush" not in secret


@pytest.mark.ray
@pytest.mark.slow
def test_every_port_asks_for_the_token_but_those_of_metrics_and_health(cluster_head):
    node, _, address = cluster_head
    deadline, answers = time.monotonic() + 60, {}
    while sum(kinds == {401} for kinds in answers.values()) < 3:  # the dashboard, and the two agents of a node
        assert time.monotonic() < deadline, answers
        time.sleep(1)
        answers = {port: asked(ip, port) for ip, port in listeners(node)}
    assert answers[int(address.rpartition(":")[2])] == {"no HTTP"}  # gRPC, see below
    assert {"metrics"} in answers.values()
    assert {kind for kinds in answers.values() for kind in kinds} == {401, "metrics", "no HTTP"}
    for token, code in ((TOKEN, 0), ("0" * 64, 1)):
        settings = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        command = [os.path.join(BIN, "ray"), "status", "--address", address]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60)
        assert (done.returncode != 0) == code, done.stdout + done.stderr
    assert "Invalid" in done.stdout + done.stderr


def listeners(node):
    """Address and port of all that a node's daemons listen on."""
    daemons = [psutil.Process(node.process.pid), *psutil.Process(node.process.pid).children(recursive=True)]
    found = [each.laddr for daemon in daemons for each in daemon.net_connections("tcp") if each.status == "LISTEN"]
    return {("127.0.0.1" if address.ip in ("::", "0.0.0.0") else address.ip, address.port) for address in found}


def asked(ip, port):
    """What a port answers to those who have no token."""
    kinds = set()
    for path in ("api/jobs/", "nodes", "logs", "api/job_agent/jobs/", "get_or_create_runtime_env"):
        try:
            with urllib.request.urlopen(f"http://{ip}:{port}/{path}", timeout=5) as answer:
                kinds.add("metrics" if answer.read().startswith(b"# HELP") else answer.status)
        except urllib.error.HTTPError as error:
            kinds.add(error.code)
        except (OSError, http.client.HTTPException):
            kinds.add("no HTTP")
    return kinds


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (RuntimeError("Request failed with status code 404: Job demo-20260401-140312 does not exist."), False),
        (RuntimeError("Request failed with status code 404: Job tokens-20261212-000000 does not exist."), False),
        (RuntimeError("Request failed with status code 403: Forbidden."), True),
        (RuntimeError("401, message='Invalid response status', url='http://head:8265/api/jobs/demo/logs/tail'"), True),
        (AuthenticationError("Authentication required: Unauthorized"), True),
    ],
)
def test_only_a_refused_token_is_called_one(error, refused):
    def ask():
        raise error

    with pytest.raises(UserError) as raised:
        Cluster("http://head:8265", print)._ask(ask)
    assert ("token is missing or wrong" in str(raised.value)) == refused
    assert refused or str(error) in str(raised.value)


def test_a_file_in_place_of_the_folder_to_fetch_into_is_named(tmp_path):
    cluster, file = Cluster("http://head:8265", print), tmp_path / "out"
    details = SimpleNamespace(metadata={"study": "experiments.smoke", "store": "/store"})
    cluster._client = SimpleNamespace(get_job_info=lambda job: details)
    file.touch()
    with pytest.raises(UserError, match=rf"{file}: is no folder; name a new folder"):
        cluster.fetch("job", file)


def test_a_store_that_goes_with_the_job_is_refused(monkeypatch):
    require_lasting("results")
    monkeypatch.setenv(JOB_CONFIG, '{"runtime_env": {"working_dir": "gcs://a.zip"}}')
    for kept in ("/shared/results", "s3://bucket/x"):
        require_lasting(kept)
    with pytest.raises(UserError, match=r"--store results: is in this job's working folder, which Ray deletes"):
        require_lasting("results")


def test_the_environment_of_a_job(monkeypatch):
    monkeypatch.setenv("BOSZ_1M", "/data")
    found = runtime_env(["BOSZ_1M", "A=b=c"], pip=False)
    assert found["env_vars"].items() >= {"BOSZ_1M": "/data", "A": "b=c"}.items()
    assert found["env_vars"]["SCALING_COMMIT"]
    assert "pip" not in found
    packages = runtime_env([], pip=True)["pip"]["packages"]
    assert packages[0].startswith("--constraint ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt")
    assert packages[1:] == dependencies()
    assert any(each.startswith("torch") for each in packages)
    assert not any(each.startswith("ray") for each in packages)
    secrets = ("AWS_ACCESS_KEY_ID", "MY_TOKEN", "OPENAI_APIKEY", "AZURE_STORAGE_CONNECTION_STRING", "my-token", "KEY ")
    for wrong in ("NOSUCH_VARIABLE", "SHARDS=s3://KEY:hush@bucket/x", *(f"{name}=hush" for name in secrets)):
        with pytest.raises(UserError, match=wrong.partition("=")[0]) as raised:
            runtime_env([wrong], pip=False)
        assert "hush" not in str(raised.value)
