"""The same trial on both hosts, and with two workers, gives the same losses."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.multiprocessing
import xxhash

from scaling.data.batches.rules import DataRules
from scaling.errors import NodeError, UserError
from scaling.model.ladder import Ladder
from scaling.training.device import Device
from scaling.training.recipe import Budget, Recipe
from scaling.training.task import Outcome, Task
from scaling.training.trainer import Job, _run, run_in_process, run_under_ray_train
from tests.data.shards.converting import damage

COLUMNS = ["step", "train_loss", "val_mae_dex", "val_r2", "lr"]


@dataclasses.dataclass(frozen=True)
class LocalFolder:
    """A trial's folder; picklable, as Ray Train's workers need it."""

    path: Path

    def write_progress(self, csv: str, events: bytes) -> None:
        (self.path / "progress.csv").write_text(csv)
        (self.path / "events.out.tfevents.trial").write_bytes(events)

    @property
    def state_place(self) -> str:
        return str(self.path / "state.pt")

    def write_state(self, content: bytes) -> None:
        (self.path / "state.pt").write_bytes(content)

    def set_state_aside(self) -> None:
        (self.path / "state.pt").rename(self.path / "state.pt.damaged")

    def read_state(self) -> bytes | None:
        with (self.path / "attempts").open("a") as file:
            file.write(".")
        file = self.path / "state.pt"
        return file.read_bytes() if file.exists() else None

    def finish(self, outcome: Outcome, device: Device) -> None:
        """Keep what is compared, once."""
        assert not (self.path / "outcome.pt").exists()
        torch.save(
            {"test": outcome.test.mae, "weights": outcome.weights, "device": device.name}, self.path / "outcome.pt"
        )

    def curve(self) -> pd.DataFrame:
        return pd.read_csv(self.path / "progress.csv")

    def outcome(self) -> dict:
        return torch.load(self.path / "outcome.pt", weights_only=True)


def small_job(shards, cache_root, parent, name: str, *, streamed: bool = False, **changes) -> Job:
    """A trial of a few steps that keeps all it leaves in a folder of its name."""
    folder = LocalFolder(parent / name)
    folder.path.mkdir()
    task = Task(
        shards=shards,
        cache_root=cache_root,
        rules=DataRules(noise="fixed"),
        num_spectra=200,
        model=Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0).rung(8),
        recipe=Recipe(
            budget=Budget(epochs=4),
            batch_size=64,
            precision="fp32",
            evaluations=4,
            schedule_unit="step",
            warmup=0.1,
        ),
        lr=5e-3,
        seed=7,
        access="streamed" if streamed else "auto",
    )
    return Job(name=name, identity=f"{task.lr}", task=task, folder=folder, finish=folder.finish, **changes)


@pytest.fixture
def make_job(shards, cache_root, tmp_path, monkeypatch):
    monkeypatch.setattr("scaling.training.trainer.REPORT_SECONDS", 0.0)  # every evaluation is forwarded
    return functools.partial(small_job, shards, cache_root, tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_both_hosts_give_the_same_losses(make_job, ray_cluster, tmp_path):
    alone, hosted = make_job("process"), make_job("ray-train-1")
    forwarded, brought = [], []
    run_in_process(alone, forwarded.append)
    run_under_ray_train(hosted, str(tmp_path / "storage"), brought.append, max_failures=0)
    expected = alone.folder.curve()[COLUMNS]
    assert [metrics["val_mae_dex"] for metrics in forwarded] == list(expected["val_mae_dex"])
    assert (brought[0], brought[1]["val_mae_dex"]) == ({"began": 1.0}, expected["val_mae_dex"][0])
    pd.testing.assert_frame_equal(hosted.folder.curve()[COLUMNS], expected, check_exact=True)
    assert hosted.folder.outcome()["test"] == alone.folder.outcome()["test"]


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_that_stream_give_the_losses_of_one(make_job, ray_cluster, tmp_path):
    alone, two = make_job("process", streamed=True), make_job("ray-train-2", streamed=True, workers=2)
    run_in_process(alone, lambda metrics: None)
    run_under_ray_train(two, str(tmp_path / "storage"), max_failures=0)
    pd.testing.assert_frame_equal(two.folder.curve()[COLUMNS], alone.folder.curve()[COLUMNS], rtol=2e-5)
    assert two.folder.outcome()["test"] == pytest.approx(alone.folder.outcome()["test"], rel=2e-5)


@pytest.mark.ray
@pytest.mark.slow
def test_a_damaged_shard_ends_all_workers_at_once_with_one_line(make_job, shards, ray_cluster, tmp_path):
    shutil.copytree(shards, tmp_path / "damaged")
    damage(tmp_path / "damaged" / "train" / "part-00001.parquet", at=0.3)
    job = make_job("ray-train-2", streamed=True, workers=2)
    # Of 200 spectra each worker streams one shard: the other one waits for this one in the gradient's all-reduce.
    job = dataclasses.replace(job, task=dataclasses.replace(job.task, shards=tmp_path / "damaged"))
    with pytest.raises(UserError, match=r"part-00001\.parquet: this shard cannot be read") as raised:
        run_under_ray_train(job, str(tmp_path / "storage"), max_failures=0)
    assert "\n" not in str(raised.value)
    assert (job.folder.path / "attempts").read_text() == ".", "once, for both workers"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_pytorch_cannot_use_is_an_error_of_the_node(make_job):
    with pytest.raises(NodeError, match="cannot use the GPU"):
        run_in_process(make_job("process", gpus=0.5), ignore)


def _gloo_worker(rank, port, job, kill_at):
    """One of two workers, killed once it has reported a step."""
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def forward(metrics):
        if metrics["step"] == kill_at:
            while not (job.folder.path / "progress.csv").is_file():  # a thread of rank 0 writes it after the state
                time.sleep(0.01)
            torch.distributed.barrier()
            os.kill(os.getpid(), signal.SIGKILL)

    _run(job, forward, rank=rank, world=2, device=torch.device("cpu"))
    torch.distributed.destroy_process_group()


def run_on_two(job, port, kill_at=None):
    killed = (
        contextlib.nullcontext() if kill_at is None else pytest.raises(torch.multiprocessing.ProcessExitedException)
    )
    with killed:
        torch.multiprocessing.spawn(_gloo_worker, (port, job, kill_at), nprocs=2)


@pytest.mark.slow
def test_a_trial_that_loses_and_gains_workers_has_the_losses_of_one_worker(make_job, free_port):
    alone, job = make_job("alone"), make_job("elastic")
    run_in_process(alone, ignore)
    run_on_two(job, free_port, kill_at=4)
    assert list(job.folder.curve()["step"]) == [4]
    run_killed(job, at=12)
    run_on_two(job, free_port)
    pd.testing.assert_frame_equal(job.folder.curve()[COLUMNS], alone.folder.curve()[COLUMNS], rtol=2e-5)
    assert job.folder.outcome()["test"] == pytest.approx(alone.folder.outcome()["test"], rel=2e-5)
    read = len((job.folder.path / "attempts").read_text())
    assert read == 3, "the state is read by one worker for both"


def test_the_curve_is_kept_for_tensorboard(make_job):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    job = make_job("process")
    run_in_process(job, lambda metrics: None)
    events = list(EventFileLoader(str(job.folder.path / "events.out.tfevents.trial")).Load())
    curve = job.folder.curve()
    steps = [event.step for event in events if event.HasField("summary")]
    assert sorted(set(steps)) == list(curve["step"])
    tags = {value.tag for event in events for value in event.summary.value}
    assert {"curve/val_mae_dex", "curve/train_loss", "curve/lr"} <= tags


class KilledError(Exception):
    pass


def run_killed(job, at=8):
    """Run a job until it has reported this step."""

    def kill(metrics):
        if metrics["step"] == at:
            raise KilledError

    with pytest.raises(KilledError):
        run_in_process(job, kill)


def ignore(metrics):
    pass


def test_a_resumed_curve_has_no_point_twice(make_job):
    whole, job = make_job("whole"), make_job("process")
    run_in_process(whole, ignore)
    run_killed(job)
    run_in_process(job, ignore)
    assert np.array_equal(job.folder.curve()["step"], whole.folder.curve()["step"])
    assert np.array_equal(job.folder.curve()["val_mae_dex"], whole.folder.curve()["val_mae_dex"])


def test_a_state_of_another_configuration_is_refused_by_name(make_job):
    job = make_job("process")
    run_killed(dataclasses.replace(job, identity="another"))
    state = job.folder.read_state()
    with pytest.raises(
        UserError, match=r"process/state\.pt: this unfinished trial was begun under another declaration"
    ):
        run_in_process(job, ignore)
    assert job.folder.read_state() == state, "nothing is lost"


def test_a_state_of_another_setting_is_replaced(make_job):
    whole, job = make_job("whole"), make_job("process")
    run_in_process(whole, ignore)
    run_killed(dataclasses.replace(job, setting="0.1", task=dataclasses.replace(job.task, lr=0.1)))
    run_in_process(job, ignore)
    assert_same(job, whole)


def assert_same(job, other):
    pd.testing.assert_frame_equal(job.folder.curve()[COLUMNS], other.folder.curve()[COLUMNS], check_exact=True)
    assert job.folder.outcome()["test"] == other.folder.outcome()["test"]


def signed(change):
    """Damages a state's content, or replaces it, and signs it again."""

    def damage(content):
        head, _, body = content.partition(b"\n")
        saved = torch.load(io.BytesIO(body), weights_only=True)
        replaced = change(saved)
        if replaced is None:
            file = io.BytesIO()
            torch.save(saved, file)
            replaced = file.getvalue()
        fields = json.loads(head) | {"checksum": xxhash.xxh3_128_hexdigest(replaced)}
        return json.dumps(fields).encode() + b"\n" + replaced

    return damage


