import dataclasses
import json
import math

import pandas as pd
import pyarrow.parquet as pq
import pytest

from scaling.errors import UserError
from scaling.results import Row, read_table, schema, to_table
from tests.study.example import example_row


def test_a_row_survives_its_file():
    row = example_row(val_mae_dex=0.1 + 0.2)
    assert Row.from_json(row.to_json(), "row.json") == row


def test_missing_numbers_are_null_and_come_back_as_nan():
    row = example_row(status="failed", error="lost", test_mae_dex=math.nan)
    assert json.loads(row.to_json())["test_mae_dex"] is None
    assert math.isnan(Row.from_json(row.to_json(), "row.json").test_mae_dex)


@pytest.mark.parametrize("damage", ["{", "[]", '{"study": "x"}'])
def test_a_damaged_row_names_its_file(damage):
    with pytest.raises(UserError, match="trials/x/row"):
        Row.from_json(damage, "trials/x/row.json")


def test_the_table_has_the_rows_columns_and_does_not_depend_on_their_order(tmp_path):
    rows = [example_row(trial=f"t{k}", lr=10.0**-k) for k in range(5)]
    table = to_table(rows)
    assert table.schema == schema()
    assert table.column_names == [field.name for field in dataclasses.fields(Row)]
    assert table.equals(to_table(rows[::-1]))
    pq.write_table(table, tmp_path / "results.parquet")
    assert list(read_table(tmp_path / "results.parquet")["lr"]) == [row.lr for row in rows]


def test_a_csv_can_be_read_too(tmp_path):
    pd.DataFrame({"N": [1, 2], "loss": [0.5, 0.4]}).to_csv(tmp_path / "mine.csv", index=False)
    assert list(read_table(tmp_path / "mine.csv")["loss"]) == [0.5, 0.4]


@pytest.mark.parametrize("content", [None, b"not a table"])
def test_a_missing_or_unreadable_table_is_named(tmp_path, content):
    path = tmp_path / "results.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"results\.parquet"):
        read_table(path)
