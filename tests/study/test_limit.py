import dataclasses
import json

import pytest

from scaling.data.batches.evaluation import evaluation_pin
from scaling.data.batches.rules import DataRules
from scaling.data.information import InformationLimit
from scaling.study import prepare
from scaling.study.declaration import Data, Sources
from scaling.study.prepare import keep_limit
from scaling.study.store import Store, StudyFolder
from tests.study.example import example_study


@pytest.fixture
def prepared(shards, monkeypatch):
    monkeypatch.setattr(prepare, "shards_path", lambda *_: shards)


@pytest.fixture
def folder(tmp_path):
    return StudyFolder(Store(str(tmp_path)), "example")


def changed(study, **rules):
    return dataclasses.replace(
        study, data=dataclasses.replace(study.data, rules=dataclasses.replace(study.data.rules, **rules))
    )


@pytest.mark.usefixtures("prepared")
def test_the_limit_of_a_simulated_study_is_kept_once(shards, folder, monkeypatch):
    study = example_study()
    keep_limit(study, folder)
    kept = json.loads(folder.read_limit())
    assert kept["label"] == "log_g"
    assert kept["rows"] == 96
    assert kept["eval_pin"] == evaluation_pin(shards, DataRules(noise="fixed"))
    with monkeypatch.context() as patch:
        patch.delattr(prepare, "information_limit")
        keep_limit(study, folder)  # works nothing out
    known = InformationLimit(**{name: value for name, value in kept.items() if name != "eval_pin"})
    for damage in (b"", b"{", b"[]", json.dumps(kept | {"mae_dex": "0.1"}).encode(), folder.read_limit()[:-20]):
        folder.write_limit(damage)
        with monkeypatch.context() as patch:
            patch.setattr(prepare, "information_limit", lambda *_, **__: known)
            keep_limit(study, folder)
        assert json.loads(folder.read_limit()) == kept
    keep_limit(changed(study, noise_level=2.0), folder)
    again = json.loads(folder.read_limit())
    assert again["mae_dex"] > 1.5 * kept["mae_dex"]
    assert again["eval_pin"] != kept["eval_pin"]


@pytest.mark.usefixtures("prepared")
def test_no_limit_where_the_spectra_do_not_determine_it(folder):
    assert "depend on T_eff, log_g, M_H only" in keep_limit(changed(example_study(), label="a_M"), folder)
    assert keep_limit(changed(example_study(), noise_level=0.0), folder) == ""
    assert keep_limit(changed(example_study(), boundary=3.0), folder) == ""
    assert folder.read_limit() is None


@pytest.mark.usefixtures("prepared")
def test_a_study_of_given_files_has_one_too(shards, folder, tmp_path):
    path = tmp_path / "dataset.h5"
    given = Data(
        source=Sources(shards=shards, train=(path,), val=path, test=path), num_spectra=(64,), rules=DataRules()
    )
    assert keep_limit(example_study(data=given), folder) == ""
    assert json.loads(folder.read_limit())["label"] == "log_g"


def test_no_limit_before_the_data_are_prepared(folder):
    keep_limit(example_study(), folder)
    assert folder.read_limit() is None