def another_shape(saved):
    saved["loop"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)


DAMAGES = {
    "no state of PyTorch": signed(lambda saved: b"PK garbage"),
    "code in a pickle": signed(lambda saved: pickle.dumps(print)),
    "no progress": signed(lambda saved: saved["loop"].__delitem__("progress")),
    "no curve": signed(lambda saved: saved["curve"].clear()),
    "another model": signed(lambda saved: saved["loop"]["model"].__delitem__("head.bias")),
    "another shape": signed(another_shape),
    "a step beyond the run": signed(lambda saved: saved["loop"]["progress"].update(step=10**6)),
    "weights that are none": signed(lambda saved: saved["loop"]["progress"].update(best_weights={"x": 1})),
    "torn": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a flipped bit": lambda content: content[:-5000] + bytes([content[-5000] ^ 1]) + content[-4999:],
    "zeros": lambda content: bytes(len(content)),
    "no head": lambda content: b"{}\n" + content,
}


@pytest.mark.parametrize("damaged", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_is_set_aside_and_the_trial_restarts(make_job, damaged, caplog):
    whole, job = make_job("whole"), make_job("process")
    run_in_process(whole, ignore)
    run_killed(job)
    content = damaged(job.folder.read_state())
    job.folder.write_state(content)
    run_in_process(job, ignore)
    assert_same(job, whole)
    assert (job.folder.path / "state.pt.damaged").read_bytes() == content
    assert f"{job.folder.path}/state.pt: damaged" in caplog.text
