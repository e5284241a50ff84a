"""How well labels can be known from spectra at all: Fisher information and the Cramér–Rao limit.

Only where the generator of the spectra is known: those that this package simulates. For independent Gaussian pixel errors
the information on labels θ is F_ij = Σ_p (∂f_p/∂θ_i)(∂f_p/∂θ_j)/σ_p² (Kay 1993, Fundamentals of Statistical Signal
Processing: Estimation Theory, eq. 3.31), and no unbiased estimator of θ_i has a variance below (F⁻¹)_ii (eq. 3.20).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from numpy import ndarray

from scaling.data.batches.bins import bin_numbers, snr_edges
from scaling.data.hdf5.reader import open_spectra
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shard import column_values, row_groups
from scaling.data.simulated.emulator import emulate_flux
from scaling.data.simulated.rows import FULL_PIXELS, LABEL_HIGH, LABEL_LOW, LABELS
from scaling.data.spectra import ERROR, FLUX, SNR_DEFINITION, Pixels, check_rows, snr_percentiles, spectrum_snr
from scaling.errors import UserError
from scaling.files import Location
from scaling.folder import Folder

Labels = Float64[ndarray, "row label"]
Information = Float64[ndarray, "row label label"]

FREE_LABELS = LABELS[:3]
"""What the simulated flux depends on: T_eff, log g and [M/H]. All are unknown to whoever estimates one of them."""
LOW, SPAN = LABEL_LOW[:3], LABEL_HIGH[:3] - LABEL_LOW[:3]
ASSUMES = (
    "Independent Gaussian pixel errors of known size; T_eff, log g and [M/H] all unknown, nothing else. The prior of each "
    "label counts as a Gaussian with the variance of its uniform range, range²/12. Labels lie anywhere in their ranges: an "
    "estimator that knew that most simulated labels lie on a grid could do better once sigma is below the grid's step."
)
FLUX_TOLERANCE = 1e-6
"""What rounding to float32 may change; other generators differ by more than 1e-3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InformationLimit:
    """The smallest errors that ``rows`` of a test split's ``num_rows`` spectra allow on average, in units of the label.

    Attributes:
        label: What is estimated, with all other labels marginalised.
        noise_level: What multiplies the spectra's errors.
        guess_mae_dex: MAE of always answering the middle of the label's range.
        mae_dex: Mean over spectra of sigma·sqrt(2/π), the MAE of an optimal estimator with Gaussian errors. Sigma takes
            the labels' ranges (``prior``) into account.
        mae_sem_dex: Standard error of that mean.
        mae_without_prior_dex: The same of the plain Cramér–Rao limit. Where the noise is large it exceeds the guess.
        rmse_dex: Root mean square of sigma.
        r2: 1 − mean sigma²/variance of the label.
        by_snr: The same of each bin of SNR: {low, high, count, snr (the median), mae_dex, mae_without_prior_dex, rmse_dex}.
    """

    label: str
    noise_level: float
    rows: int
    num_rows: int
    guess_mae_dex: float
    mae_dex: float
    mae_sem_dex: float
    mae_without_prior_dex: float
    rmse_dex: float
    r2: float
    by_snr: list[dict[str, float]]
    snr_definition: str
    prior: dict[str, list[float]]
    assumes: str

    def to_json(self) -> dict[str, Any]:
        """The fields, as `analysis.points.limit.read_limit` reads them."""
        return asdict(self)

    def to_text(self) -> str:
        """The limit as a table."""
        bins = [(f"{line['low']:.4g} to {line['high']:.4g}", line) for line in self.by_snr]
        bins.append(("all", {"count": self.rows} | asdict(self)))
        lines = [
            f"information limit of {self.label}, {self.rows:,} of {self.num_rows:,} spectra at noise level {self.noise_level:g}",
            f"{'SNR':>17}{'spectra':>9}{'MAE':>10}{'no prior':>10}",
        ]
        lines += [
            f"{span:>17}{line['count']:>9,}{line['mae_dex']:>10.4g}{line['mae_without_prior_dex']:>10.4g}"
            for span, line in bins
        ]
        lines.append(f"R² {self.r2:.4f}; always answering the middle: MAE {self.guess_mae_dex:.4g}")
        return "\n".join([*lines, ASSUMES])


