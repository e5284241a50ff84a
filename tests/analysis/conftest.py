"""Two measured grids of small runs, and rows made from a grid."""

import dataclasses
import json
from dataclasses import dataclass
from typing import get_type_hints

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.laws import CHINCHILLA
from analysis.points.example import example_rows
from analysis.points.table import Points
from analysis.report.findings import find
from scaling.results import Row, to_table

KINDS = get_type_hints(Row)
N, D = (axis.ravel() for axis in np.meshgrid(1e3 * 4.0 ** np.arange(5), 500 * 4.0 ** np.arange(5), indexing="ij"))
TRUTH = {"E": 0.1, "A": 6.0, "alpha": 0.5, "B": 8.0, "beta": 0.6}
"""Of 25 runs that follow Chinchilla's form."""

STUDY_FIGURES = {
    "backtest",
    "error_against_data",
    "error_against_size",
    "error_budgets",
    "error_surface",
    "held_out",
    "learning_rates",
    "profiles",
    "residuals",
}
"""What is drawn of the demo's rows."""


@dataclass(frozen=True)
class Grid:
    """Test MAE in dex, (sizes, data); the last size and the last D are what one would hold out."""

    sizes: np.ndarray
    data: np.ndarray
    mae: np.ndarray

    @property
    def held(self):
        held = np.zeros(self.mae.shape, bool)
        held[-1] = held[:, -1] = True
        return held

    def points(self, chosen=None):
        chosen = np.ones(self.mae.shape, bool) if chosen is None else chosen
        n, d = np.meshgrid(self.sizes.astype(float), self.data.astype(float), indexing="ij")
        return Points(N=n[chosen], D=d[chosen], loss=self.mae[chosen])


FRESH_NOISE_FIXED_EPOCHS = Grid(
    sizes=np.array([813, 2009, 8833, 29953, 159041]),
    data=1024 * 2 ** np.arange(6),
    mae=np.array(
        [
            [0.495, 0.445, 0.411, 0.388, 0.365, 0.317],
            [0.449, 0.398, 0.339, 0.250, 0.172, 0.163],
            [0.395, 0.351, 0.278, 0.211, 0.137, 0.112],
            [0.389, 0.322, 0.240, 0.175, 0.115, 0.098],
            [0.358, 0.303, 0.219, 0.141, 0.107, 0.087],
        ]
    ),
)
FIXED_NOISE_FIXED_SAMPLES = Grid(
    sizes=np.array([813, 2009, 8833, 29953]),
    data=512 * 2 ** np.arange(6),
    mae=np.array(
        [
            [0.539, 0.474, 0.414, 0.367, 0.363, 0.367],
            [0.499, 0.381, 0.327, 0.227, 0.228, 0.200],
            [0.395, 0.329, 0.259, 0.203, 0.205, 0.165],
            [0.377, 0.278, 0.197, 0.169, 0.147, 0.133],
        ]
    ),
)


def row(**changes):
    """A finished trial; any field by name."""
    values = {name: {int: 1, float: 1.0, bool: False}.get(kind, "") for name, kind in KINDS.items()}
    values |= {
        "study": "synthetic",
        "family": "specvit",
        "rung": "w4",
        "num_spectra": 1024,
        "samples_seen": 262_144,
        "noise": "fixed",
        "budget": "samples",
        "lr": 1e-3,
        "label": "log_g",
        "label_std": 1.2,
        "val_mae_dex": 0.3,
        "test_mae_dex": 0.3,
        "test_mae_sem_dex": 0.004,
        "num_test": 8192,
        "eval_pin": "pin-a",
        "status": "done",
        "device": "cpu",
        "precision": "fp32",
        "code_commit": "abc1234",
        "versions": '{"torch": "2.13"}',
    }
    return Row(**(values | changes))


def frame(rows):
    return to_table(list(rows)).to_pandas()


