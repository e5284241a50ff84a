"""What Tune does with its own folder in a store."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import bombs


@pytest.mark.ray
@pytest.mark.slow
def test_the_error_of_a_lost_trial_is_not_unpickled_from_the_store(ray_cluster, tmp_path):
    from ray import tune

    from scaling.sweep.tuning import Starts

    mark, planted = tmp_path / "mark", []

    class Plant(tune.Callback):
        def on_experiment_end(self, trials, **info):
            for trial in trials:
                planted.append(Path(trial.storage.trial_fs_path, "error.pkl"))
                planted[-1].parent.mkdir(parents=True, exist_ok=True)
                planted[-1].write_bytes(bombs.pickled(mark))

    starts = Starts(SimpleNamespace(on_trial_start=lambda trial_id: None))
    config = tune.RunConfig(name="tune", storage_path=str(tmp_path), verbose=0, callbacks=[starts, Plant()])
    found = tune.Tuner(lambda _: os._exit(1), run_config=config).fit()
    assert found.num_errors == 1
    assert planted[0].read_bytes() == bombs.pickled(mark)
    assert not mark.exists()
