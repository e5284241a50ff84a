"""What is in an HDF5 file of spectra, and what is wrong with it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scaling.data.hdf5 import SNR_DEFINITION, SpectraFile, open_spectra, row_problems, snr_percentiles, spectrum_snr

RUNS = 16
"""Runs of rows that a large file is sampled in: rows that were never written come in runs too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSummary:
    """One column of a parameter table: its type, range and gaps. Text has no range."""

    name: str
    dtype: str
    min: float | None
    max: float | None
    nan: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a file of spectra holds.

    Attributes:
        path: The file.
        rows: Number of spectra.
        pixels: Pixels of each.
        wave_range: First and last pixel centre, vacuum Å.
        arrays: Each array's type, shape and storage.
        chunk_rows: Rows stored together on disk, 1 where contiguous.
        columns: The parameter table.
        checked_rows: Rows whose flux and error were read, for ``snr``, ``filled_edges`` and ``problems``.
        snr: Percentile → signal to noise.
        snr_definition: What is meant by signal to noise.
        filled_edges: First or last pixels with a NaN error, which reading fills from the neighbour.
        problems: What would stop a conversion, one sentence each.
    """

    path: str
    rows: int
    pixels: int
    wave_range: tuple[float, float]
    arrays: dict[str, str]
    chunk_rows: int
    columns: list[ColumnSummary]
    checked_rows: int
    snr: dict[str, float]
    snr_definition: str
    filled_edges: int
    problems: list[str]

    def to_text(self) -> str:
        """The description as plain text."""
        low, high = self.wave_range
        lines = [
            self.path,
            f"  {self.rows} spectra of {self.pixels} pixels, {low:.2f} to {high:.2f} Å (vacuum)",
            *(f"  {name}: {text}" for name, text in self.arrays.items()),
            f"  read: {self.checked_rows} of {self.rows} spectra",
            "  SNR (" + self.snr_definition + "): " + format_percentiles(self.snr),
            f"  NaN errors in the first or last pixel: {self.filled_edges} (filled from the neighbour)",
            f"  {'column':<22}{'type':<10}{'min':>14}{'max':>14}{'NaN':>10}",
        ]
        lines += [_column_line(column) for column in self.columns]
        lines += [f"  PROBLEM: {problem}" for problem in self.problems] or ["  no problems found"]
        return "\n".join(lines)


def _column_line(column: ColumnSummary) -> str:
    low, high = ("-" if value is None else f"{value:.6g}" for value in (column.min, column.max))
    return f"  {column.name:<22}{column.dtype:<10}{low:>14}{high:>14}{column.nan:>10}"


def format_percentiles(percentiles: dict[str, float]) -> str:
    """Percentiles in one line, such as ``5 %: 3.7, 50 %: 8.2``."""
    return ", ".join(f"{name} %: {value:.3g}" for name, value in percentiles.items()) or "unknown"


def _summarise_column(name: str, column: pd.Series) -> ColumnSummary:
    numeric = pd.api.types.is_numeric_dtype(column) and column.notna().any()
    return ColumnSummary(
        name=name,
        dtype=str(column.dtype),
        min=float(column.min()) if numeric else None,
        max=float(column.max()) if numeric else None,
        nan=int(column.isna().sum()),
    )


def _sample_ranges(spectra: SpectraFile, max_rows: int) -> list[tuple[int, int]]:
    """All rows, or evenly spaced runs from the first row to the last."""
    rows = spectra.num_rows
    length = max(max_rows // RUNS, 1)
    if rows <= max_rows:
        return [(start, min(start + length, rows)) for start in range(0, rows, length)]
    return [(int(start), int(start) + length) for start in np.linspace(0, rows - length, RUNS)]


def describe(path: Path, max_rows: int = 4096) -> Description:
    """Describe a file of spectra.

    Args:
        path: The file.
        max_rows: Spectra to read at most; of a larger file, 16 evenly spaced runs, the last rows among them.

    Raises:
        UserError: It is not a file of spectra in the PFS dataset layout.
    """
    snr, problems, checked = [], [], 0
    with open_spectra(path) as spectra:
        for start, stop in _sample_ranges(spectra, max_rows):
            flux, error = spectra.read(start, stop)
            problems += row_problems(flux, error, start)
            checked += len(flux)
            usable = np.isfinite(flux).all(axis=1) & (error > 0).all(axis=1)
            snr.append(spectrum_snr(flux[usable], error[usable]))
        values = np.concatenate(snr)
        return Description(
            path=str(path),
            rows=spectra.num_rows,
            pixels=spectra.num_pixels,
            wave_range=(float(spectra.wave[0]), float(spectra.wave[-1])),
            arrays=spectra.arrays,
            chunk_rows=spectra.chunk_rows,
            columns=[_summarise_column(str(name), column) for name, column in spectra.params.items()],
            checked_rows=checked,
            snr=snr_percentiles(values) if len(values) else {},
            snr_definition=SNR_DEFINITION,
            filled_edges=spectra.filled_edges,
            problems=problems,
        )