def study_rows(grid, *, rates=(3e-4, 1e-3, 3e-3), seeds=(0,), scatter=0.0, **changes):
    """Rows of a study on a grid: a parabola over the learning rates, whose best is the middle one."""
    rng = np.random.default_rng(1)
    made = []
    for i, n in enumerate(grid.sizes):
        for j, d in enumerate(grid.data):
            for seed in seeds:
                for rate in rates:
                    cell = f"w{i}-{d}-{seed}"
                    loss = grid.mae[i, j] * (1 + 0.3 * np.log10(rate / 1e-3) ** 2) * np.exp(rng.normal(0, scatter))
                    made.append(
                        row(
                            cell=cell,
                            trial=f"{cell}-{rate:g}",
                            rung=f"w{i}",
                            num_params=int(n),
                            num_spectra=int(d),
                            seed=seed,
                            lr=rate,
                            held_out=bool(grid.held[i, j]),
                            val_mae_dex=loss,
                            test_mae_dex=loss,
                            **changes,
                        )
                    )
    return made


@pytest.fixture(scope="session")
def example():
    """What the report finds in the example's table."""
    return find(example_rows(), bootstrap=60)


@pytest.fixture
def only_svg(monkeypatch):
    """Reports have their figures as SVG alone: PDF and PNG take longer than the fits."""
    monkeypatch.setattr("analysis.report.figures.FORMATS", ("svg",))


@pytest.fixture
def no_figures(monkeypatch):
    """Reports have no figures."""
    monkeypatch.setattr("analysis.report.pictures._figures", lambda *_: {})


@pytest.fixture(params=["fresh noise, fixed epochs", "fixed noise, fixed samples"])
def grid(request):
    return FRESH_NOISE_FIXED_EPOCHS if request.param.startswith("fresh") else FIXED_NOISE_FIXED_SAMPLES


@pytest.fixture(scope="session")
def make_rows():
    """A results table of finished trials, each given by the fields in which it differs."""
    return lambda changes: frame(row(**change) for change in changes)


@pytest.fixture(scope="session")
def demo_rows():
    """A study with three learning rates, two seeds, a baseline, a diverged and a failed trial."""
    rows = study_rows(FIXED_NOISE_FIXED_SAMPLES, seeds=(0, 1), scatter=0.02)
    nothing = dict.fromkeys(
        [
            name
            for name, kind in KINDS.items()
            if kind is float and (name.startswith(("val_", "test_")) or name == "best_epoch")
        ],
        float("nan"),
    )
    rows[0] = dataclasses.replace(rows[0], status="diverged", error="loss is not finite at step 40", **nothing)
    rows += [
        row(
            cell="lost",
            trial="lost-0",
            num_params=813,
            num_spectra=512,
            seed=9,
            status="failed",
            error="killed",
            **nothing,
        ),
        row(
            cell="ridge",
            trial="ridge-0",
            family="ridge",
            rung="ridge",
            num_params=1025,
            num_spectra=4096,
            test_mae_dex=0.51,
        ),
    ]
    return frame(rows)


@pytest.fixture
def grid_frame(grid):
    points = grid.points()
    return pd.DataFrame({"N": points.N, "D": points.D, "loss": points.loss})


@pytest.fixture
def table(tmp_path):
    """Writes a table of 25 runs, with some of its columns replaced, and returns its path."""

    def write(name="runs.csv", **columns):
        loss = CHINCHILLA.predict(TRUTH, N, D) * np.exp(np.random.default_rng(0).normal(0, 0.01, len(N)))
        frame = pd.DataFrame({"N": N, "D": D, "loss": loss}).assign(**columns)
        path = tmp_path / name
        frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
        return path

    return write


@pytest.fixture
def run(tmp_path):
    """Runs a fit and returns its JSON; the exit status must be as expected."""

    def fit(path, *options, status=0, bootstrap=40):
        out = tmp_path / "fit.json"
        arguments = ["fit", str(path), "--bootstrap", str(bootstrap), *map(str, options), "--json", str(out)]
        assert main(arguments) == status
        return json.loads(out.read_text())

    return fit
