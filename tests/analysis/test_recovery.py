"""Points that lie on a law, without noise, give its parameters back: every form, to 1e-6."""

import dataclasses

import numpy as np
import pytest

from analysis.fitting.fit import fit
from analysis.laws import LAWS
from analysis.points.table import Points
from tests.analysis.test_laws import RANGES

SIZES, SPECTRA = np.geomspace(300, 3e6, 7), 512.0 * 2 ** np.arange(0, 14, 2)
TRUTHS = 3
CLEAR_BREAK = {"c": (0.2, 1.5)}  # without a change of exponent nothing tells where it is, and how wide


def grid(*axes):
    return [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]


def places(law):
    """Points of a wide study, the losses still to be filled in."""
    if law.variables == ("x",):
        D = np.geomspace(100, 1e7, 40)
        return Points(N=np.ones(40), D=D, loss=np.ones(40))
    if "S" in law.variables:
        N, D, epochs = grid(SIZES, SPECTRA, [0.5, 1.0, 3.0, 10.0, 40.0])
        return Points(N=N, D=D, S=epochs * D, loss=np.ones(len(N)))
    N, D = grid(SIZES, SPECTRA)
    return Points(N=N, D=D, loss=np.ones(len(N)))


@pytest.mark.parametrize("objective", ["lsq", "linear"])
@pytest.mark.parametrize("name", LAWS)
def test_noise_free_points_give_the_parameters_back(name, objective):
    law, points = LAWS[name], places(LAWS[name])
    random = np.random.default_rng([list(LAWS).index(name), len(objective)])
    ranges = np.array([(RANGES | CLEAR_BREAK)[each] for each in law.parameters])
    offsets = law.middle(points.logs(law.variables))
    for _ in range(TRUTHS):
        truth = law.shifted(random.uniform(*ranges.T), offsets)
        loss = law.value(truth, points.logs(law.variables))
        found = fit(law, dataclasses.replace(points, loss=loss), objective=objective)
        assert found.status == "converged", found.message
        np.testing.assert_allclose(found.theta, truth, rtol=1e-6)
        assert np.abs(found.residuals).max() < 1e-7
