"""The nodes of a cluster: what each offers, whether a study's trials fit them, and how trials there read their spectra."""

from __future__ import annotations

import math
import os
import shutil
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.data.shards.manifest import MANIFEST, Manifest
from scaling.errors import UserError
from scaling.files import Location, private_folder
from scaling.folder import Folder

if TYPE_CHECKING:  # these load torch, which the task on each node does without
    from scaling.data.batches.training import Access
    from scaling.study.declaration import Study

BYTES = 4
"""Of a pixel in a memory map: float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster: its devices, and the bytes that the folder of memory maps can hold, maps there included.

    `problem` says why it cannot take part; empty where it can.
    """

    host: str
    cpus: float
    gpus: float
    room: int
    problem: str = ""

    def workers(self, cpus: float, gpus: float) -> int:
        """Workers of this size that fit the node side by side."""
        fits = [there / each for there, each in ((self.cpus, cpus), (self.gpus, gpus)) if each > 0]
        return math.floor(min(fits) + 1e-9)


def survey(shards: Location, cache_root: Path) -> list[Node]:
    """Ask every node of the connected Ray cluster, with one task on each.

    Raises:
        UserError: a node does not see the shards, or cannot write its maps.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    ask = ray.remote(num_cpus=0, max_retries=0)(_look_around)
    answers = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            shards, cache_root, node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)
        )
        for node in alive
    ]
    nodes = ray.get(answers)
    if bad := next((node for node in nodes if node.problem), None):
        raise UserError(f"node {bad.host}: {bad.problem}")
    return nodes


def _look_around(shards: Location, cache_root: Path, cpus: float, gpus: float) -> Node:
    problem, room = "", 0
    try:
        if Folder.at(shards).size(MANIFEST) is None:
            problem = f"{Folder.at(shards).locate(MANIFEST)} is not there: put the shards where every node sees them"
    except OSError as error:
        problem = f"{shards}: cannot be read ({error}): put the shards where every node sees them"
    try:
        private_folder(cache_root)
        if not os.access(cache_root, os.W_OK):
            raise PermissionError("it is read-only")
        room = shutil.disk_usage(cache_root).free + _stored(cache_root)
    except (OSError, UserError) as error:
        problem = problem or f"{cache_root} cannot hold memory maps ({error}): give another folder with --cache"
    return Node(host=socket.gethostname(), cpus=cpus, gpus=gpus, room=room, problem=problem)


def _stored(folder: Path) -> int:
    """Bytes on disk of the files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def check_placements(study: Study, nodes: Iterable[Node]) -> None:
    """Compare what each trial's workers occupy with what the nodes have; a worker does not span nodes.

    Raises:
        UserError: naming the cell that can never run, what it needs and what there is.
    """
    nodes = list(nodes)
    for cell in study.cells():
        place = study.placement(cell)
        fewest = place.min_workers or place.workers
        if sum(node.workers(place.cpus, place.gpus) for node in nodes) < fewest:
            each = f"{place.cpus:g} CPU" + (f" and {place.gpus:g} GPU" if place.gpus else "")
            there = ", ".join(sorted({f"{node.cpus:g} CPU and {node.gpus:g} GPU" for node in nodes}))
            raise UserError(
                f"cell {cell.key} needs {fewest} x {each}; the cluster has {len(nodes)} nodes of {there}: "
                "change Study.placements, or connect to a larger cluster with --address"
            )


def choose_access(study: Study, manifest: Manifest, nodes: Iterable[Node], limit: int | None) -> dict[int, Access]:
    """How the trials of each number of spectra read them: as declared, else from maps where every node can hold them.

    One choice for the cluster, because the workers of a trial must agree on the order of the spectra.

    Args:
        study: The declaration; with `Data.access` "auto" sizes decide.
        manifest: The shards.
        nodes: The cluster.
        limit: Bytes that a node's maps may take, if less than its disk has room for.

    Returns:
        For each of `Data.num_spectra`, "streamed", or what the declaration says.

    Raises:
        UserError: the evaluation spectra, or a prefix that is declared mapped or resident, do not fit.
    """
    room, host = min((min(node.room, limit or node.room), node.host) for node in nodes)
    row = BYTES * manifest.pixels
    evaluation = 2 * row * sum(manifest.num_rows(split) for split in ("val", "test"))
    arrays = 1 if study.data.rules.noise == "fixed" else 2
    chosen: dict[int, Access] = {}
    for num_spectra in study.data.num_spectra:
        mapped = arrays * row * sum(shard.rows for shard in manifest.leading_shards("train", num_spectra))
        declared = study.data.access
        needed = evaluation + (0 if declared == "streamed" else mapped)
        if declared == "auto" and needed > room >= evaluation:
            chosen[num_spectra] = "streamed"
        elif needed > room:
            raise UserError(
                f"node {host}: memory maps of {needed / 1e9:.1f} GB are needed for {num_spectra} spectra, and there is room for "
                f"{room / 1e9:.1f} GB: give a larger disk with --cache, a higher --cache-limit, or declare access='streamed'"
            )
        else:
            chosen[num_spectra] = declared
    return chosen
