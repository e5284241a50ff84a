"""Conversion timed alternately with that of another commit (`benchmarks.conversion --against`)."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

from scaling.data.shards.manifest import SPLITS
from scaling.data.simulated.writer import Simulation, write_simulation

PROGRAM = """
import shutil, sys, time
from pathlib import Path
from scaling.sweep.cluster import ray_cluster
try:
    from scaling.data.shards.convert import convert
except ImportError:
    from scaling.data.shards import convert

dest, warm, *files = map(Path, sys.argv[1:])
with ray_cluster():
    for paths in (warm, *[None] * 1000):
        if paths is None and not sys.stdin.readline().strip():
            break
        sources = [warm / f"{split}/dataset.h5" for split in ("train_0", "val", "test")] if paths else files
        start = time.perf_counter()
        convert(dest, **{split: [file] for split, file in zip(("train", "val", "test"), sources)}, order="source")
        print("seconds", time.perf_counter() - start, flush=True)
        shutil.rmtree(dest)
"""
"""Converts the small set, then the large one on each request. Runs with the code of any commit."""


class Converter:
    """A process that converts with the code of a folder, and its own Ray cluster."""

    def __init__(self, code, dest, warm, paths):
        command = [sys.executable, "-c", PROGRAM, str(dest), str(warm), *(str(paths[split][0]) for split in SPLITS)]
        environment = os.environ | {"PYTHONPATH": str(code)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self._process = subprocess.Popen(command, cwd=code, env=environment, **pipes)
        self._seconds()

    def _seconds(self):
        for line in self._process.stdout:
            if line.startswith("seconds"):
                return float(line.split()[1])
        raise RuntimeError("the conversion has failed")

    def convert(self):
        """Seconds for one conversion."""
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        return self._seconds()

    def close(self):
        """End the process."""
        self._process.communicate("\n")


def compare(root, rows, rounds, commit):
    """Seconds of this code and of another commit's, measured alternately."""
    paths = write_simulation(root / f"hdf5-{rows}", Simulation(train=rows, val=64, test=64, seed=rows))
    here, there = Path(__file__).parents[1], root / f"code-{commit}"
    there.mkdir(exist_ok=True)
    archive = subprocess.run(["git", "-C", str(here), "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(there)], check=True, input=archive)
    both = [
        Converter(code, root / name, root / "warm", paths)
        for code, name in ((here, "shards-new"), (there, "shards-old"))
    ]
    with open(paths["train"][0], "rb") as file:  # into the page cache
        while file.read(2**24):
            pass
    found = [[converter.convert() for converter in both] for _ in range(rounds)]
    for converter in both:
        converter.close()
    ratio = statistics.median(old / new for new, old in found)
    print(f"{rows:,} rows: this code / {commit}, seconds: {', '.join(f'{new:.1f} / {old:.1f}' for new, old in found)}")
    print(f"speed of this code ÷ {commit}: {ratio:.2f} (median of the rounds)")
    return {"rows": rows, "commit": commit, "seconds": found, "ratio": ratio}
