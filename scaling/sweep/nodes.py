"""The nodes of a cluster: resources and health, whether a study's trials fit, and how trials read their spectra."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from scaling.data.batches.training import Access
from scaling.data.shards.manifest import Manifest
from scaling.errors import UserError
from scaling.files import Location, size_text
from scaling.study.declaration import Study
from scaling.sweep.admission import fits_ever
from scaling.sweep.health import Check
from scaling.sweep.limits import BAD_NODES, CHECKS

BYTES = 4
"""Size of a pixel in a memory map: float32."""
PERIOD, SAY_AFTER = 2.0, 30.0
"""Seconds between queries to Ray, and of waiting before the reason is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster: its devices, and the space in bytes for its memory maps, including existing ones.

    `id` is Ray's, in hexadecimal, as in the label selector `ray.io/node-id`.
    """

    id: str
    host: str
    cpus: float
    gpus: float
    room: int


class Nodes:
    """The cluster's nodes: each is checked by tasks there before its first trial, and set aside if it cannot take part.

    A node that joins later is checked when it appears; a lost one is forgotten, and checked again if it returns.

    Attributes:
        problem: Why the sweep must stop: its trials fail on one node after another. Empty otherwise.
        room_needed: Bytes for the study's memory maps on each node; a node with less space is set aside.
    """

    def __init__(
        self, shards: Location, cache_root: Path, say: Callable[[str], None], *, gpus_needed: bool, code: str
    ) -> None:
        self.problem, self.room_needed = "", 0
        self._arguments, self._gpus_needed, self._say = (shards, cache_root, code), gpus_needed, say
        self._good: dict[str, Node] = {}
        self._checks: dict[str, Check] = {}
        self._aside: dict[str, tuple[str, str]] = {}
        self._asked = -math.inf
        self._in_a_row = 0

    def look(self) -> list[Node]:
        """The nodes that can run trials now: alive, checked and not set aside. Queries Ray at most every 2 s."""
        if time.monotonic() - self._asked >= PERIOD:
            self._tell(self._refresh())
        return list(self._good.values())

    def wait_for_first(self, timeout: float = 300.0) -> list[Node]:
        """Wait until the nodes that are alive now are checked, at most `timeout` seconds for unresponsive ones.

        While no node is usable but one may become so, it keeps waiting, and reports the reason after 30 s.

        Returns:
            The result of `look`; empty if the cluster has no node yet.

        Raises:
            UserError: No node can take part; gives the reasons.
        """
        import ray

        started, said = time.monotonic(), False
        bad = self._refresh()
        first = set(self._checks)
        while left := first & self._checks.keys():
            tasks = [task for node_id in left for task in self._checks[node_id].tasks]
            ray.wait(tasks, num_returns=len(tasks), timeout=0.5)
            bad += self._refresh()
            waited = time.monotonic() - started
            if waited > SAY_AFTER and not said:
                self._say(f"waiting for {self.pending()}")
                said = True
            if waited > timeout and self._good:
                break
        if not self._good and not self._checks and self._aside:
            raise UserError(f"no node can take part: {_grouped(self._aside.values())}")
        self._tell(bad)
        return list(self._good.values())

    def set_aside(self, node_id: str, reason: str) -> None:
        """Stop assigning trials to this node, after one failed there through no fault of its own; reports it."""
        node = self._good.pop(node_id, None)
        if node is None:
            return
        self._aside[node_id] = node.host, reason
        self._tell([node_id])
        self._in_a_row += 1
        if self._in_a_row >= BAD_NODES or not (self._good or self._checks):
            self.problem = (
                f"trials fail on one node after the other, and not by their own fault: {_grouped(self._aside.values())}"
            )

    def trial_finished(self) -> None:
        """Reset the count of consecutive nodes set aside."""
        self._in_a_row = 0

    def hosts(self, node_ids: Iterable[str]) -> str:
        """Names of the machines, for messages."""
        known = {node_id: node.host for node_id, node in self._good.items()}
        return ", ".join(dict.fromkeys(known.get(node_id, f"node {node_id[:8]}") for node_id in node_ids))

    def devices(self) -> dict[str, float]:
        """Total resources of these nodes, by Ray's names."""
        nodes = self._good.values()
        return {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}

    def pending(self) -> str:
        """Description of nodes that are being checked or are set aside; empty if there are none."""
        checks = [f"{check.host} ({check.waits_for()})" for check in self._checks.values()]
        parts = ["the check of node " + ", ".join(checks)] if checks else []
        return "; ".join(parts + ([f"set aside: {_grouped(self._aside.values())}"] if self._aside else []))

    def _refresh(self) -> list[str]:
        """Query Ray for its nodes and process finished checks; returns the nodes set aside as a result."""
        import ray

        self._asked = time.monotonic()
        alive = {each["NodeID"]: each for each in ray.nodes() if each["Alive"] and each["Resources"].get("CPU")}
        for known in (self._good, self._checks, self._aside):
            for lost in known.keys() - alive.keys():
                known.pop(lost)
        for node_id in alive.keys() - self._good.keys() - self._checks.keys() - self._aside.keys():
            self._checks[node_id] = Check.start(alive[node_id], self._arguments, self._gpus_needed)
        bad = []
        for node_id, check in list(self._checks.items()):
            if not check.done():
                continue
            del self._checks[node_id]
            try:
                host, room, problem = check.result()
            except ray.exceptions.RayError as error:  # its process or node was lost: retried in the next round
                if check.attempt < CHECKS:
                    again = Check.start(alive[node_id], self._arguments, self._gpus_needed, check.attempt + 1)
                    self._checks[node_id] = again
                    continue
                host, room, problem = check.host, 0, f"its check fails: {_first_line(error)}"
            if room < self.room_needed:
                needed = f"the memory maps need {size_text(self.room_needed)}"
                problem = problem or f"{needed}, and there is room for {size_text(room)}"
            if problem:
                self._aside[node_id] = host, problem
                bad.append(node_id)
            else:
                cpus, gpus = (check.info["Resources"].get(name, 0.0) for name in ("CPU", "GPU"))
                self._good[node_id] = Node(id=node_id, host=host, cpus=cpus, gpus=gpus, room=room)
        return bad

    def _tell(self, bad: list[str]) -> None:
        for line in _groups(self._aside[node_id] for node_id in bad if node_id in self._aside):
            self._say(f"set aside: {line}")


