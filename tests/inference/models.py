"""A trained model and the commands that use it, for tests."""

import contextlib
import dataclasses
from pathlib import Path

import h5py
import pandas as pd

from scaling.__main__ import main
from scaling.data.batches.evaluation import evaluation_pin
from scaling.study.declaration import Cell, Data, DataRules, Sources
from scaling.study.store import Store, StudyFolder
from scaling.sweep.trial import Trial
from tests.study.example import example_study

RULES = {
    "one label": DataRules(noise="fixed"),
    "bf16, other noise": DataRules(noise="fixed", noise_level=2.0, eval_seed=7, eval_draws=2),
    "three labels": DataRules(
        noise="fixed", other_labels=("T_eff", "M_H"), label_norm="minmax", input_norm="per_pixel"
    ),
    "classes": DataRules(noise="fixed", boundary=2.5),
}


def study_of(shards, rules, precision="fp32"):
    source = Sources(shards=Path(shards), train=(Path("a.h5"),), val=Path("b.h5"), test=Path("c.h5"))
    study = example_study(data=Data(source=source, num_spectra=(128, 256), rules=rules))
    return dataclasses.replace(study, recipe=dataclasses.replace(study.recipe, precision=precision))


def trained(shards, cache_root, store, rules, precision="fp32"):
    """A trial of a few steps, run in this process: its study, model file and row."""
    study = study_of(shards, rules, precision)
    trial = Trial(
        study=study,
        folder=StudyFolder(Store(str(store)), study.name),
        shards=shards,
        cache_root=cache_root,
        cell=Cell(width=8, num_spectra=256, seed=1),
        number=0,
        lr=1e-2,
        access="mapped",
        fingerprint="f",
        eval_pin=evaluation_pin(shards, rules),
        code_commit="unknown",
    )
    trial.run(lambda _: None)
    return study, store / "example" / "trials" / trial.key / "model.safetensors", trial.output.read_row()


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def mistake(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def predicted(path):
    return pd.read_parquet(path)


@contextlib.contextmanager
def own_spectra(shards, path):
    """A copy of the test spectra to change."""
    path.write_bytes((shards.parent / "hdf5" / "test" / "dataset.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        yield file
