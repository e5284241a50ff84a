"""Admission: on which nodes a trial may start now. Every trial is accounted for on the nodes it was given.

A trial that shares a node's devices fits wherever enough of them is free. One of whole devices or several workers needs them at
once, so small trials must not refill what it waits for: while it waits, or has been handed out and has not begun, its nodes take
no small trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from scaling.study.declaration import Placement

SLACK = 1e-6
"""Of sums of fractions such as 0.4."""


class Offer(Protocol):
    """A node: what of it this study may use, other users' share left out."""

    @property
    def id(self) -> str:
        """Its name for the cluster."""

    @property
    def cpus(self) -> float:
        """CPUs."""

    @property
    def gpus(self) -> float:
        """GPUs."""


@dataclass(slots=True)
class _Room:
    """What is free on a node. Fractions are packed on GPUs as Ray packs them: on the fullest that has room."""

    cpus: float
    gpus: list[float]

    def take(self, cpus: float, gpus: float) -> bool:
        """Take the devices of one worker; False, and nothing is taken, where they are not there."""
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
    """The trials that run, by key, and what they leave free."""

    running: dict[str, _Running] = field(default_factory=dict)

    def place(
        self, placement: Placement, offers: Iterable[Offer], waiting: Iterable[Placement] = ()
    ) -> tuple[str, ...]:
        """A node for each worker of a trial that may start now; empty if it must wait.

        Args:
            placement: What the trial occupies.
            offers: The nodes there are.
            waiting: Placements of more urgent trials that wait; the nodes that they could have take no small trials.
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
            if other.host == "ray_train":  # it could have what is free once all small trials have ended
                held.update(_spread(other, self._rooms(offers, small=False)))
        # The fullest first: whole devices stay free elsewhere.
        for node in sorted(rooms, key=lambda name: (sum(rooms[name].gpus), rooms[name].cpus)):
            if node not in held and rooms[node].take(placement.cpus, placement.gpus):
                return (node,)
        return ()

    def queue(self, placement: Placement, offers: Iterable[Offer], queued: Iterable[str]) -> tuple[str, ...]:
        """A full node where a small trial may queue for a running one's process; empty if there is none.

        One a node, and only where all that runs are small trials of the same devices: Tune then gives it the process of the one
        that ends, which costs 0.04 s and not a start.
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
        """Account for a trial on the nodes it was given."""
        self.running[key] = _Running(placement, nodes)

    def begin(self, key: str) -> None:
        """Note that a trial has its devices."""
        if key in self.running:
            self.running[key].begun = True

    def end(self, key: str) -> None:
        """Forget a trial."""
        self.running.pop(key, None)

    def _rooms(self, offers: list[Offer], *, small: bool = True) -> dict[str, _Room]:
        """What the running trials leave free; without the `small` ones, what those under Ray Train do."""
        rooms = _empty(offers)
        for run in self.running.values():
            for node in run.nodes:
                if node in rooms and (small or run.placement.host == "ray_train"):
                    _force(rooms[node], run.placement)
        return rooms


def fits_ever(placement: Placement, offers: Iterable[Offer]) -> bool:
    """Whether the nodes, were they empty, could take a trial, with `min_workers` one of so many workers."""
    return bool(_spread(placement, _empty(offers), placement.min_workers))


def _empty(offers: Iterable[Offer]) -> dict[str, _Room]:
    return {offer.id: _Room(offer.cpus, [1.0] * math.floor(offer.gpus + SLACK)) for offer in offers}


def _force(room: _Room, placement: Placement) -> None:
    """Take a running worker's devices, also where a node has shrunk since."""
    if not room.take(placement.cpus, placement.gpus):
        room.cpus -= placement.cpus
        room.gpus = [free - placement.gpus / max(1, len(room.gpus)) for free in room.gpus]


def _spread(placement: Placement, rooms: dict[str, _Room], fewest: int | None = None) -> tuple[str, ...]:
    """A node for each worker, as few nodes as it takes; empty where they do not fit, nor the `fewest` that may do."""
    left = {name: _Room(room.cpus, list(room.gpus)) for name, room in rooms.items()}
    nodes: list[str] = []
    for name in sorted(left, key=lambda name: (-left[name].gpus.count(1.0), -left[name].cpus)):
        while len(nodes) < placement.workers and left[name].take(placement.cpus, placement.gpus):
            nodes.append(name)
    return tuple(nodes) if len(nodes) >= (fewest or placement.workers) else ()


def bundles(placement: Placement) -> list[dict[str, float]]:
    """What each worker of a trial occupies, as Ray names it."""
    gpus = {"GPU": placement.gpus} if placement.gpus else {}
    return [{"CPU": placement.cpus, **gpus}] * placement.workers
