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
import xxhash

from scaling.errors import UserError
from scaling.files import json_bytes, plain
from scaling.parquet import read_parquet
from scaling.parse import Amount, MaybeNaN, Natural, parse, parse_object

Status = Literal["done", "diverged", "failed", "pruned"]
REMEDY = "delete it and run the study again"


@dataclass(frozen=True, slots=True)
class Measure:
    """The metric for selecting and evaluating trials: its name, its unit, and its column without "val_" or "test_"."""

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
        """The noun for the error in a sentence."""
        return "error" if self.unit else self.name

    def named(self, value: float, digits: int = 3) -> str:
        """Format a value with the metric's name: "MAE 0.123 dex"."""
        return f"{self.name} {self.value(value, digits)}"

    def value(self, value: float, digits: int = 3) -> str:
        """Format a value with its unit: "0.123 dex"."""
        return f"{value:.{digits}f} {self.unit}".rstrip()


MAE, ERROR_RATE = Measure("MAE", "dex", "mae_dex"), Measure("error rate", "", "error_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trial's result; units are in the names: `_dex` as measured, `_z` in standard deviations of training labels.

    `num_params` counts the parameters that reach the loss and is the N of the laws; `num_spectra` (distinct spectra)
    is their D. `epochs` is samples_seen / num_spectra. `noise` is "fresh" (drawn each epoch) or "fixed" (one draw per
    spectrum). `eval_pin` identifies the validation and test spectra with their noise: rows with different pins must
    not be compared. `held_out` marks cells that the study excludes from its fit, to score the forecast.
    `test_by_snr` and `test_by_label` are JSON: a list of {low, high, count, mae_dex, bias_dex, rmse_dex, sem_dex}, one per bin of
    signal to noise (of the noise-free flux, as `scaling inspect` defines it) and of the true label; empty lists without
    metrics. `test_guess_mae_dex` is the error of always predicting the training mean, `test_p90_dex` the 90th percentile
    of |error|.
    `access` says how the trial read its spectra: "resident", "mapped", or "streamed" in an order that mixes 8 shards at a time.
    `budget_share` is 1 except for the branches of a "wsd" trial, which are results at that fraction of its budget. A trial's
    row of share 1 is its last; `device_seconds` of a branch exclude the steps shared with a shorter one, so that they add up.
    `val_error_rate` and `test_error_rate` are those of a classification, whose errors in dex are NaN and whose `label`
    is like "log_g > 2.5". `other_labels` is JSON: {label: {val_mae, test_mae, test_r2, test_rmse, test_bias}} of the other
    labels, each in its own unit. Metrics are averaged over `eval_draws` noise draws of the evaluation spectra.
    `lr_bracketed` says whether a worse learning rate was tried on both sides of the cell's best; like `held_out`, it is set
    when rows are collected.
    `eval_seconds` is the time spent scoring the validation split during training; `samples_per_second` and `mfu` exclude it.
    `mfu` is the model's FLOPs (`train_flops`) per second as a fraction of `peak_flops`, the rate that a worker's device
    reaches in large matrix products at that precision. `workers` is as declared, and `device_seconds` assume that number:
    an elastic trial (`Placement.min_workers`) may have had fewer for a while.
    Metrics are NaN unless `status` is "done"; `error` then says what happened. A "pruned" trial was stopped as hopeless.
    """

    study: str
    cell: str
    trial: str
    fingerprint: str
    family: str
    rung: str
    num_params: Natural
    num_params_nonembedding: Natural
    num_params_total: Natural
    num_spectra: Natural
    held_out: bool
    epochs: Amount
    steps: Natural
    samples_seen: Natural
    budget: str
    budget_share: Amount
    schedule: str
    noise: str
    train_flops: Amount
    lr: Amount
    lr_bracketed: bool
    weight_decay: Amount
    batch_size: Natural
    seed: Natural
    precision: str
    label: str
    label_mean: MaybeNaN
    label_std: Amount
    val_mae_dex: Amount
    val_mae_z: Amount
    val_r2: MaybeNaN
    val_mae_sem_dex: Amount
    val_mae_sem_z: Amount
    test_mae_dex: Amount
    test_mae_z: Amount
    test_r2: MaybeNaN
    test_mae_sem_dex: Amount
    test_mae_sem_z: Amount
    test_rmse_dex: Amount
    test_rmse_z: Amount
    test_bias_dex: MaybeNaN
    test_bias_z: MaybeNaN
    test_p90_dex: Amount
    test_p90_z: Amount
    test_guess_mae_dex: Amount
    test_by_snr: str
    test_by_label: str
    val_error_rate: Amount
    test_error_rate: Amount
    other_labels: str
    eval_draws: Natural
    num_val: Natural
    num_test: Natural
    best_epoch: Amount
    eval_pin: str
    status: Status
    error: str
    access: str
    host: str
    workers: Natural
    device: str
    skipped_steps: Natural
    device_seconds: Amount
    wall_seconds: MaybeNaN  # from the wall clock, which may be set back
    eval_seconds: Amount
    samples_per_second: Amount
    peak_flops: Amount
    mfu: Amount
    code_commit: str
    versions: str

    @property
    def measure(self) -> Measure:
        """The metric by which the trial is judged."""
        return ERROR_RATE if math.isnan(self.test_mae_dex) and not math.isnan(self.test_error_rate) else MAE

    @property
    def val_error(self) -> float:
        """The error by which the trial is selected; NaN unless it is done."""
        return getattr(self, self.measure.val)

    @property
    def test_error(self) -> float:
        """The error to which a law is fitted; NaN unless the trial is done."""
        return getattr(self, self.measure.test)

    def to_json(self) -> str:
        """The row as one JSON object whose last field is a checksum of the others; NaN is written as null."""
        values = plain(dataclasses.asdict(self))
        return json_bytes(values | {"checksum": _checksum(values)}).decode()

    @classmethod
    def from_json(cls, content: str | bytes, source: str) -> Row:
        """Read a row written by `to_json`.

        Raises:
            UserError: Names `source`, which is not a row, has fields of another version, or was edited.
        """
        values = parse_object(content, source, REMEDY)
        checksum = values.pop("checksum", None)
        if odd := sorted(values.keys() ^ cls.__dataclass_fields__.keys()):
            named = ", ".join(odd[:5]) + (" and more" if len(odd) > 5 else "")
            raise UserError(
                f"{source}: a row of another version, which has or lacks {named}: use the version that wrote it, or a new store"
            )
        if checksum != _checksum(values):
            raise UserError(f"{source}: edited or damaged, its checksum is another: {REMEDY}")
        return parse(cls, values, source, REMEDY)


def _checksum(values: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def measure_of(rows: pd.DataFrame) -> Measure:
    """The metric by which the trials of a table are judged."""
    classified = rows["test_mae_dex"].isna().all() and rows["test_error_rate"].notna().any()
    return ERROR_RATE if classified else MAE


def schema() -> pa.Schema:
    """The Arrow schema of `results.parquet`, derived from `Row`."""
    kinds = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
    hints = typing.get_type_hints(Row)
    return pa.schema([(field.name, kinds.get(hints[field.name], pa.string())) for field in dataclasses.fields(Row)])


def to_table(rows: list[Row]) -> pa.Table:
    """Convert rows to an Arrow table, sorted by (cell, trial, share), so that equal rows always give equal files."""
    ordered = sorted(rows, key=lambda row: (row.cell, row.trial, row.budget_share))
    return pa.Table.from_pylist([dataclasses.asdict(row) for row in ordered], schema=schema())


def read_table(path: str | Path) -> pd.DataFrame:
    """Read `results.parquet`, or the same columns as text (.csv, .tsv, .txt), separated by comma, semicolon or tab.

    Raises:
        UserError: The file is missing or unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such table; give a results.parquet or a CSV file")
    try:
        if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
            return read_parquet(path).to_pandas()
        with path.open() as lines:
            header = lines.readline()
        return pd.read_csv(path, sep=max(",;\t", key=header.count))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix or 'a table'} ({error})") from error
