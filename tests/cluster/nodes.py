"""Nodes of a Ray cluster on this machine, started as a user starts them, and what is asked of the cluster."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time

from cluster.environment import ROOT

TOKEN = secrets.token_hex(32)
BIN = os.path.dirname(sys.executable)


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Node:
    """A head, or a worker of one, with its daemons."""

    def __init__(self, folder, *options):
        self.folder = folder
        settings = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_TMPDIR": folder}
        settings["PATH"] = f"{BIN}:{os.environ['PATH']}"  # as in an activated environment
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [os.path.join(BIN, "ray"), "start", "--block", *options]
        self.process = subprocess.Popen(command, env=settings, start_new_session=True, **quiet)

    def kill(self):
        """All its processes at once, as if the machine were gone."""
        listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
        family = {self.process.pid}
        while new := {child for child, parent in pairs if parent in family} - family:
            family |= new
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(60)


@contextlib.contextmanager
def a_head(cpus=2):
    """A head that asks for a token: the node, the URL of its job API, and the address that workers join."""
    port, dashboard, agent, listen = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # names of sockets are short
        options = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-grpc-port={agent}"]
        options += [f"--dashboard-agent-listen-port={listen}", f"--num-cpus={cpus}", f"--temp-dir={folder}/ray"]
        node, url = Node(folder, "--head", *options), f"http://127.0.0.1:{dashboard}"
        try:
            deadline = time.monotonic() + 60
            while ask(url, "status").returncode != 0:
                assert time.monotonic() < deadline
                assert node.process.poll() is None
                time.sleep(0.5)
            yield node, url, f"127.0.0.1:{port}"
        finally:
            node.kill()


def ask(address, command, *arguments, token=TOKEN):
    """`python -m cluster COMMAND`, as a user of that token runs it."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    settings |= {"RAY_AUTH_TOKEN": token} if token else {"HOME": "/nonexistent"}
    words = [sys.executable, "-m", "cluster", command, "--address", address, *map(str, arguments)]
    return subprocess.run(words, env=settings, capture_output=True, text=True, timeout=200, cwd=ROOT)
