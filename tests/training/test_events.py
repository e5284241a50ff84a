"""TensorBoard's files of a trial: followed while they grow, and complete where HPARAMS looks."""

import math

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata

from scaling.study.store import Store, StudyFolder
from scaling.training.events import CurveFile, final_events

SETTINGS = {"num_params": 813, "lr": 1e-2, "precision": "fp32"}
NAME = "events.out.tfevents.trial"


def curve(points, start=100.0, share=1.0):
    return [
        {
            "step": 4.0 * (1 + n),
            "epoch": n + 1.0,
            "budget_share": share,
            "val_mae_dex": 1 / (n + 1),
            "lr": 1e-3,
            "time": start + n,
        }
        for n in range(points)
    ]


def written(points, settings=SETTINGS):
    """The file of a whole curve."""
    return CurveFile(settings).of(points)


@pytest.fixture
def trial(tmp_path):
    return StudyFolder(Store(str(tmp_path)), "mine").trial("w4-t00")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "mine" / "trials" / "w4-t00"


def values(path):
    """tag → its values, and plugin data by tag."""
    scalars, plugin = {}, {}
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME:
                plugin[value.tag] = value.metadata.plugin_data.content
            else:
                scalars.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return scalars, plugin


def test_a_followed_file_grows_in_place_even_after_a_write_that_was_cut_short(trial, folder):
    trial.write_progress("", written(curve(1)))
    with (folder / NAME).open("rb") as followed:
        read = followed.read()
        trial.write_progress("", written(curve(3)))
        whole = followed.read()
        assert read + whole == (folder / NAME).read_bytes()
        (folder / NAME).write_bytes((read + whole)[:-7])
        trial.write_progress("", written(curve(4)))
    scalars, _ = values(folder / NAME)
    assert [step for step, _ in scalars["curve/val_mae_dex"]] == [4, 8, 12, 16]
    assert set(scalars) == {"curve/val_mae_dex", "curve/lr"}


def test_a_growing_curve_is_encoded_point_by_point_as_at_once():
    file, points = CurveFile(SETTINGS), [*curve(3, share=0.25), *curve(4)]
    for length in (2, 3, 3, 7):
        assert file.of(points[:length]) == written(points[:length])


def test_a_trial_that_restarts_replaces_its_curve(trial, folder):
    trial.write_progress("", written(curve(3)))
    trial.write_progress("", written(curve(4, start=200.0), SETTINGS | {"lr": 2e-2}))
    assert len(values(folder / NAME)[0]["curve/val_mae_dex"]) == 4
    trial.write_progress("", written(curve(1, start=300.0)))
    assert len(values(folder / NAME)[0]["curve/val_mae_dex"]) == 1


def test_a_branch_has_tags_of_its_own(trial, folder):
    trial.write_progress("", written([*curve(2, share=0.25), *curve(1)]))
    scalars, _ = values(folder / NAME)
    assert len(scalars["curve at 0.25 of the budget/val_mae_dex"]) == 2
    assert len(scalars["curve/val_mae_dex"]) == 1


def test_hparams_has_every_trial_with_the_metrics_that_are_numbers(trial, folder):
    metrics = {"test_mae_dex": 0.25, "mfu": math.nan}
    trial.write_progress("", written(curve(1)))
    trial.write_final_events(final_events(SETTINGS, metrics, "val_mae_dex", ended_well=True))
    _, live = values(folder / NAME)
    scalars, final = values(folder / f"{NAME}-final")
    for found in (live, final):
        start = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG])
        assert {name: v.number_value or v.string_value for name, v in start.hparams.items()} == SETTINGS
    assert scalars == {"final/test_mae_dex": [(0, 0.25)]}
    experiment = metadata.parse_experiment_plugin_data(final[metadata.EXPERIMENT_TAG])
    assert [m.name.tag for m in experiment.metric_infos] == ["final/test_mae_dex", "final/mfu", "curve/val_mae_dex"]
    assert {info.name for info in experiment.hparam_infos} == set(SETTINGS)


def test_no_scratch_folder_is_needed(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a full disk"))
    assert written(curve(1))
    assert final_events(SETTINGS, {"mfu": 0.5}, "val_mae_dex", ended_well=False)
