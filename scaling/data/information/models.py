"""Dependence of flux on labels, from the generator of simulated spectra or from an emulator fitted to any spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64
from numpy import ndarray

from scaling.data.hdf5.reader import open_spectra
from scaling.data.information.emulator import best_emulator
from scaling.data.information.fisher import Labels
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shard import column_values, leading_rows
from scaling.data.simulated.derivatives import FREE_LABELS, LOW, SPAN, flux_derivatives, simulated_flux
from scaling.data.spectra import ERROR, FLUX, Pixels, check_rows
from scaling.errors import UserError
from scaling.files import Location
from scaling.folder import Folder

AXES = ("T_eff", "log_g", "M_H", "a_M", "C_M")
"""Labels that grids of model stellar spectra span."""
FITTED = 8192
"""Leading training spectra used to fit and test an emulator."""
SHIFT = 0.3
"""Maximum RMS label shift by the emulator, in units of the smallest error; beyond, the limit is off by ≥ 5 %."""
FLUX_TOLERANCE = 1e-6
"""Tolerance for rounding to float32; other generators differ by more than 1e-3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxModel:
    """Derivatives of noise-free flux with respect to the labels, each in units of the label's range.

    Attributes:
        labels: Labels that the flux depends on.
        low: Minimum of each label.
        span: Range of each label.
        derivatives: Maps labels in their own units to derivatives of shape (row, label, pixel).
        source: Origin of the derivatives, as a sentence.
        generator: Whether they are those of this package's simulation, and so valid only for its own spectra.
        doubt: Relative error of the limit due to the model.
    """

    labels: tuple[str, ...]
    low: Float64[ndarray, " label"]
    span: Float64[ndarray, " label"]
    derivatives: Callable[[Labels], Float64[ndarray, "row label pixel"]]
    source: str
    doubt: float
    generator: bool = False

    def check(self, flux: Pixels, params: pd.DataFrame, place: Location) -> None:
        """Check that the generator reproduces the spectra.

        Raises:
            UserError: It does not.
        """
        if self.generator and not is_simulated(flux, params):
            raise UserError(
                f"{place}: some spectra are what this package simulates for their labels, and others are not: name with --free the "
                "labels that the flux depends on, for an emulator, or separate them"
            )


def flux_model(place: Location, label: str, free: Sequence[str], noise_level: float) -> FluxModel:
    """Choose the flux model for a shard set or an HDF5 file.

    Raises:
        UserError: The flux does not depend on the label, or no emulator is accurate enough.
    """
    flux, _, params = next(leading_spectra(place, "test", 64))
    if not free and is_simulated(flux, params):
        if label not in FREE_LABELS:
            raise UserError(
                f"label {label!r}: simulated spectra depend on {', '.join(FREE_LABELS)} only: name one of these"
            )
        pixels = flux.shape[1]
        return FluxModel(
            labels=FREE_LABELS,
            low=LOW,
            span=SPAN,
            derivatives=lambda labels: flux_derivatives(labels, pixels),
            source="Derivatives of the flux are those of the generator of these spectra.",
            doubt=0.0,
            generator=True,
        )
    return _emulated(place, label, free, noise_level)


def _emulated(place: Location, label: str, free: Sequence[str], noise_level: float) -> FluxModel:
    if len(set(free)) < len(free):
        raise UserError(f"--free {','.join(free)}: names a label twice: name each once")
    parts = list(leading_spectra(place, "train", FITTED))
    flux, error = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    params = pd.concat([part[2] for part in parts], ignore_index=True)
    check_rows(flux, error, place)
    names = tuple(free) or tuple(name for name in AXES if name in params and params[name].nunique() > 1)
    if missing := [name for name in (*names, label) if name not in params]:
        raise UserError(f"{place}: no label {', '.join(missing)}; there are {', '.join(map(str, params.columns))}")
    labels = params[list(names)].to_numpy(np.float64)
    low, span = labels.min(axis=0), np.ptp(labels, axis=0)
    if label not in names or not np.isfinite(labels).all() or not (span > 0).all():
        raise UserError(
            f"{place}: the flux is taken to depend on {', '.join(names) or 'no label'}: name with --free the labels that it depends "
            f"on, {label} among them, each finite and not constant"
        )
    try:
        found = best_emulator(labels, flux, noise_level * error, names.index(label), low, span)
    except UserError as error_:
        raise UserError(f"{place}: {error_}") from error_
    if not found.shift <= SHIFT:
        raise UserError(
            f"{place}: no information limit: the best polynomial in {', '.join(names)} (degree {found.emulator.degree}) misses the flux "
            f"of {found.left_out} spectra left out by what moves {label} by {found.shift:.2g} of its smallest error, and {SHIFT:g} is "
            "allowed: name all labels that the flux depends on with --free"
        )
    source = (
        f"Derivatives of the flux are those of a polynomial of degree {found.emulator.degree} in the labels, fitted to "
        f"{len(labels) - found.left_out:,} spectra; on {found.left_out:,} left out its misses of the flux move {label} by "
        f"{found.shift:.2g} of its smallest error, and the next best degree gives errors that differ by {100 * found.doubt:.2g} %."
    )
    derivatives = found.emulator.derivatives
    return FluxModel(labels=names, low=low, span=span, derivatives=derivatives, source=source, doubt=found.doubt)


def is_simulated(flux: Pixels, params: pd.DataFrame) -> bool:
    """Whether spectra equal those that this package's simulation gives for their labels."""
    if not set(FREE_LABELS) <= set(params) or (expected := simulated_flux(params, flux.shape[1])) is None:
        return False
    return bool(np.abs(expected - flux).max() < FLUX_TOLERANCE)


def leading_spectra(place: Location, split: str, rows: int) -> Iterator[tuple[Pixels, Pixels, pd.DataFrame]]:
    """Yield flux, error and parameters of the first spectra of a split, in blocks; an HDF5 file has one split."""
    if file := hdf5_file(place):
        with open_spectra(file) as spectra:
            stop = min(rows, spectra.num_rows)
            params = spectra.read_params(0, stop)
            for first, flux, error in spectra.blocks(0, stop):
                yield flux, error, params.iloc[first : first + len(flux)]
        return
    manifest = Manifest.load(place)
    for table in leading_rows(manifest, split, min(rows, manifest.num_rows(split)), columns=None):
        yield column_values(table, FLUX), column_values(table, ERROR), table.drop_columns([FLUX, ERROR]).to_pandas()


def hdf5_file(place: Location) -> Path | None:
    """The location as an HDF5 file, or None for a shard set."""
    local = Folder.at(place).local
    return local if local and local.is_file() else None
