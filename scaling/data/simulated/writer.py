"""Simulated spectra, written as files in the layout of real ones."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scaling.data.hdf5.reader import open_spectra
from scaling.data.hdf5.writer import file_bytes, require_space, write_spectra
from scaling.data.shards.pipeline import map_on_ray
from scaling.data.simulated.rows import COLUMNS as COLUMNS
from scaling.data.simulated.rows import SPLITS, Simulation, simulate_rows, wavelength_grid
from scaling.errors import UserError

WRITE_ROWS = 256
"""Rows written together: 16 MiB of flux and error at 4096 pixels, which the allocator reuses from piece to piece."""


@dataclass(frozen=True, slots=True)
class SimulatedFile:
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
    """All files of a simulation below ``dest``, there or not, by split and in row order."""
    return [
        SimulatedFile(dest / folder / "dataset.h5", split, start, stop)
        for split in SPLITS
        for folder, start, stop in simulation.files(split)
    ]


def pending_files(dest: Path, simulation: Simulation) -> list[SimulatedFile]:
    """The files of a simulation that are not there yet.

    Raises:
        UserError: A file of that name is there and holds something else.
    """
    files = simulation_files(dest, simulation)
    for file in files:
        if file.path.exists():
            _require_same(file.path, _file_tag(simulation, file))
    return [file for file in files if not file.path.exists()]


def write_simulation(
    dest: Path,
    simulation: Simulation,
    progress: Callable[[int, int], None] | None = None,
    parallel: bool = False,
) -> dict[str, list[Path]]:
    """Write a simulation in the layout of real files: ``DEST/{train_0,…,val,test}/dataset.h5``.

    A file that is already there and holds the same spectra is kept. Memory is bounded by a piece of rows and one file's
    parameter table.

    Args:
        dest: Folder to write to.
        simulation: What to simulate.
        progress: Called with (spectra done, spectra in all) after each block; with ``parallel`` after each file.
        parallel: Write each file in a task of the Ray cluster that the caller is connected to, where every node sees
            ``dest``. The spectra are the same.

    Returns:
        The files of each split, in row order.

    Raises:
        UserError: A file of that name is there and holds something else, or the disk is full.
    """
    dest = dest.absolute()  # tasks run in folders of their own
    pending = pending_files(dest, simulation)
    require_space(dest, sum(file_bytes(file.rows, simulation.pixels) for file in pending))
    for file in pending:
        file.path.parent.mkdir(parents=True, exist_ok=True)
    total = sum(simulation.rows(split) for split in SPLITS)
    done = total - sum(file.rows for file in pending)

    def count_rows(rows: int) -> None:
        nonlocal done
        done += rows
        if progress:
            progress(done, total)

    def count_files(*_: int) -> None:
        if progress:
            progress(total - sum(file.rows for file in pending if not file.path.exists()), total)

    if parallel and len(pending) > 1:
        longest_first = sorted(pending, key=lambda file: -file.rows)  # for a short tail
        map_on_ray(functools.partial(_write_file, simulation), longest_first)
        count_files()
    else:
        for file in pending:
            _write_file(simulation, file, count_rows)
    paths: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file in simulation_files(dest, simulation):
        paths[file.split].append(file.path)
    return paths


def _write_file(simulation: Simulation, file: SimulatedFile, count: Callable[[int], None] | None = None) -> None:
    grid, tag = wavelength_grid(simulation.pixels), _file_tag(simulation, file)
    with write_spectra(file.path, *grid, num_rows=file.rows, tag=tag) as append:
        for first in range(file.start, file.stop, WRITE_ROWS):
            rows = simulate_rows(simulation, file.split, first, min(first + WRITE_ROWS, file.stop))
            append(rows.flux, rows.error, rows.params)
            if count:
                count(len(rows.params))


def _file_tag(simulation: Simulation, file: SimulatedFile) -> str:
    """All that determines one file's spectra, as JSON."""
    fields = {
        "emulator": 1,
        "split": file.split,
        "rows": [file.start, file.stop],
        "seed": simulation.seed,
        "pixels": simulation.pixels,
        "mag_range": [float(mag) for mag in simulation.mag_range],
    }
    return json.dumps(fields, sort_keys=True)


def _require_same(path: Path, tag: str) -> None:
    """Refuse a file that holds other spectra than those about to be written."""
    with open_spectra(path) as spectra:
        found = spectra.tag
    if found is None:
        raise UserError(f"{path} is there and was not written by `scaling simulate`: name another folder or remove it")
    if found != tag:
        raise UserError(f"{path} holds another simulation ({found}; asked for {tag}): name another folder or remove it")
