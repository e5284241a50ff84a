"""Anchors: scores of models from elsewhere on a study's own test spectra, shown beside its results and never fitted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from scaling.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One such score, as `scaling evaluate --anchor` keeps it.

    Attributes:
        name: of the model.
        label: what it predicts.
        num_params: its N.
        num_spectra: its D.
        test_mae_dex: its MAE on the study's test spectra.
        test_mae_sem_dex: the standard error of that over the finite number of spectra.
        test_mae_z: the MAE in standard deviations of its own training labels.
        test_r2: its R² on the same.
        num_test: how many they are.
        eval_pin: identifies them and their noise, as in the rows.
    """

    name: str
    label: str
    num_params: int
    num_spectra: int
    test_mae_dex: float
    test_mae_sem_dex: float
    test_mae_z: float
    test_r2: float
    num_test: int
    eval_pin: str


def parse_anchor(text: str, place: str) -> Anchor:
    """Read what `scaling evaluate --anchor` wrote; `place` is where, for messages.

    Raises:
        UserError: if it is not that.
    """
    try:
        fields = json.loads(text)
        return Anchor(**{name: fields[name] for name in Anchor.__dataclass_fields__})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{place}: not an anchor ({type(error).__name__}: {error}); make it again with `scaling evaluate --anchor`"
        ) from error


def require_same_evaluation(rows: pd.DataFrame, anchors: Sequence[Anchor]) -> None:
    """See that anchors were scored on the rows' own test spectra, noise and label.

    Raises:
        UserError: if one was not.
    """
    for anchor in anchors:
        for column, value in (("eval_pin", anchor.eval_pin), ("label", anchor.label)):
            if list(found := rows[column].astype(str).unique()) != [value]:
                raise UserError(
                    f"anchor {anchor.name}: {column} {value}, but the table has {', '.join(found)}: not comparable; "
                    "score it again with `scaling evaluate --anchor`, or remove it"
                )
