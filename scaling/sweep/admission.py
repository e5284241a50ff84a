"""Admission control: the nodes on which a trial may start now. Every trial is accounted for on its assigned nodes.

A trial that shares a node's devices fits wherever enough of them are free. One with whole devices or several workers needs
them all at once, so small trials must not refill what it waits for: while it waits, or is assigned but has not begun, its
nodes accept no small trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scaling.study.declaration import Placement

if TYPE_CHECKING:  # which imports this module
    from scaling.sweep.nodes import Node

SLACK = 1e-6
"""Rounding tolerance for sums of fractions such as 0.4."""


@dataclass(slots=True)
class _Room:
    """Free resources of a node. Fractions of GPUs are packed as Ray does: on the fullest GPU that has room."""

    cpus: float
    gpus: list[float]

    def take(self, cpus: float, gpus: float) -> bool:
        """Reserve the devices of one worker; returns False, without any effect, if they are not available."""
        if cpus > self.cpus + SLACK:
            return False
        if gpus >= 1:
            whole = [i for i, free in enumerate(self.gpus) if free > 1 - SLACK][: round(gpus)]
            if len(whole) < gpus:
                return False
            for i in whole:
                self.gpus[i] = 0.0
        elif gpus > 0:
            fitting = [i for i, free in enumerate(self.gpus) if free > gpus - SLACK]
            if not fitting:
                return False
            self.gpus[min(fitting, key=self.gpus.__getitem__)] -= gpus
        self.cpus -= cpus
        return True


@dataclass(slots=True)
class _Running:
    placement: Placement
    nodes: tuple[str, ...]
    begun: bool = False


@dataclass(slots=True)
class Admission:
    """The running trials by key, and the resources they leave free."""

    running: dict[str, _Running] = field(default_factory=dict)

    def place(self, placement: Placement, offers: Iterable[Node], waiting: Iterable[Placement] = ()) -> tuple[str, ...]:
        """A node for each worker of a trial that may start now; empty if it must wait.

        Args:
            placement: The resources of the trial.
            offers: The available nodes.
            waiting: Placements of more urgent waiting trials; nodes suitable for them accept no small trials.
        """
        offers = list(offers)
        rooms = self._rooms(offers)
        if placement.host == "ray_train":
            fewest = placement.workers if _spread(placement, _empty(offers)) else placement.min_workers
            return _spread(placement, rooms, fewest)
        held = {
            node
            for run in self.running.values()
            if run.placement.host == "ray_train" and not run.begun
            for node in run.nodes
        }
        for other in waiting:
            if other.host == "ray_train":  # it could use what is free once all small trials have ended
                held.update(_spread(other, self._rooms(offers, small=False)))
        # The fullest node first, which keeps whole devices free elsewhere.
        for node in sorted(rooms, key=lambda name: (sum(rooms[name].gpus), rooms[name].cpus)):
            if node not in held and rooms[node].take(placement.cpus, placement.gpus):
                return (node,)
        return ()

    def queue(self, placement: Placement, offers: Iterable[Node], queued: Iterable[str]) -> tuple[str, ...]:
        """A full node where a small trial may queue for a running one's process; empty if there is none.

        One per node, and only if all trials there are small and use the same devices: Tune then reuses the process of the
        one that ends, which costs 0.04 s instead of a start.
        """
        taken = set(queued)
        alike: dict[str, bool] = {}
        for run in self.running.values():
            same = (run.placement.host, run.placement.cpus, run.placement.gpus) == (
                "process",
                placement.cpus,
                placement.gpus,
            )
            for node in run.nodes:
                alike[node] = alike.get(node, True) and same
        return next(((offer.id,) for offer in offers if offer.id not in taken and alike.get(offer.id, False)), ())

    def start(self, key: str, placement: Placement, nodes: tuple[str, ...]) -> None:
        """Account for a trial on its assigned nodes."""
        self.running[key] = _Running(placement, nodes)

    def begin(self, key: str) -> None:
        """Record that a trial has its devices."""
        if key in self.running:
            self.running[key].begun = True

    def end(self, key: str) -> None:
        """Remove a trial."""
        self.running.pop(key, None)

    def _rooms(self, offers: list[Node], *, small: bool = True) -> dict[str, _Room]:
        """Resources left free by the running trials; without `small`, by those under Ray Train only."""
        rooms = _empty(offers)
        for run in self.running.values():
            for node in run.nodes:
                if node in rooms and (small or run.placement.host == "ray_train"):
                    _force(rooms[node], run.placement)
        return rooms


def fits_ever(placement: Placement, offers: Iterable[Node]) -> bool:
    """Whether the empty nodes could run a trial; with `min_workers`, a trial of that many workers."""
    return bool(_spread(placement, _empty(offers), placement.min_workers))


def _empty(offers: Iterable[Node]) -> dict[str, _Room]:
    return {offer.id: _Room(offer.cpus, [1.0] * math.floor(offer.gpus + SLACK)) for offer in offers}


def _force(room: _Room, placement: Placement) -> None:
    """Reserve a running worker's devices, even if the node has shrunk since."""
    if not room.take(placement.cpus, placement.gpus):
        room.cpus -= placement.cpus
        room.gpus = [free - placement.gpus / max(1, len(room.gpus)) for free in room.gpus]


def _spread(placement: Placement, rooms: dict[str, _Room], fewest: int | None = None) -> tuple[str, ...]:
    """A node for each worker, on as few nodes as possible; empty if neither all workers nor `fewest` of them fit."""
    left = {name: _Room(room.cpus, list(room.gpus)) for name, room in rooms.items()}
    nodes: list[str] = []
    for name in sorted(left, key=lambda name: (-left[name].gpus.count(1.0), -left[name].cpus)):
        while len(nodes) < placement.workers and left[name].take(placement.cpus, placement.gpus):
            nodes.append(name)
    return tuple(nodes) if len(nodes) >= (fewest or placement.workers) else ()


def bundles(placement: Placement) -> list[dict[str, float]]:
    """The resources of each worker of a trial, as Ray resource bundles."""
    gpus = {"GPU": placement.gpus} if placement.gpus else {}
    return [{"CPU": placement.cpus, **gpus}] * placement.workers
