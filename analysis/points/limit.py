"""The information limit of the test spectra: the smallest error that any model can reach on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, ConfigDict

from scaling.errors import UserError
from scaling.parse import Positive, parse, parse_object

LEVEL = 1.645
"""Number of standard errors by which a law's floor may lie below the limit: one-sided 95 % for normal errors."""

BIN = ["low", "high", "mae_dex"]
REMEDY = "make the limit again with `scaling limit --json`, or remove it"


def _bins(lines: Any) -> pd.DataFrame:
    whole = isinstance(lines, list) and all(isinstance(line, dict) for line in lines)
    if not whole or any(type(line.get(name)) not in (int, float) for line in lines for name in BIN):
        raise ValueError(f"must be a list of objects with the numbers {', '.join(BIN)}")
    return pd.DataFrame(lines, columns=BIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The smallest errors achievable on the test spectra, as written by `scaling limit`, in units of the label.

    Attributes:
        label: The estimated label.
        eval_pin: The rows' `eval_pin` that the limit is for, or "" if unknown.
        mae_dex: MAE of an optimal estimator, over all test spectra.
        by_snr: One row per bin of signal to noise: low, high, mae_dex.
        assumes: The assumptions of the limit, as text.
        mae_sem_dex: Standard error of `mae_dex` from the finite number of spectra; 0 if unknown.
    """

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    label: str
    eval_pin: str
    mae_dex: Positive
    by_snr: Annotated[pd.DataFrame, BeforeValidator(_bins)]
    assumes: str
    mae_sem_dex: float = 0.0


def read_limit(path: str | Path) -> Limit:
    """Read the output of `scaling limit --json`, or a study's `limit.json`.

    Raises:
        UserError: It is not such a file.
    """
    try:
        return parse_limit(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {REMEDY}") from error


def parse_limit(content: bytes, place: str) -> Limit:
    """Parse a limit from a file's content; `place` is its location, for messages.

    Raises:
        UserError: It is not a limit.
    """
    fields = {"eval_pin": "", **parse_object(content, place, REMEDY)}
    return parse(Limit, {name: fields[name] for name in Limit.__dataclass_fields__ if name in fields}, place, REMEDY)


def law_floor(limit: Limit, errors: pd.Series, sem: pd.Series) -> float:
    """The lower bound on a law's floor for these cells, in dex: the limit minus an allowance for chance.

    The limit is an average over the noise and over its spectra, whereas the cells' errors are from one finite test set.

    Args:
        limit: The limit of the same test spectra.
        errors: Test MAE of each cell, in dex.
        sem: Its standard error from the finite test set.
    """
    of_set = float(np.nanmedian((sem / errors) ** 2)) if sem.notna().any() else 0.0
    relative = np.sqrt(of_set + (limit.mae_sem_dex / limit.mae_dex) ** 2)
    return limit.mae_dex * max(1 - LEVEL * float(relative), 0.0)


def require_same_spectra(cells: pd.DataFrame, limit: Limit | None) -> None:
    """Check that a limit is for the same label and test spectra as the cells.

    Raises:
        UserError: It is not.
    """
    if limit is None:
        return
    for column, value, what in (("label", limit.label, "label"), ("eval_pin", limit.eval_pin, "test spectra")):
        found = cells[column].astype(str).unique()
        if value and list(found) != [value]:
            raise UserError(
                f"information limit: of {what} {value}, but the table has {', '.join(found)}; "
                "make the limit of the same data again with `scaling limit`"
            )
