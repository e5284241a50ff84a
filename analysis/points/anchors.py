"""Anchors: scores of models from elsewhere on a study's own test spectra, shown beside its results and never fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from scaling.errors import UserError
from scaling.parse import Amount, Count, MaybeNaN, Name, Positive, parse, parse_object


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

    name: Name
    label: str
    num_params: Count
    num_spectra: Count
    test_mae_dex: Positive
    test_mae_sem_dex: Amount
    test_mae_z: Amount
    test_r2: MaybeNaN
    num_test: Count
    eval_pin: str


def parse_anchor(content: bytes | str, place: str) -> Anchor:
    """Read what `scaling evaluate --anchor` wrote; `place` is where, for messages.

    Raises:
        UserError: if it is not that.
    """
    remedy = "make the anchor again with `scaling evaluate --anchor`, or remove it"
    fields = parse_object(content, place, remedy)
    return parse(Anchor, {name: fields[name] for name in Anchor.__dataclass_fields__ if name in fields}, place, remedy)


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
