"""`scaling predict`: predictions for every spectrum of an HDF5 file, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from numpy import ndarray

from scaling.console import Count, uncounted
from scaling.data.batches import add_noise_
from scaling.data.hdf5.guard import find_array, reading
from scaling.data.hdf5.reader import BLOCK_ROWS, TABLE_ROWS, SpectraFile
from scaling.data.spectra import bad_rows
from scaling.errors import UserError
from scaling.files import PARQUET_STARTS, Location, output
from scaling.inference.trained import TrainedModel
from scaling.training.evaluate import autocast

NOISY = "dataset/arrays/noisy/value"
Array = Literal["flux", "noisy"]


def choose_array(file: SpectraFile, array: Array | None, noise_seed: int | None) -> h5py.Dataset | None:
    """Choose the model's input: the array "noisy", or None for the flux.

    By default it is "noisy" if the file has it and no noise is to be added.

    Raises:
        UserError: The file has no such array, or noise would be added to noisy spectra.
    """
    if noise_seed is not None and not 0 <= noise_seed < 2**63:
        raise UserError(f"--noise-seed {noise_seed}: must be in 0 ... 2^63 - 1")
    if array == "noisy" and noise_seed is not None:
        raise UserError(
            f"--noise-seed {noise_seed}: adds noise to the flux, not to --array noisy; leave one of them out"
        )
    if array == "flux" or noise_seed is not None:
        return None
    shape = (file.num_rows, file.num_pixels)
    with reading(file.path, NOISY):
        found = find_array(file.file, NOISY)
        if found is not None and found.shape == shape and found.dtype.kind in "fiu":
            return found
    if array == "noisy":
        raise UserError(f"{file.path}: no {NOISY} of numbers, of shape {shape}: use --array flux")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Summary of the output: rows written, rows without a prediction (unusable spectra), and the first such row."""

    rows: int
    unusable: int
    first_unusable: int | None


def predict_file(
    model: TrainedModel,
    file: SpectraFile,
    noisy: h5py.Dataset | None,
    noise_seed: int | None,
    out: Path,
    device: torch.device,
    read: Iterable[Location] = (),
    progress: Count = uncounted,
) -> Prediction:
    """Write the model's predictions as Parquet, in file order.

    Columns: `row`; `<label>_predicted` of each label in the label's own unit (for a classification instead
    `<label>_probability` of being above the boundary), NaN where the spectrum is unusable; and `<label>`, the file's own
    values, if it has that column.

    Args:
        model: The model; it is moved to the device.
        file: The open file of spectra.
        noisy: The file's noisy spectra, used unchanged; None for its flux, clipped at 0 as in training before noise is added.
        noise_seed: Seed of noise that is added to the flux from the file's errors, at the model's noise level; None adds none.
            The evaluation seed of a study (42 by default) gives the noise that `scaling evaluate` draws.
        out: The file to write; it is renamed into place once complete.
        device: The device to use.
        read: Files and folders that `out` must not be, besides the model's file and the spectra.
        progress: Called with (spectra done, total spectra).

    Raises:
        UserError: The file has other wavelengths than the model or cannot be read, a prediction is not finite, or `out` is rejected.
    """
    model.check_wave(file.wave, file.path)
    model.model.to(device)
    params = file.read_params(0, min(1, file.num_rows))
    known = [label for label in model.rules.labels if label in params]
    if odd := [label for label in known if params[label].dtype.kind not in "fiu"]:
        raise UserError(
            f"{file.path}: the column {odd[0]} holds {params[odd[0]].dtype}, not numbers; remove or correct it"
        )
    suffix = "predicted" if model.rules.boundary is None else "probability"
    names = [f"{label}_{suffix}" for label in model.rules.labels]
    facts = {
        "model": str(model.path),
        "spectra": str(file.path),
        "array": "flux" if noisy is None else "noisy",
        "noise_seed": str(noise_seed),
    }
    fields = [("row", pa.int64()), *((name, pa.float64()) for name in (*names, *known))]
    schema = pa.schema(fields, metadata=facts)
    spectra = _spectra(file, noisy, noise_seed, model.rules.noise_level)
    unusable, first = 0, None
    with (
        output(out, (model.path, file.path, *read), PARQUET_STARTS) as temporary,
        pq.ParquetWriter(temporary, schema) as writer,
    ):
        for start in range(0, file.num_rows, TABLE_ROWS):
            stop = min(start + TABLE_ROWS, file.num_rows)
            answers = np.empty((stop - start, len(names)))
            for begin in range(start, stop, BLOCK_ROWS):
                flux, bad = next(spectra)
                found = np.where(bad[:, None], np.nan, _answers(model, flux, device))
                if (lost := ~np.isfinite(found).all(axis=1) & ~bad).any():
                    row = begin + int(lost.argmax())
                    raise UserError(
                        f"{model.path}: its answer for row {row} of {file.path} is not finite; inspect the spectrum"
                    )
                answers[begin - start : begin - start + len(flux)] = found
                if bad.any():
                    first = begin + int(bad.argmax()) if first is None else first
                    unusable += int(bad.sum())
                progress(begin + len(flux), file.num_rows)
            params = file.read_params(start, stop)
            columns = [np.arange(start, stop), *answers.T, *(params[name].to_numpy(np.float64) for name in known)]
            writer.write_table(pa.table([pa.array(column) for column in columns], schema=schema))
    return Prediction(rows=file.num_rows, unusable=unusable, first_unusable=first)


def _spectra(
    file: SpectraFile, noisy: h5py.Dataset | None, noise_seed: int | None, noise_level: float
) -> Iterator[tuple[Float[ndarray, "row pixel"], ndarray]]:
    """Yield the model's input before standardisation, in chunks of rows, with a mask of unusable rows."""
    generator = None if noise_seed is None else torch.Generator().manual_seed(noise_seed)
    for start in range(0, file.num_rows, TABLE_ROWS):  # blocks restart at each written row group
        for first, flux, error in file.blocks(start, min(start + TABLE_ROWS, file.num_rows)):
            if noisy is not None:
                stop = first + len(flux)
                with reading(file.path, f"{NOISY} of rows {first} to {stop - 1}"):
                    flux = noisy[first:stop].astype(np.float32)
            faults = bad_rows(flux, error if generator else np.ones_like(error))
            if generator:
                # Chunks of a multiple of 16 numbers: PyTorch then draws the same numbers as for all rows at once.
                noise = torch.randn(flux.shape, generator=generator)
                flux = add_noise_(torch.from_numpy(flux), torch.from_numpy(error), noise, noise_level).numpy()
            elif noisy is None:
                np.maximum(flux, 0.0, out=flux)
            yield flux, np.logical_or.reduce(list(faults.values()))


def _answers(
    model: TrainedModel, flux: Float[ndarray, "row pixel"], device: torch.device
) -> Float[ndarray, "row label"]:
    """Labels in their own units, or the probability of being above the boundary."""
    used = model.standardisation
    standardise = used.flux_on(torch.device("cpu"))
    with torch.inference_mode(), autocast(device, model.precision_on(device)):
        outputs = model.model(standardise(torch.from_numpy(flux)).to(device)).float().cpu().double()
    if model.rules.boundary is not None:
        return outputs.sigmoid().numpy()
    return outputs.numpy() * used.label_scale + used.label_offset