def flux_derivatives(labels: Labels, pixels: int, step: float = 0.02) -> Float64[ndarray, "row label pixel"]:
    """Derivatives of the simulated flux by each label, in units of the label's range.

    Central differences of fourth order, whose error is the fifth derivative's: none, as the emulator is a cubic polynomial.
    So any step, in units of each label's range, gives the same result to rounding, which the tests check. ``labels`` are
    T_eff in K, log g and [M/H] in dex; fewer ``pixels`` than 4096 are means of neighbours.
    """
    derivatives = []
    for direction in np.diag(step * SPAN):
        near, far = (_flux(labels + k * direction, pixels) - _flux(labels - k * direction, pixels) for k in (1, 2))
        derivatives.append((8 * near - far) / (12 * step))
    return np.stack(derivatives, axis=1)


def fisher_information(derivatives: Float64[ndarray, "row label pixel"], sigma: Pixels) -> Information:
    """Σ_p (∂f_p/∂θ_i)(∂f_p/∂θ_j)/σ_p² of each spectrum, sigma being one standard deviation of each pixel's error.

    The size of the errors tells nothing here, although it depends on the flux and so on the labels: with it, sigma of
    log g would be smaller by less than 1e-4 of itself.
    """
    weighted = derivatives / sigma[:, None, :].astype(np.float64)
    return weighted @ weighted.transpose(0, 2, 1)


def cramer_rao(fisher: Information, prior_variance: float = np.inf) -> Labels:
    """The least standard deviation of each label with the others marginalised: the root of (F + 1/prior)⁻¹'s diagonal.

    With a Gaussian prior this is the van Trees bound (van Trees 1968, Detection, Estimation, and Modulation Theory I,
    § 2.4.3), and the error of the best estimator where the flux is linear in the labels over one sigma. A uniform prior of
    the same variance is not Gaussian: for one label, the best estimator's MAE is then 0.94 to 1.09 times sigma·sqrt(2/π).

    ``fisher`` is in units in which all labels have the same prior variance, infinite for the plain Cramér–Rao limit.
    """
    information = fisher + np.eye(fisher.shape[-1]) / prior_variance
    return np.sqrt(np.diagonal(np.linalg.inv(information), axis1=1, axis2=2))


def information_limit(
    place: Location, *, label: str = "log_g", rows: int = 4096, noise_level: float = 1.0
) -> InformationLimit:
    """The limit of the first ``rows`` test spectra of a shard set, or of the first spectra of an HDF5 file.

    Clipping at zero changes nothing, as the simulated flux is positive. One fixed draw of the noise is one draw from the
    errors that the limit averages over: a test set's error scatters about it as its standard error says.
    ``noise_level`` multiplies the spectra's errors, as `DataRules.noise_level` does.

    Raises:
        UserError: The spectra were not simulated by this package, or an argument is out of range.
    """
    if label not in FREE_LABELS:
        raise UserError(
            f"label {label!r}: simulated spectra depend on {', '.join(FREE_LABELS)} only: name one of these"
        )
    if rows < 1 or not noise_level > 0:
        raise UserError(f"{rows} rows at noise level {noise_level:g}: give 1 row or more and a noise level above 0")
    which = FREE_LABELS.index(label)
    parts = []
    for flux, error, params in _spectra(place, rows):
        labels = _free_labels(place, flux, params)
        check_rows(flux, error, place)
        fisher = fisher_information(flux_derivatives(labels, flux.shape[1]), noise_level * error)
        plain, bounded = (SPAN[which] * cramer_rao(fisher, prior)[:, which] for prior in (np.inf, 1 / 12))
        part = {"label": labels[:, which], "plain": plain, "bounded": bounded, "snr": spectrum_snr(flux, error)}
        parts.append(pd.DataFrame(part).astype(np.float64))
    sigma = pd.concat(parts, ignore_index=True)
    snr = sigma["snr"].to_numpy()
    percentiles, num_rows = _about(place, snr)
    edges = snr_edges(percentiles, snr)
    return InformationLimit(
        label=label,
        noise_level=noise_level,
        rows=len(sigma),
        num_rows=num_rows,
        guess_mae_dex=float((sigma["label"] - LOW[which] - SPAN[which] / 2).abs().mean()),
        **_errors(sigma),
        mae_sem_dex=float(np.sqrt(2 / np.pi / len(sigma)) * sigma["bounded"].std(ddof=0)),
        r2=float(1 - (sigma["bounded"] ** 2).mean() / sigma["label"].var(ddof=0)),
        by_snr=[
            dict(zip(("low", "high"), edges[k : k + 2].tolist(), strict=True))
            | {"count": len(some), "snr": float(some["snr"].median())}
            | _errors(some)
            for k, some in sigma.groupby(bin_numbers(snr, edges))
        ],
        snr_definition=SNR_DEFINITION,
        prior=dict(zip(FREE_LABELS, np.stack([LOW, LOW + SPAN], axis=1).tolist(), strict=True)),
        assumes=ASSUMES,
    )


