"""Anchors: scores of external models on a study's test spectra, shown beside its results but never fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from scaling.errors import UserError
from scaling.parse import Amount, Count, MaybeNaN, Name, Positive, parse, parse_object


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One anchor, as stored by `scaling evaluate --anchor`.

    Attributes:
        name: The model's name.
        label: The predicted label.
        num_params: Its N.
        num_spectra: Its D.
        test_mae_dex: Its MAE on the study's test spectra.
        test_mae_sem_dex: Standard error of the MAE over the finite number of spectra.
        test_mae_z: The MAE in standard deviations of its own training labels.
        test_r2: Its R² on the same spectra.
        num_test: Number of test spectra.
        eval_pin: Identifies the test spectra and their noise, as in the rows.
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
    """Parse the output of `scaling evaluate --anchor`; `place` is its location, for messages.

    Raises:
        UserError: It is not an anchor.
    """
    remedy = "make the anchor again with `scaling evaluate --anchor`, or remove it"
    fields = parse_object(content, place, remedy)
    return parse(Anchor, {name: fields[name] for name in Anchor.__dataclass_fields__ if name in fields}, place, remedy)


def require_same_evaluation(rows: pd.DataFrame, anchors: Sequence[Anchor]) -> None:
    """Check that anchors were scored on the rows' own test spectra, noise and label.

    Raises:
        UserError: An anchor was not.
    """
    for anchor in anchors:
        for column, value in (("eval_pin", anchor.eval_pin), ("label", anchor.label)):
            if list(found := rows[column].astype(str).unique()) != [value]:
                raise UserError(
                    f"anchor {anchor.name}: {column} {value}, but the table has {', '.join(found)}: not comparable; "
                    "score it again with `scaling evaluate --anchor`, or remove it"
                )
