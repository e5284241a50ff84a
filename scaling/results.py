"""The typed results row: the contract between running a study and fitting a law. Needs neither Ray nor torch."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa

from scaling.errors import UserError

Status = Literal["done", "diverged", "failed"]


@dataclass(frozen=True, slots=True)
class Measure:
    """What trials are selected and judged by: its name, its unit, and its column after "val_" and "test_"."""

    name: str
    unit: str
    column: str

    @property
    def val(self) -> str:
        """The column that trials are selected by."""
        return f"val_{self.column}"

    @property
    def test(self) -> str:
        """The column that a law is fitted to."""
        return f"test_{self.column}"

    @property
    def noun(self) -> str:
        """The error as a sentence calls it."""
        return "error" if self.unit else self.name

    def tell(self, value: float, digits: int = 3) -> str:
        """A value in words: "MAE 0.123 dex"."""
        return f"{self.name} {self.value(value, digits)}"

    def value(self, value: float, digits: int = 3) -> str:
        """A value with its unit: "0.123 dex"."""
        return f"{value:.{digits}f} {self.unit}".rstrip()


MAE, ERROR_RATE = Measure("MAE", "dex", "mae_dex"), Measure("error rate", "", "error_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trial's result. Units stand in the names: `_dex` as measured, `_z` in standard deviations of the training labels.

    `num_params` counts the parameters that reach the loss and is the N of the laws; `num_spectra` (distinct spectra)
    is their D. `epochs` is samples_seen / num_spectra. `noise` is "fresh" (drawn each epoch) or "fixed" (one draw a
    spectrum). `eval_pin` identifies the validation and test spectra with their noise: rows with different pins must
    not be compared. `held_out` marks cells that the study keeps out of its fit, to score the forecast.
    `test_by_snr` and `test_by_label` are JSON: a list of {low, high, count, mae_dex, bias_dex, rmse_dex, sem_dex}, one a bin of
    signal to noise (of the noise-free flux, as `scaling inspect` defines it) and of the true label; empty lists without
    metrics. `test_guess_mae_dex` is the error of always answering the training mean, `test_p90_dex` the 90th percentile
    of |error|.
    `access` says where the trial read its spectra: "resident", "mapped", or "streamed" in an order that mixes 8 shards at a time.
    `budget_share` is 1 but for the branches of a "wsd" trial: results of that fraction of its budget. A trial's row of
    share 1 is its last; `device_seconds` of a branch leave out what it shares with a shorter one, so that they add up.
    `val_error_rate` and `test_error_rate` are those of a classification, whose errors in dex are NaN and whose `label`
    is like "log_g > 2.5". `other_labels` is JSON: {label: {val_mae, test_mae, test_r2, test_rmse, test_bias}} of further
    labels, each in its own unit. `eval_draws` noise draws of the evaluation spectra are averaged.
    `mfu` is the model's FLOPs (train_flops, evaluation not counted) per second as a fraction of `peak_flops`, what a
    worker's device reaches in large matrix products at that precision. `workers` is as declared, and
    `device_seconds` count so many: an elastic trial (`Placement.min_workers`) may have had fewer for a while.
    Metrics are NaN unless `status` is "done"; `error` then says what happened.
    """

    study: str
    cell: str
    trial: str
    fingerprint: str
    family: str
    rung: str
    num_params: int
    num_params_nonembedding: int
    num_params_total: int
    num_spectra: int
    held_out: bool
    epochs: float
    steps: int
    samples_seen: int
    budget: str
    budget_share: float
    schedule: str
    noise: str
    train_flops: float
    lr: float
    weight_decay: float
    batch_size: int
    seed: int
    precision: str
    label: str
    label_mean: float
    label_std: float
    val_mae_dex: float
    val_mae_z: float
    val_r2: float
    val_mae_sem_dex: float
    val_mae_sem_z: float
    test_mae_dex: float
    test_mae_z: float
    test_r2: float
    test_mae_sem_dex: float
    test_mae_sem_z: float
    test_rmse_dex: float
    test_rmse_z: float
    test_bias_dex: float
    test_bias_z: float
    test_p90_dex: float
    test_p90_z: float
    test_guess_mae_dex: float
    test_by_snr: str
    test_by_label: str
    val_error_rate: float
    test_error_rate: float
    other_labels: str
    eval_draws: int
    num_val: int
    num_test: int
    best_epoch: float
    eval_pin: str
    status: Status
    error: str
    access: str
    host: str
    workers: int
    device: str
    skipped_steps: int
    device_seconds: float
    wall_seconds: float
    samples_per_second: float
    peak_flops: float
    mfu: float
    code_commit: str
    versions: str

    @property
    def measure(self) -> Measure:
        """What the trial is judged by."""
        return ERROR_RATE if math.isnan(self.test_mae_dex) and not math.isnan(self.test_error_rate) else MAE

    @property
    def val_error(self) -> float:
        """What the trial is selected by; NaN unless it is done."""
        return getattr(self, self.measure.val)

    @property
    def test_error(self) -> float:
        """What a law is fitted to; NaN unless it is done."""
        return getattr(self, self.measure.test)

    def to_json(self) -> str:
        """The row as one JSON object; NaN is written as null."""
        values = {name: None if value != value else value for name, value in dataclasses.asdict(self).items()}
        return json.dumps(values, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Row:
        """Read a row written by `to_json`.

        Raises:
            UserError: naming `source`, if fields are missing or unknown, as after a change of version.
        """
        try:
            values = json.loads(text)
            given, expected = set(values), {field.name for field in dataclasses.fields(cls)}
        except (ValueError, TypeError) as error:
            raise UserError(f"{source}: not a results row ({error}); delete it and run the study again") from error
        if given != expected:
            raise UserError(
                f"{source}: a row of another version (missing {sorted(expected - given)}, unknown {sorted(given - expected)}); "
                "use the version that wrote it, or a new store"
            )
        hints = typing.get_type_hints(cls)
        return cls(**{name: _typed(hints[name], value) for name, value in values.items()})


def _typed(hint: Any, value: Any) -> Any:
    if hint is float:
        return float("nan") if value is None else float(value)
    return value


def measure_of(rows: pd.DataFrame) -> Measure:
    """What the trials of a table are judged by."""
    classified = rows["test_mae_dex"].isna().all() and rows["test_error_rate"].notna().any()
    return ERROR_RATE if classified else MAE


def schema() -> pa.Schema:
    """The Arrow schema of `results.parquet`, derived from `Row`."""
    kinds = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
    hints = typing.get_type_hints(Row)
    return pa.schema([(field.name, kinds.get(hints[field.name], pa.string())) for field in dataclasses.fields(Row)])


def to_table(rows: list[Row]) -> pa.Table:
    """Rows as an Arrow table in the order of (cell, trial, share), so that the same rows always give the same file."""
    ordered = sorted(rows, key=lambda row: (row.cell, row.trial, row.budget_share))
    return pa.Table.from_pylist([dataclasses.asdict(row) for row in ordered], schema=schema())


def read_table(path: str | Path) -> pd.DataFrame:
    """Read `results.parquet`, or a CSV of the same columns.

    Raises:
        UserError: if the file is missing or unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such table; give a results.parquet or a CSV file")
    try:
        return pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix or 'a table'} ({error})") from error
