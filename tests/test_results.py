import dataclasses
import json
import math

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.errors import UserError
from scaling.results import Row, _checksum, read_table, schema, to_table
from tests.data.shards.converting import one_line
from tests.study.example import example_row


def test_a_row_survives_its_file():
    row = example_row(val_mae_dex=0.1 + 0.2)
    assert Row.from_json(row.to_json(), "row.json") == row


def test_missing_numbers_are_null_and_come_back_as_nan():
    row = example_row(status="failed", error="lost", test_mae_dex=math.nan)
    assert json.loads(row.to_json())["test_mae_dex"] is None
    assert math.isnan(Row.from_json(row.to_json(), "row.json").test_mae_dex)


def refused(content, words=""):
    with pytest.raises(UserError, match=rf"trials/x/row.json: .*{words}") as raised:
        Row.from_json(content, "trials/x/row.json")
    one_line(raised.value)


@pytest.mark.parametrize("damage", ["{", "[]", '{"study": "x"}', b"\xff\x00", "[" * 10**5, b"", '{"lr": ' + "1" * 5000])
def test_what_is_no_row_names_its_file(damage):
    refused(damage)


FIELDS = json.loads(example_row().to_json())
CHECKSUM = FIELDS.pop("checksum")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_mae_dex": 0.001}, "edited or damaged"),
        ({"status": "hmm"}, "status: Input should be 'done', 'diverged', 'failed' or 'pruned'"),
        ({"test_mae_dex": -1.0}, "test_mae_dex: .* must be 0 or more"),
        ({"test_mae_dex": "0.5"}, "test_mae_dex: Input should be a valid number"),
        ({"num_params": 1.5}, "num_params: Input should be a valid integer"),
        ({"held_out": 1}, "held_out: Input should be a valid boolean"),
        ({"other": 1}, "another version"),
    ],
)
def test_what_is_wrong_in_a_row_is_said(change, words):
    values = FIELDS | change
    checksum = CHECKSUM if words.startswith("edited") else _checksum(values)
    refused(json.dumps(values | {"checksum": checksum}), words)


VALUES = st.one_of(
    st.sampled_from(
        [10**30, 10**400, 2**63, -1, 1e308, 0, 5e-324, math.nan, math.inf, True, None, "", "x", [], {}, [[[]]]]
    ),
    st.floats(),
    st.text(max_size=5),
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), VALUES, min_size=1, max_size=2), st.booleans())
def test_an_edited_row_is_refused_and_one_signed_again_is_a_row_or_refused(edit, signed):
    values = FIELDS | edit
    try:
        row = Row.from_json(
            json.dumps(values | {"checksum": _checksum(values) if signed else CHECKSUM}), "trials/x/row.json"
        )
    except UserError as error:
        said = one_line(error)
        assert said.startswith("trials/x/row.json: ")
        return
    assert signed or _checksum(values) == CHECKSUM
    assert Row.from_json(row.to_json(), "row.json").to_json() == row.to_json()
    assert to_table([row]).num_rows == 1


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
