"""Baselines as a study declares them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scaling.parse import Count, Fraction, Positive, declared


@declared
class Ridge:
    """Linear regression of the labels on the standardised pixels, with the L2 penalty that is best on the validation split.

    With fresh noise it is the fit to infinitely many draws, in closed form. `cpus` are those of its one task.
    """

    cpus: Count = 1

    @property
    def family(self) -> str:
        """The rows' family."""
        return "ridge"


@declared
class LightGBM:
    """Gradient-boosted trees on the pixels (Ke et al. 2017), stopped when `patience` more trees do not improve the validation split.

    At most `trees` of at most `leaves` leaves, each grown on a random `pixel_fraction` of the pixels in `bins` levels, for the
    Huber loss (cross-entropy where the study classifies). With fresh noise each spectrum is trained on under `draws` draws of it;
    memory is a byte a pixel and draw. `cpus` are those of each number of spectra.
    """

    trees: Count = 2000
    patience: Count = 50
    leaves: Annotated[int, Field(ge=2)] = 31
    learning_rate: Positive = 0.05
    pixel_fraction: Annotated[Fraction, Field(gt=0)] = 0.2
    bins: Annotated[int, Field(ge=2, le=255)] = 63
    draws: Count = 4
    cpus: Count = 1

    @property
    def family(self) -> str:
        """The rows' family."""
        return "lightgbm"


Baseline = Ridge | LightGBM