def _groups(bad: Iterable[tuple[str, str]]) -> list[str]:
    """Format (host, reason) pairs, grouping hosts with the same reason."""
    hosts: dict[str, list[str]] = {}
    for host, reason in bad:
        hosts.setdefault(reason, []).append(host)
    return [f"node {', '.join(dict.fromkeys(there))}: {reason}" for reason, there in hosts.items()]


def _grouped(bad: Iterable[tuple[str, str]]) -> str:
    return "; ".join(_groups(bad))


def _first_line(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)


def check_placements(study: Study, nodes: Iterable[Node]) -> None:
    """Check that each trial's workers and each baseline fit on the nodes; a worker does not span nodes.

    Raises:
        UserError: Names the cell or baseline that can never run, its requirements and the available resources.
    """
    nodes = list(nodes)
    for baseline in study.baselines:
        if (most := max(node.cpus for node in nodes)) < baseline.cpus:
            raise UserError(
                f"baseline {baseline.family} needs {baseline.cpus} CPUs of one node, which has {most:g} at most: "
                "change its cpus in Study.baselines, or connect to a larger cluster with --address"
            )
    for cell in study.cells():
        place = study.placement(cell)
        if not fits_ever(place, nodes):
            fewest = place.min_workers or place.workers
            each = f"{place.cpus:g} CPU" + (f" and {place.gpus:g} GPU" if place.gpus else "")
            there = ", ".join(sorted({f"{node.cpus:g} CPU and {node.gpus:g} GPU" for node in nodes}))
            raise UserError(
                f"cell {cell.key} needs {fewest} x {each}; the cluster has {len(nodes)} nodes of {there}: "
                "change Study.placements, or connect to a larger cluster with --address"
            )


def choose_access(study: Study, manifest: Manifest, nodes: Iterable[Node], limit: int | None) -> dict[int, Access]:
    """Access mode of the trials for each number of spectra: as declared, else mapped if it fits on every node.

    There is one choice for the whole cluster, because the workers of a trial must agree on the order of the spectra.

    Args:
        study: The declaration; with `Data.access` "auto", sizes decide.
        manifest: The shards.
        nodes: The nodes of the cluster; if there are none yet, none is too small.
        limit: Size limit of a node's maps in bytes, if less than the space on its disk.

    Returns:
        For each of `Data.num_spectra`, "streamed" or the declared mode.

    Raises:
        UserError: The evaluation spectra, or a prefix declared mapped or resident, do not fit.
    """
    room, host = min(
        ((min(node.room, limit or node.room), node.host) for node in nodes), default=(limit or math.inf, "")
    )
    chosen: dict[int, Access] = {}
    for num_spectra in study.data.num_spectra:
        declared = study.data.access
        needed = maps_bytes(study, manifest, {num_spectra: declared})
        if declared == "auto" and needed > room >= maps_bytes(study, manifest, {}):
            chosen[num_spectra] = "streamed"
        elif needed > room:
            raise UserError(
                f"node {host}: memory maps of {needed / 1e9:.1f} GB are needed for {num_spectra} spectra, and there is room for "
                f"{room / 1e9:.1f} GB: give a larger disk with --cache, a higher --cache-limit, or declare access='streamed'"
            )
        else:
            chosen[num_spectra] = declared
    return chosen


def maps_bytes(study: Study, manifest: Manifest, access: dict[int, Access]) -> int:
    """Size of a study's memory maps on a node: evaluation spectra, and prefixes that are not streamed."""
    row = BYTES * manifest.pixels
    arrays = 1 if study.data.rules.noise == "fixed" else 2
    mapped = [number for number, how in access.items() if how != "streamed"]
    shards = manifest.leading_shards("train", max(mapped)) if mapped else []
    evaluation = sum(manifest.num_rows(split) for split in ("val", "test"))
    return row * (2 * evaluation + arrays * sum(shard.rows for shard in shards))
