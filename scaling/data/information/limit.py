"""The information limit of a test split: how well spectra determine labels, on average and by signal to noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from numpy import ndarray

from scaling.console import Count, uncounted
from scaling.data.batches.bins import bin_numbers, snr_edges
from scaling.data.hdf5.reader import open_spectra
from scaling.data.information.fisher import cramer_rao, fisher_information
from scaling.data.information.models import flux_model, hdf5_file, leading_spectra
from scaling.data.shards.manifest import Manifest
from scaling.data.spectra import SNR_DEFINITION, check_rows, snr_percentiles, spectrum_snr
from scaling.errors import UserError
from scaling.files import Location

ASSUMES = (
    "Independent Gaussian pixel errors of known size; {labels} all unknown, nothing else. The prior of each "
    "label counts as a Gaussian with the variance of its uniform range, range²/12. Labels lie anywhere in their ranges: an "
    "estimator that knew that most labels lie on a grid could do better once sigma is below the grid's step. {source}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InformationLimit:
    """The smallest average errors achievable on ``rows`` of a test split's ``num_rows`` spectra, in units of the label.

    Attributes:
        label: The estimated label; all other labels are marginalised.
        noise_level: Factor on the spectra's errors.
        guess_mae_dex: MAE of always predicting the middle of the label's range.
        mae_dex: Mean over spectra of sigma·sqrt(2/π), the MAE of an optimal estimator with Gaussian errors. Sigma takes
            the labels' ranges (``prior``) into account.
        mae_sem_dex: Standard error of that mean, including the emulator's uncertainty.
        mae_without_prior_dex: The same for the plain Cramér–Rao bound. Where the noise is large it exceeds the guess.
        rmse_dex: Root mean square of sigma.
        r2: 1 − mean sigma²/variance of the label.
        by_snr: The same per bin of SNR: {low, high, count, snr (the median), mae_dex, mae_without_prior_dex, rmse_dex}.
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
        """The fields, as read by `analysis.points.limit.read_limit`."""
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
        return "\n".join([*lines, self.assumes])


def information_limit(
    place: Location,
    *,
    label: str = "log_g",
    rows: int = 4096,
    noise_level: float = 1.0,
    free: Sequence[str] = (),
    progress: Count = uncounted,
) -> InformationLimit:
    """Compute the limit for the first ``rows`` test spectra of a shard set, or the first spectra of an HDF5 file.

    For spectra simulated by this package the derivatives are exact; for others they come from an emulator fitted to
    the training split, or to the file. Clipping at zero is ignored, so the limit is slightly too low where fluxes are
    negative. Fixed noise is one draw from the distribution that the limit averages over, so a test set's error
    scatters about the limit by its standard error.

    Args:
        place: Shard set or HDF5 file.
        label: The label to estimate.
        rows: Number of spectra.
        noise_level: Multiplies the spectra's errors, as `DataRules.noise_level` does.
        free: Labels that the flux depends on, all unknown; by default those of `AXES` that vary. Simulated spectra use their own.
        progress: Called with (spectra done, maximum number of spectra).

    Raises:
        UserError: An argument is out of range, or no emulator is accurate enough.
    """
    if rows < 1 or not noise_level > 0:
        raise UserError(f"{rows} rows at noise level {noise_level:g}: give 1 row or more and a noise level above 0")
    model = flux_model(place, label, free, noise_level)
    which, low, span = model.labels.index(label), model.low, model.span
    parts = []
    for flux, error, params in leading_spectra(place, "test", rows):
        labels = params[list(model.labels)].to_numpy(np.float64)
        check_rows(flux, error, place)
        model.check(flux, params, place)
        fisher = fisher_information(model.derivatives(labels), noise_level * error)
        plain, bounded = (span[which] * cramer_rao(fisher, prior)[:, which] for prior in (np.inf, 1 / 12))
        part = {"label": labels[:, which], "plain": plain, "bounded": bounded, "snr": spectrum_snr(flux, error)}
        parts.append(pd.DataFrame(part).astype(np.float64))
        progress(sum(map(len, parts)), rows)
    sigma = pd.concat(parts, ignore_index=True)
    snr = sigma["snr"].to_numpy()
    percentiles, num_rows = _about(place, snr)
    edges = snr_edges(percentiles, snr)
    found = _errors(sigma)
    of_rows = np.sqrt(2 / np.pi / len(sigma)) * sigma["bounded"].std(ddof=0)
    return InformationLimit(
        label=label,
        noise_level=noise_level,
        rows=len(sigma),
        num_rows=num_rows,
        guess_mae_dex=float((sigma["label"] - low[which] - span[which] / 2).abs().mean()),
        **found,
        mae_sem_dex=float(np.hypot(of_rows, model.doubt * found["mae_dex"])),
        r2=float(1 - (sigma["bounded"] ** 2).mean() / sigma["label"].var(ddof=0)),
        by_snr=[
            dict(zip(("low", "high"), edges[k : k + 2].tolist(), strict=True))
            | {"count": len(some), "snr": float(some["snr"].median())}
            | _errors(some)
            for k, some in sigma.groupby(bin_numbers(snr, edges))
        ],
        snr_definition=SNR_DEFINITION,
        prior=dict(zip(model.labels, np.stack([low, low + span], axis=1).tolist(), strict=True)),
        assumes=ASSUMES.format(labels=f"{', '.join(model.labels[:-1])} and {model.labels[-1]}", source=model.source),
    )


def _errors(sigma: pd.DataFrame) -> dict[str, float]:
    """Expected errors of optimal estimators: the mean |x| of a Gaussian is sigma·sqrt(2/π)."""
    return {
        "mae_dex": float(np.sqrt(2 / np.pi) * sigma["bounded"].mean()),
        "mae_without_prior_dex": float(np.sqrt(2 / np.pi) * sigma["plain"].mean()),
        "rmse_dex": float(np.sqrt((sigma["bounded"] ** 2).mean())),
    }


def _about(place: Location, snr: Float64[ndarray, " row"]) -> tuple[dict[str, float], int]:
    """The SNR percentiles used for a study's bins, and the number of spectra."""
    if file := hdf5_file(place):
        with open_spectra(file) as spectra:
            return snr_percentiles(snr), spectra.num_rows
    manifest = Manifest.load(place)
    return manifest.snr, manifest.num_rows("test")
