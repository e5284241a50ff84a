"""A running study's metrics, scraped by a real Prometheus; every query of the Grafana dashboard finds something there."""

import json
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from types import SimpleNamespace

import pytest

from cluster.environment import ROOT
from scaling.sweep.gauges import STATES, Gauges
from scaling.sweep.progress import Progress
from tests.cluster.nodes import a_head, ask, free_ports
from tests.study.example import example_row, example_study

DASHBOARD = json.loads((ROOT / "cluster" / "grafana.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


class Recorded:
    """Stands in for Ray's gauges and keeps what they were set to."""

    def __init__(self, kept, name, description, tag_keys):
        self.kept, self.name = kept, name
        assert description
        assert tag_keys[0] == "study"

    def set(self, value, tags):
        self.kept[self.name, *(tags[key] for key in sorted(tags) if key != "study")] = value


def test_gauges_say_what_the_progress_line_says(monkeypatch):
    kept = {}
    monkeypatch.setattr("scaling.sweep.gauges.Gauge", lambda name, **facts: Recorded(kept, name, **facts))
    study = example_study()
    rows = [
        example_row(status=status, trial=f"t{k}", lr=0.1 + k) for k, status in enumerate(("done", "pruned", "done"))
    ]
    progress = Progress(
        study,
        rows,
        lambda line: None,
        devices=lambda: {"CPU": 4.0},
        remaining=lambda: [(study.cells()[0], 3)],
        gauges=Gauges("example"),
    )
    progress.started("t9", study.cells()[1])
    progress.measured("t9", {"step": 4, "val_mae_dex": 0.3, "host": "n1", "cache_bytes": 4096})
    trials = {state: kept["scaling_trials", state] for state in STATES}
    assert trials == {"running": 1, "waiting": 2, "done": 2, "pruned": 1, "diverged": 0, "failed": 0}
    assert (kept["scaling_cells", "done"], kept["scaling_cells", "all"]) == (3, 4)
    assert (kept["scaling_devices", "CPU", "busy"], kept["scaling_devices", "CPU", "there"]) == (1, 4)
    assert kept["scaling_best_error",] == rows[0].val_error
    assert kept["scaling_samples_per_second", "w4"] == rows[0].samples_per_second
    assert kept["scaling_node_cache_bytes", "n1"] == 4096
    progress.add(rows[0])  # a row that is there counts once
    assert kept["scaling_trials", "done"] == 2


def test_the_dashboard_asks_for_metrics_that_there_are(monkeypatch):
    names = {}
    monkeypatch.setattr("scaling.sweep.gauges.Gauge", lambda name, **facts: names.setdefault(name, SimpleNamespace()))
    Gauges("example")
    asked = {
        word for query in QUERIES for word in query.replace("(", " ").replace("{", " ").split() if "scaling_" in word
    }
    assert asked == {f"ray_{name}" for name in names}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.rehearsal
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus (Debian's package)")
def test_a_real_prometheus_finds_them_while_a_study_runs(tmp_path):
    (port,) = free_ports(1)
    with a_head(cpus=2) as (head, url, _), tempfile.TemporaryDirectory() as data:
        discovery = f"{head.folder}/ray/prom_metrics_service_discovery.json"
        scrape = {"job_name": "ray", "scrape_interval": "1s", "file_sd_configs": [{"files": [discovery]}]}
        (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))
        command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={data}"]
        prometheus = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            started = time.time()
            done = ask(url, "submit", "experiments.smoke", "--store", tmp_path / "store", "--cache", tmp_path / "cache")
            assert done.returncode == 0, done.stdout + done.stderr
            found = {query: over_time(port, query, started) for query in QUERIES}
        finally:
            prometheus.kill()
            prometheus.wait()
    empty = [query for query, series in found.items() if not series and "gpus" not in query]
    assert not empty
    by_state = {series["metric"]["state"]: series["values"] for series in found[QUERIES[0]]}
    assert max(float(value) for _, value in by_state["done"]) > 3
    assert max(float(value) for _, value in by_state["running"]) >= 1
    shares = [float(value) for series in found[QUERIES[3]] for _, value in series["values"]]
    assert 0.4 < max(shares) <= 1  # Ray exports every 10 s what is true then


def over_time(port, query, started):
    """The series of a query, all studies, since a time."""
    words = {"query": query.replace("$study", ".*"), "start": started, "end": time.time(), "step": "1s"}
    address = f"http://127.0.0.1:{port}/api/v1/query_range?{urllib.parse.urlencode(words)}"
    answer = json.loads(urllib.request.urlopen(address).read())
    assert answer["status"] == "success"
    return answer["data"]["result"]
