"""What the command line refuses and explains: odd files, odd numbers, designs that say little, forms that few expect."""

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.laws import LAWS
from benchmarks.coverage import TRUTHS


def test_text_separated_by_tabs_or_semicolons_is_read_as_well(table, run):
    expected = run(table(), "--form", "chinchilla")["parameters"]
    frame = pd.read_csv(table())
    for name, separator in (("runs.tsv", "\t"), ("runs.csv", ";"), ("runs.txt", ",")):
        path = table(name)
        frame.to_csv(path, sep=separator, index=False)
        assert run(path, "--form", "chinchilla")["parameters"] == expected


@pytest.mark.parametrize("value", [1e-300, 1e300])
def test_a_number_that_no_unit_explains_is_refused_in_a_line(table, capsys, value):
    frame = pd.read_csv(table())
    frame.loc[3, "loss"] = value
    path = table()
    frame.to_csv(path, index=False)
    assert main(["fit", str(path)]) == 2
    assert f"{value:.3g}" in capsys.readouterr().err


def test_sizes_that_move_together_give_neither_a_budget_nor_a_best_size(table, run, capsys):
    path, sizes, rng = table(), np.geomspace(1e6, 1e9, 12), np.random.default_rng(0)
    data = 20 * sizes * np.exp(rng.normal(0, 0.03, 12))
    loss = (1.7 + 400 * sizes**-0.35 + 900 * data**-0.37) * np.exp(rng.normal(0, 0.003, 12))
    pd.DataFrame({"N": sizes, "D": data, "loss": loss}).to_csv(path, index=False)
    found = run(path, "--form", "tied", "--at", "4e9,8e10")
    assert (found["budget"], found["allocation"]["exponent"]) == (None, None)
    assert "N and D move together" in found["allocation"]["words"]
    assert "N and D move together" in capsys.readouterr().err


def test_a_form_that_few_expect_is_explained_beside_chinchillas(table, run, capsys):
    frame = pd.read_csv(table())
    loss = LAWS["gamma"].predict(TRUTHS["gamma"], frame["N"], frame["D"])
    found = run(table(N=frame["N"], D=frame["D"], loss=loss * np.exp(np.random.default_rng(0).normal(0, 0.01, 25))))
    assert found["form"] == "gamma"
    words = found["beside_chinchilla"]
    assert words.startswith("gamma is selected over Chinchilla's form because its AICc is lower by")
    assert "Chinchilla's form alone forecasts" in words
    assert words in capsys.readouterr().out
