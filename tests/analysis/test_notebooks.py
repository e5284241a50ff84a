"""The notebooks run from top to bottom, make their figures, and are committed without output."""

from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from tests.analysis.conftest import STUDY_FIGURES

FOLDER = Path(__file__).parents[2] / "analysis" / "notebooks"


def execute(name, folder, **parameters):
    """Run a notebook in `folder` with some of its parameters changed; returns all that it printed or showed."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    place = next(k for k, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    changed = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(changed))
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", timeout=120, resources=where).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


def figures(folder):
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "pdf", "png")
    }
    return names


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_committed_without_output(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert max(len(cell.source.splitlines()) for cell in code) < 40


@pytest.mark.slow
def test_a_results_table_gives_all_figures(demo_rows, tmp_path):
    demo_rows.to_parquet(tmp_path / "results.parquet")
    printed = execute("scaling_laws", tmp_path, TABLE="results.parquet", BOOTSTRAP=60)
    assert "held-out runs lie within their 90 % interval" in printed
    assert "made up" not in printed
    assert figures(tmp_path) == STUDY_FIGURES


def test_five_points_work_out_of_the_box(tmp_path):
    printed = execute("one_curve", tmp_path, BOOTSTRAP=60)
    assert "m2: E 0.35" in printed
    assert "best 0.360" in printed
    assert figures(tmp_path) == {"one_curve", "one_curve_profiles"}


def test_a_users_own_curve(tmp_path):
    x = [100, 200, 400, 800, 1600, 3200]
    pd.DataFrame({"tokens": x, "nats": [2 + 8 * n**-0.5 for n in x]}).to_csv(tmp_path / "mine.csv", index=False)
    printed = execute("one_curve", tmp_path, TABLE="mine.csv", X="tokens", ERROR="nats", BOOTSTRAP=60)
    assert "best 2.00" in printed
    assert figures(tmp_path) == {"one_curve", "one_curve_profiles"}
