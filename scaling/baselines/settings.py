"""Declarations of baselines in a study."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scaling.parse import Count, Fraction, Positive, declared


@declared
class Ridge:
    """Linear regression of the labels on the standardised pixels, with the L2 penalty selected on the validation split.

    With fresh noise it is the fit to infinitely many draws, in closed form. `cpus` is for its single task.
    """

    cpus: Count = 1

    @property
    def family(self) -> str:
        """The value of `family` in its rows."""
        return "ridge"


@declared
class LightGBM:
    """Gradient-boosted trees on the pixels (Ke et al. 2017), with early stopping.

    Stops when `patience` more trees do not improve the validation split.

    At most `trees` of at most `leaves` leaves, each grown on a random `pixel_fraction` of the pixels in `bins` levels, with the
    Huber loss (cross-entropy for a classification). With fresh noise each spectrum is used with `draws` noise draws;
    memory is one byte per pixel and draw. `cpus` is per number of spectra.
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
        """The value of `family` in its rows."""
        return "lightgbm"


Baseline = Ridge | LightGBM
