import numpy as np
import pandas as pd
import pytest

from scaling.data.shards import order as module
from scaling.data.shards.order import find_drift, octaves, study_positions
from scaling.data.shards.records import Drift, Source
from scaling.data.simulated.writer import Simulation, write_simulation

ROWS = 12_000


class TableFile:
    """Stands in for an open file of spectra: its parameters only."""

    def __init__(self, table):
        self.table = table

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read_params(self, start, stop):
        return self.table.iloc[start:stop].reset_index(drop=True)


@pytest.fixture
def drift_of(monkeypatch):
    """Tests a parameter table's order, as if it were that of two files."""
    monkeypatch.setattr(module, "TABLE_ROWS", 1000)

    def drift(table):
        border = len(table) // 3
        parts = {"a": table.iloc[:border], "b": table.iloc[border:]}
        monkeypatch.setattr(module, "open_spectra", lambda path: TableFile(parts[str(path)]))
        return find_drift([Source(path=name, rows=len(part), size=0, fingerprint="x") for name, part in parts.items()])

    return drift


def fair_table(seed, rows=ROWS):
    """A table as the simulator writes it: labels mostly on a grid, columns that are constant or all NaN, counters."""
    rng = np.random.default_rng(seed)
    snapped = rng.random(rows) < 0.8
    log_g = rng.uniform(1, 5, rows)
    return pd.DataFrame(
        {
            "id": np.arange(rows),
            "log_g": np.where(snapped, np.round(2 * log_g) / 2, log_g),
            "mag": rng.uniform(20.5, 22.5, rows),
            "snr": rng.lognormal(2, 0.5, rows),
            "T_eff": 250 * rng.integers(15, 25, rows).astype(float),
            "seeing": 1.0,
            "ext": np.nan,
            "redshift": np.where(rng.random(rows) < 0.5, np.nan, rng.normal(size=rows)),
        }
    )


def test_fair_orders_pass_and_their_p_values_are_honest(drift_of):
    found = [drift_of(fair_table(seed, rows)) for seed in range(40) for rows in (700, 3000)]
    assert all(drift.passed for drift in found)
    assert found[-1].columns == 5  # not the counter, the constant, nor the empty column
    assert found[-1].comparisons == 5 * 4
    below = {level: sum(drift.p < level for drift in found) for level in (0.1, 0.5)}
    assert 1 <= below[0.1] <= 16  # 8 expected of 80
    assert below[0.5] >= 10
    assert "no drift found" in str(found[0])


def shift(table, size):
    """The last octave is fainter by so many standard deviations."""
    moved = table["mag"].to_numpy(copy=True)
    moved[8192:] += size * moved.std()
    return table.assign(mag=moved)


DRIFTS = {
    "sorted": (lambda table: table.sort_values("log_g"), "log_g"),
    "blocks": (lambda table: table.iloc[np.argsort(table["log_g"].to_numpy().round() % 4, kind="stable")], "log_g"),
    "late": (lambda table: shift(table, 0.15), "mag"),
    "trend": (lambda table: table.assign(mag=table["mag"] + np.linspace(0, 0.2, len(table))), "mag"),
    "early": (lambda table: table.assign(snr=table["snr"] * np.where(np.arange(len(table)) < 512, 1.2, 1)), "snr"),
    "spread": (lambda table: table.assign(mag=21 + (table["mag"] - 21) * np.linspace(0.8, 1.2, len(table))), "mag"),
}


@pytest.mark.parametrize("kind", DRIFTS)
def test_drifts_are_found(kind, drift_of):
    change, column = DRIFTS[kind]
    found = [drift_of(change(fair_table(seed)).reset_index(drop=True)) for seed in range(10)]
    assert not any(drift.passed for drift in found)
    assert {drift.column for drift in found} == {column}
    assert f"drifts: {column} in rows" in str(found[0])


def test_a_period_is_no_drift(drift_of):
    table = fair_table(0, 32_768).assign(mag=np.tile(np.arange(4.0), 8192))
    assert drift_of(table).passed


def test_small_sets(drift_of):
    assert octaves(10) == [0, 10]
    assert octaves(300) == [0, 128, 256, 300]
    assert octaves(1000) == [0, 256, 512, 1000]
    assert octaves(5000) == [0, 512, 1024, 2048, 4096, 5000]
    nothing = drift_of(fair_table(0, 20))
    assert (nothing.passed, nothing.comparisons) == (True, 0)
    assert "not tested" in str(nothing)
    assert not drift_of(fair_table(0, 300).sort_values("log_g")).passed
    assert Drift(**nothing.model_dump()) == nothing


def test_snr_is_computed_where_the_table_has_none(tmp_path, monkeypatch):
    files = write_simulation(tmp_path, Simulation(train=400, val=1, test=1, pixels=1024))["train"]
    original = module.open_spectra

    class WithoutSnr:
        def __init__(self, path):
            self.file = original(path)

        def __enter__(self):
            return self

        def __exit__(self, *arguments):
            self.file.__exit__(*arguments)

        def read_params(self, start, stop):
            return self.file.read_params(start, stop)[["log_g"]]

        def read(self, start, stop):
            flux, error = self.file.read(start, stop)
            return flux, error * np.float32(1 + start / 200)

    sources = [Source(path=str(path), rows=400, size=0, fingerprint="x") for path in files]
    assert find_drift(sources).passed
    monkeypatch.setattr(module, "open_spectra", WithoutSnr)
    drift = find_drift(sources)
    assert (drift.passed, drift.column, drift.columns) == (False, "snr", 2)


def test_positions_are_a_permutation_fixed_by_the_seed():
    for rows in (1, 2, 1000):
        assert sorted(study_positions(rows, 3)) == list(range(rows))
    assert study_positions(1000, 3)[:4].tolist() == study_positions(1000, 3)[:4].tolist()
    assert study_positions(1000, 3).tolist() != study_positions(1000, 4).tolist()
    expected = np.random.Generator(np.random.Philox(key=[3, 0])).permutation(1000)
    assert study_positions(1000, 3).tolist() == expected.tolist()
