"""Simulated spectra, written as files in the layout of real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scaling.data.hdf5.guard import reason, shown
from scaling.data.hdf5.reader import open_spectra
from scaling.data.hdf5.writer import file_bytes, write_spectra
from scaling.data.simulated.rows import COLUMNS as COLUMNS
from scaling.data.simulated.rows import SPLITS, Simulation, simulate_rows, wavelength_grid
from scaling.errors import UserError
from scaling.files import require_space

WRITE_ROWS = 256
"""Rows written together: 16 MiB of flux and error at 4096 pixels, which the allocator reuses from block to block."""


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
    pending = []
    for file in simulation_files(dest, simulation):
        if file.path.exists():
            _require_same(file.path, _file_tag(simulation, file))
        else:
            pending.append(file)
    return pending


def write_simulation(
    dest: Path,
    simulation: Simulation,
    progress: Callable[[int, int], None] | None = None,
    parallel: bool = False,
) -> dict[str, list[Path]]:
    """Write a simulation in the layout of real files: ``DEST/{train_0,…,val,test}/dataset.h5``.

    A file that is already there and holds the same spectra is kept. Memory is bounded by a block of rows and one file's
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
    if parallel and len(pending) > 1:
        counts = _write_on_ray(simulation, pending)
    else:
        counts = (rows for file in pending for rows in _write_file(simulation, file))
    for rows in counts:
        done += rows
        if progress:
            progress(done, total)
    paths: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file in simulation_files(dest, simulation):
        paths[file.split].append(file.path)
    return paths


def _write_on_ray(simulation: Simulation, pending: list[SimulatedFile]) -> Iterator[int]:
    """Write each file in a task of Ray Data, the longest first; the rows of each as it ends."""
    import ray

    files = sorted(pending, key=lambda file: -file.rows)
    settings = ray.data.DataContext.get_current().copy()
    settings.print_on_execution_start = settings.enable_progress_bars = False
    with ray.data.DataContext.current(settings):
        items = [{"file": index} for index in range(len(files))]
        tasks = ray.data.from_items(items, override_num_blocks=len(items))
        written = tasks.map(_write_row, fn_args=(simulation, files), num_cpus=1)  # type: ignore[arg-type]
    for row in written.iter_rows():
        if row["mistake"]:
            raise UserError(row["mistake"])
        yield int(row["rows"])


def _write_row(row: dict[str, int], simulation: Simulation, files: list[SimulatedFile]) -> dict[str, int | str]:
    """One task. A mistake is returned: of one that is raised, Ray Data prints a traceback and loses the cause."""
    file = files[row["file"]]
    try:
        return {"rows": sum(_write_file(simulation, file)), "mistake": ""}
    except UserError as error:
        return {"rows": 0, "mistake": str(error)}
    except OSError as error:
        return {"rows": 0, "mistake": f"{file.path}: cannot be written ({reason(error)}): run the same command again"}


def _write_file(simulation: Simulation, file: SimulatedFile) -> Iterator[int]:
    """Write a file, block by block; the rows of each."""
    grid, tag = wavelength_grid(simulation.pixels), _file_tag(simulation, file)
    with write_spectra(file.path, *grid, num_rows=file.rows, tag=tag) as append:
        for first in range(file.start, file.stop, WRITE_ROWS):
            rows = simulate_rows(simulation, file.split, first, min(first + WRITE_ROWS, file.stop))
            append(rows.flux, rows.error, rows.params)
            yield len(rows.params)


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
        raise UserError(
            f"{path} holds another simulation ({shown(found)}; asked for {tag}): name another folder or remove it"
        )
