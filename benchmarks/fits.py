"""Fitting a law: our time against the usual way, in one run, on one core.

    python -m benchmarks.fits                     # 240 simulated points; about 6 minutes, mostly for the usual way
    python -m benchmarks.fits --table points.csv  # columns N, D, loss
    python -m benchmarks.fits --starts 90 --refits 100   # a part of the usual way, extrapolated

The usual way is that of Hoffmann et al. 2022 (arXiv 2203.15556, appendix D.2) as it is commonly reproduced: Huber
loss of log residuals, minimised by L-BFGS from 4,500 starts with numerical derivatives, and by BFGS with analytic
derivatives from the best parameters for each of 4,000 bootstrap samples.
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import product
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before NumPy is imported
    os.environ[name] = "1"

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from scipy.optimize import minimize  # noqa: E402
from scipy.special import logsumexp, softmax  # noqa: E402

from analysis.fitting.fit import Fit, fit, refit  # noqa: E402
from analysis.laws import CHINCHILLA  # noqa: E402
from analysis.points.table import Points, points_from_columns  # noqa: E402

DELTA = 1e-3
STARTS = list(
    product(range(0, 30, 5), range(0, 30, 5), np.arange(-1, 1.5, 0.5), np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5))
)


class UsualWay:
    """Huber loss of log residuals over (log A, log B, log E, alpha, beta)."""

    def __init__(self, points: Points) -> None:
        self.logs = np.stack([np.log(points.N), np.log(points.D)])
        self.loss = np.log(points.loss)

    def terms(self, x):
        """Logarithms of the three terms, (3, n)."""
        a, b, e, alpha, beta = x
        return np.stack([a - alpha * self.logs[0], b - beta * self.logs[1], np.full_like(self.loss, e)])

    def objective(self, x, weights=1.0):
        """The summed Huber loss."""
        size = np.abs(logsumexp(self.terms(x), axis=0) - self.loss)
        inner = np.minimum(size, DELTA)
        return float(np.sum(weights * inner * (size - 0.5 * inner)))

    def gradient(self, x, weights=1.0):
        """Derivatives of the objective, (5,)."""
        terms = self.terms(x)
        slope = weights * np.clip(logsumexp(terms, axis=0) - self.loss, -DELTA, DELTA)
        share = softmax(terms, axis=0) * slope
        a, b, e = share.sum(axis=1)
        return np.array([a, b, e, -share[0] @ self.logs[0], -share[1] @ self.logs[1]])

    def fit(self, starts):
        """The best of the minima from all starts."""
        return min((minimize(self.objective, start, method="L-BFGS-B") for start in starts), key=lambda r: r.fun)


def main() -> None:
    """Print the times and the objectives reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="CSV with columns N, D, loss; simulated points without it")
    parser.add_argument("--starts", type=int, default=len(STARTS), help="starts of the usual way that are run")
    parser.add_argument("--refits", type=int, default=4000, help="refits of the usual way that are run")
    options = parser.parse_args()
    points = _read(options.table) if options.table else simulated(240, seed=0)
    ours, fit_seconds = _timed(lambda: fit(CHINCHILLA, points, objective="huber", delta=DELTA), repeats=5)
    draws = np.random.default_rng(0).multinomial(len(points), np.full(len(points), 1 / len(points)), size=4000)
    refits, refit_seconds = _timed(lambda: refit(ours, points, weights=draws.astype(float)))
    small = simulated(72, seed=1)
    squares, small_seconds = _timed(lambda: fit(CHINCHILLA, small), repeats=5)
    few = np.random.default_rng(0).multinomial(72, np.full(72, 1 / 72), size=1000).astype(float)
    _, few_seconds = _timed(lambda: refit(squares, small, weights=few))

    usual = UsualWay(points)
    chosen = np.random.default_rng(0).permutation(len(STARTS))[: options.starts]
    found, usual_fit = _timed(lambda: usual.fit([np.array(STARTS[i], float) for i in chosen]))
    best, start = usual.objective(_logarithms(ours)), _logarithms(ours)
    taken = draws[: options.refits]
    theirs, usual_refits = _timed(
        lambda: [minimize(usual.objective, start, (w,), "BFGS", usual.gradient).fun for w in taken]
    )
    usual_fit *= len(STARTS) / len(chosen)
    usual_refits *= len(draws) / len(taken)

    worse = np.array(theirs) / refits.value[: len(taken)] - 1
    print(f"global fit of {len(points)} points, Huber {DELTA:g}")
    print(
        f"  ours {1e3 * fit_seconds:.0f} ms, objective {best:.10g}; the usual way {usual_fit:.0f} s, {found.fun:.10g}"
    )
    print(f"  ratio {usual_fit / fit_seconds:,.0f}")
    print(f"4,000 bootstrap refits of it, {100 * refits.converged.mean():.1f} % of ours converged")
    print(
        f"  ours {refit_seconds:.2f} s; the usual way {usual_refits:.0f} s; ratio {usual_refits / refit_seconds:,.0f}"
    )
    print(f"  more than 1e-4 above the other: the usual way {_share(worse > 1e-4)}, ours {_share(worse < -1e-4)}")
    print("72 points, least squares")
    print(f"  global fit {1e3 * small_seconds:.0f} ms; 1,000 refits {few_seconds:.3f} s")


def _share(chosen: np.ndarray) -> str:
    return f"{100 * chosen.mean():.1f} %"


def simulated(count: int, seed: int) -> Points:
    """Points about Hoffmann et al.'s law with 1 % scatter and a few outliers."""
    rng = np.random.default_rng(seed)
    N, D = (
        np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), count)),
        np.exp(rng.uniform(np.log(3e8), np.log(3e11), count)),
    )
    law = CHINCHILLA.predict({"E": 1.69, "A": 406.4, "alpha": 0.339, "B": 410.7, "beta": 0.285}, N, D)
    scatter = 0.01 * rng.standard_t(3, count)
    return Points(N=N, D=D, loss=law * np.exp(scatter))


def _read(path: Path) -> Points:
    return points_from_columns(pd.read_csv(path), "N", "D", "loss")


def _logarithms(fitted: Fit) -> np.ndarray:
    p = fitted.parameters
    return np.array([np.log(p["A"]), np.log(p["B"]), np.log(p["E"]), p["alpha"], p["beta"]])


def _timed(run, repeats=1):
    """The result, and the shortest time of the repeats in seconds."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - began)
    return result, min(seconds)


if __name__ == "__main__":
    main()
