"""A study whose shards and store are on an object store against the same one on a local disk, measured alternately.

    python -m benchmarks.remote_study [--rounds 2]

The grid is that of the smoke study, two learning rates in each of six cells; the store is the S3-compatible server of the tests, on
loopback; a first, untimed round goes through a proxy that counts requests. The server shares the CPU with the trials, and there
is no network latency.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import re
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.object_store import copy
from experiments.smoke import STUDY as SMOKE
from scaling.data.shards.convert import convert
from scaling.data.simulated import write_simulation
from scaling.folder import Folder
from scaling.study.declaration import Placement, Simulation, Sources
from scaling.sweep.cluster import ray_cluster
from scaling.sweep.run import run_study
from tests import s3


def main() -> None:
    """Measure, and print requests by purpose, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    os.environ.update(s3.CREDENTIALS)
    with tempfile.TemporaryDirectory(prefix="remote-study-") as name:
        root = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(root / "user")
        (root / "s3").mkdir()
        simulation = SMOKE.data.source
        assert isinstance(simulation, Simulation)
        files = write_simulation(root / "hdf5", simulation)
        with ray_cluster():
            convert(root / "shards", **files)
        with s3.server(root / "s3") as server, s3.Proxy(server.port) as proxy:
            copy(Folder.at(root / "shards"), Folder.at(s3.location(server.port, "shards")))
            seconds: dict[str, list[tuple[float, float]]] = {"local": [], "s3": []}
            for turn in range(rounds + 1):
                port = server.port if turn else proxy.port
                for kind, shards, store in (
                    ("local", root / "shards", str(root / f"store-{turn}")),
                    ("s3", s3.location(port, "shards"), s3.location(port, f"store-{turn}")),
                ):
                    source = Sources(
                        shards=shards, train=tuple(files["train"]), val=files["val"][0], test=files["test"][0]
                    )
                    study = dataclasses.replace(
                        SMOKE,
                        data=dataclasses.replace(SMOKE.data, source=source),
                        baselines=(),
                        placements=(Placement(),),
                    )
                    proxy.requests.clear()
                    began = time.perf_counter()
                    rows = run_study(
                        study, store, address=None, cache=root / f"cache-{kind}-{turn}", retry=False, say=print
                    )
                    whole = time.perf_counter() - began
                    if turn:
                        seconds[kind].append((statistics.fmean(row.wall_seconds for row in rows), whole))
                    elif kind == "s3":
                        _print_requests(proxy.requests, len(rows))
    for what, at in (("a trial's wall_seconds", 0), ("the whole run", 1)):
        print(f"{what}: " + "; ".join(f"{kind} {', '.join(f'{s[at]:.2f}' for s in seconds[kind])}" for kind in seconds))
        ratios = [b[at] / a[at] for a, b in zip(seconds["local"], seconds["s3"], strict=True)]
        print(f"  s3 ÷ local: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; median {statistics.median(ratios):.2f}")


def _print_requests(requests: list[tuple[str, str]], trials: int) -> None:
    def kind(method: str, path: str) -> str:
        name = re.sub(r"\d{3,}|[0-9a-f]{8,}", "*", path.partition("?")[0].rpartition("/")[2])
        return f"{method} {name or 'a folder or list'}"

    counts = collections.Counter(kind(*request) for request in requests)
    print(f"{len(requests)} requests, {len(requests) / trials:.1f} a trial")
    for what, count in counts.most_common(25):
        print(f"  {count:5d} {what}")


if __name__ == "__main__":
    main()
