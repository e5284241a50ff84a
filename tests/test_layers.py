"""Imports point one way: data, model ← training ← baselines ← study ← sweep, inference ← commands.

Analysis knows rows and nothing of Ray or torch.

Within the analysis: laws ← points ← fitting ← intervals ← answers ← report."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUDY, SWEEP, INFERENCE = "scaling.study", "scaling.sweep", "scaling.inference"
TRANSFORMERS = ["transformers", "scaling.model.modeling_specvit"]  # seconds to import: not in a trial, nor in a plan
ABOVE_STUDY = [SWEEP, INFERENCE, "scaling.inspect", "scaling.commands", "scaling.__main__", "experiments"]
FORBIDDEN = {
    "scaling/data": ["scaling.model", "scaling.training", STUDY, "analysis", *ABOVE_STUDY],
    "scaling/model": ["ray", "scaling.data", "scaling.training", STUDY, "analysis", *ABOVE_STUDY],
    "scaling/training": [STUDY, "scaling.baselines", "analysis", "optuna", *TRANSFORMERS, *ABOVE_STUDY],
    "scaling/baselines": ["ray", STUDY, "analysis", "optuna", *TRANSFORMERS, *ABOVE_STUDY],
    "scaling/study": ["ray", "optuna", "analysis", *TRANSFORMERS, *ABOVE_STUDY],
    "scaling/sweep": [
        INFERENCE,
        *TRANSFORMERS,
        "scaling.inspect",
        "scaling.commands",
        "scaling.__main__",
        "experiments",
    ],
    "scaling/inference": [SWEEP, "ray", "optuna", "analysis", "scaling.commands", "scaling.__main__", "experiments"],
    "analysis": ["ray", "torch", "optuna", "scaling.data", "scaling.model", "scaling.training", "experiments"],
    "experiments": ["ray", "torch", "analysis", "scaling.data", "scaling.training"],
}
ROOMS = ("laws", "points", "fitting", "intervals", "answers", "report")
FORBIDDEN |= {
    f"analysis/{room}": [f"analysis.{later}" for later in ROOMS[place + 1 :]] + ["analysis.__main__"]
    for place, room in enumerate(ROOMS)
}
ANALYSIS_MAY_USE = {"scaling.results", "scaling.console", "scaling.errors", "scaling.files", "scaling.parse"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            for forbidden in FORBIDDEN[package]:
                assert not f"{name}.".startswith(f"{forbidden}."), f"{path} imports {name}"


def test_analysis_uses_only_rows_and_what_parses_them_of_the_harness():
    for path in (ROOT / "analysis").rglob("*.py"):
        modules = {n for n in imported(path) if n.startswith("scaling")}
        allowed = {
            n for n in modules for m in ANALYSIS_MAY_USE if f"{n}.".startswith(f"{m}.") or f"{m}.".startswith(f"{n}.")
        }
        outside = modules - allowed
        assert not outside, f"{path} imports {outside}"


def test_what_the_analysis_imports_of_the_harness_is_light():
    light = (
        "scaling/__init__.py",
        "scaling/errors.py",
        "scaling/files.py",
        "scaling/parquet.py",
        "scaling/parse.py",
        "scaling/results.py",
    )
    for name in light:
        assert not {n.split(".")[0] for n in imported(ROOT / name)} & {"ray", "torch", "optuna", "transformers"}
