"""Fisher information of labels in spectra with independent Gaussian errors; the Cramér–Rao and van Trees bounds.

F_ij = Σ_p (∂f_p/∂θ_i)(∂f_p/∂θ_j)/σ_p² (Kay 1993, Fundamentals of Statistical Signal Processing: Estimation Theory, eq. 3.31),
and no unbiased estimator of θ_i has a variance below (F⁻¹)_ii (eq. 3.20).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from scaling.data.spectra import Pixels

Labels = Float64[ndarray, "row label"]
Information = Float64[ndarray, "row label label"]


def fisher_information(derivatives: Float64[ndarray, "row label pixel"], sigma: Pixels) -> Information:
    """Σ_p (∂f_p/∂θ_i)(∂f_p/∂θ_j)/σ_p² of each spectrum; sigma is one standard deviation of each pixel's error.

    The dependence of the errors on the flux, and so on the labels, is ignored: including it would reduce sigma of
    log g by less than 1e-4 of its value.
    """
    weighted = derivatives / sigma[:, None, :].astype(np.float64)
    return weighted @ weighted.transpose(0, 2, 1)


def cramer_rao(fisher: Information, prior_variance: float = np.inf) -> Labels:
    """The smallest standard deviation of each label, marginalised over the others: √diag((F + 1/prior)⁻¹).

    With a Gaussian prior this is the van Trees bound (van Trees 1968, Detection, Estimation, and Modulation Theory I,
    § 2.4.3), and the error of the best estimator where the flux is linear in the labels over one sigma. A uniform prior of
    the same variance is not Gaussian: for one label, the best estimator's MAE is then 0.94 to 1.09 times sigma·sqrt(2/π).

    ``fisher`` is in units in which all labels have the same prior variance; infinite gives the plain Cramér–Rao bound.
    """
    information = fisher + np.eye(fisher.shape[-1]) / prior_variance
    return np.sqrt(np.diagonal(np.linalg.inv(information), axis1=1, axis2=2))
