import os
import secrets

# Ray listens on all interfaces; the tests' clusters have a token of their own and leave no file behind.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import gc
import shutil
import subprocess

import pytest
import torch
from jaxtyping import install_import_hook

from tests import s3

os.environ |= s3.CREDENTIALS  # before Ray's workers are started, which read them too

# Shapes and types in annotations are checked while the tests run.
install_import_hook(["scaling.data", "scaling.model", "scaling.training.metrics"], "beartype.beartype")


def pytest_addoption(parser):
    parser.addoption("--write-golden", action="store_true", help="replace the golden losses in tests/golden")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Trials on the CPU run with one thread each; so do tests, and give the same bits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A shard set of 300 + 64 + 96 simulated bright spectra of 1024 pixels, made without Ray."""
    from scaling.data.shards.convert import convert
    from scaling.data.simulated.writer import Simulation, write_simulation

    root = tmp_path_factory.mktemp("shards")
    simulation = Simulation(train=300, val=64, test=96, pixels=1024, seed=5, mag_range=(17.5, 19.5))
    files = write_simulation(root / "hdf5", simulation)
    convert(root / "shards", **files, rows_per_shard=128, on_ray=False)
    return root / "shards"


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory):
    """A node's cache, shared by the tests as trials share it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def free_port():
    """A TCP port on the loopback interface that was free a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """An S3-compatible server: a function that gives the URI of a folder in its bucket."""
    with s3.server(tmp_path_factory.mktemp("s3")) as server:
        yield lambda path="", bucket=s3.BUCKET: s3.location(server.port, path, bucket)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many bytes; skips where that is not permitted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(num_bytes, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={num_bytes}", *options]), "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk is not permitted here")
        return folder

    yield mount
    gc.collect()  # what is mapped keeps a disk mounted
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def ray_cluster():
    """A cluster of two CPUs on this machine, shared by the tests that need one."""
    import ray

    from scaling.sweep.cluster import ray_cluster

    with ray_cluster(None):
        yield ray.cluster_resources()
