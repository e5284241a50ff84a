"""Simulated spectra written as files in the layout of real ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from scaling.console import Count, uncounted
from scaling.data.hdf5.guard import shown
from scaling.data.hdf5.reader import open_spectra
from scaling.data.hdf5.writer import file_bytes, write_spectra
from scaling.data.shards.pipeline import ray_data, task_errors
from scaling.data.simulated.rows import SPLITS, Simulation, simulate_rows, wavelength_grid
from scaling.errors import UserError
from scaling.files import require_space

WRITE_ROWS = 256
"""Rows per write: 16 MiB of flux and error at 4096 pixels, which the allocator reuses for the next block."""


class SimulatedFile(NamedTuple):
    """A file of a simulation: rows ``start`` to ``stop`` of a split."""

    path: Path
    split: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """The number of spectra."""
        return self.stop - self.start


def simulation_files(dest: Path, simulation: Simulation) -> list[SimulatedFile]:
    """All files of a simulation below ``dest``, existing or not, by split and in row order."""
    edges = [simulation.train * part // simulation.train_files for part in range(simulation.train_files + 1)]
    places = [("train", f"train_{part}", *ends) for part, ends in enumerate(pairwise(edges))]
    places += [(split, split, 0, simulation.rows(split)) for split in SPLITS[1:]]
    return [SimulatedFile(dest / folder / "dataset.h5", split, start, stop) for split, folder, start, stop in places]


def pending_files(dest: Path, simulation: Simulation) -> list[SimulatedFile]:
    """The files of a simulation that do not exist yet.

    Raises:
        UserError: A file of that name exists with other content.
    """
    pending = []
    for file in simulation_files(dest, simulation):
        path, tag = file.path, _file_tag(simulation, file)
        if not path.exists():
            pending.append(file)
            continue
        with open_spectra(path) as spectra:
            found = spectra.tag
        if found != tag:
            foreign = "is there and was not written by `scaling simulate`"
            what = f"holds another simulation ({shown(found)}; asked for {tag})" if found else foreign
            raise UserError(f"{path} {what}: name another folder or remove it")
    return pending


def write_simulation(
    dest: Path, simulation: Simulation, progress: Count = uncounted, parallel: bool = False
) -> dict[str, list[Path]]:
    """Write a simulation in the layout of real files: ``DEST/{train_0,…,val,test}/dataset.h5``.

    An existing file with the same spectra is kept. Memory is bounded by a block of rows and one file's parameter
    table. With ``parallel`` each file is written in a task of the Ray cluster that the caller is connected to, whose
    nodes must all see ``dest``; the spectra are the same. ``progress`` is called with (spectra done, total spectra)
    after each block; with ``parallel`` after each file.

    Returns:
        The files of each split, in row order.

    Raises:
        UserError: A file of that name exists with other content, or the disk is full.
    """
    dest = dest.absolute()  # tasks run in other working directories
    files, pending = simulation_files(dest, simulation), pending_files(dest, simulation)
    require_space(dest, sum(file_bytes(file.rows, simulation.pixels) for file in pending))
    for file in pending:
        file.path.parent.mkdir(parents=True, exist_ok=True)
    total = sum(file.rows for file in files)
    done = total - sum(file.rows for file in pending)
    if parallel and len(pending) > 1:
        counts = _write_on_ray(dest, simulation, pending)
    else:
        counts = (rows for file in pending for rows in _write_file(simulation, file))
    for rows in counts:
        done += rows
        progress(done, total)
    return {split: [file.path for file in files if file.split == split] for split in SPLITS}


def _write_on_ray(dest: Path, simulation: Simulation, pending: list[SimulatedFile]) -> Iterator[int]:
    """Write each file in a Ray Data task, largest first; yields the rows of each completed file."""
    import ray

    files = sorted(pending, key=lambda file: -file.rows)
    with ray_data(), task_errors(dest):
        tasks = ray.data.from_items(list(range(len(files))), override_num_blocks=len(files))
        written = tasks.map(lambda row: {"rows": sum(_write_file(simulation, files[row["item"]]))})
        for row in written.iter_rows():
            yield int(row["rows"])


def _write_file(simulation: Simulation, file: SimulatedFile) -> Iterator[int]:
    """Write a file block by block; yields the rows of each block."""
    grid, tag = wavelength_grid(simulation.pixels), _file_tag(simulation, file)
    with write_spectra(file.path, *grid, num_rows=file.rows, tag=tag) as append:
        for first in range(file.start, file.stop, WRITE_ROWS):
            rows = simulate_rows(simulation, file.split, first, min(first + WRITE_ROWS, file.stop))
            append(*rows)
            yield len(rows.params)


def _file_tag(simulation: Simulation, file: SimulatedFile) -> str:
    """Everything that determines one file's spectra, as JSON."""
    fields = {"emulator": 1, "split": file.split, "rows": [file.start, file.stop], "seed": simulation.seed}
    fields |= {"pixels": simulation.pixels, "mag_range": [float(mag) for mag in simulation.mag_range]}
    return json.dumps(fields, sort_keys=True)