def _errors(sigma: pd.DataFrame) -> dict[str, float]:
    """Expected errors of optimal estimators: the mean |x| of a Gaussian is sigma·sqrt(2/π)."""
    return {
        "mae_dex": float(np.sqrt(2 / np.pi) * sigma["bounded"].mean()),
        "mae_without_prior_dex": float(np.sqrt(2 / np.pi) * sigma["plain"].mean()),
        "rmse_dex": float(np.sqrt((sigma["bounded"] ** 2).mean())),
    }


def _flux(labels: Labels, pixels: int) -> Float64[ndarray, "row pixel"]:
    return emulate_flux(labels).reshape(len(labels), pixels, FULL_PIXELS // pixels).mean(axis=2)


def _free_labels(place: Location, flux: Pixels, params: pd.DataFrame) -> Labels:
    """The labels of spectra that are what the emulator gives for them; others are refused."""
    known = set(FREE_LABELS) <= set(params) and FULL_PIXELS % flux.shape[1] == 0
    labels = params[list(FREE_LABELS)].to_numpy(np.float64) if known else np.empty((0, 0))
    if not known or not np.abs(_flux(labels, flux.shape[1]) - flux).max() < FLUX_TOLERANCE:
        raise UserError(
            f"{place}: not simulated by this package, so how its spectra change with their labels is unknown: "
            "give a shard set or HDF5 file that was made from `scaling simulate`"
        )
    return labels


def _hdf5(place: Location) -> Path | None:
    """The HDF5 file that a place is; None for a shard set."""
    local = Folder.at(place).local
    return local if local and local.is_file() else None


def _about(place: Location, snr: Float64[ndarray, " row"]) -> tuple[dict[str, float], int]:
    """The SNR percentiles that a study's bins have, and the number of spectra."""
    if file := _hdf5(place):
        with open_spectra(file) as spectra:
            return snr_percentiles(snr), spectra.num_rows
    manifest = Manifest.load(place)
    return manifest.snr, manifest.num_rows("test")


def _spectra(place: Location, rows: int) -> Iterator[tuple[ndarray, ndarray, pd.DataFrame]]:
    """Flux, error and parameters of the first spectra, in blocks."""
    if file := _hdf5(place):
        with open_spectra(file) as spectra:
            stop = min(rows, spectra.num_rows)
            params = spectra.read_params(0, stop)
            for first, flux, error in spectra.blocks(0, stop):
                yield flux, error, params.iloc[first : first + len(flux)]
        return
    manifest = Manifest.load(place)
    left = min(rows, manifest.num_rows("test"))
    for shard in manifest.leading_shards("test", left):
        for table in row_groups(manifest.folder, shard.file):
            if len(some := table.slice(0, left)):
                params = some.drop_columns([FLUX, ERROR]).to_pandas()
                yield column_values(some, FLUX), column_values(some, ERROR), params
            left -= len(some)
