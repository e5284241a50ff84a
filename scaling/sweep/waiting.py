"""Handling of a waiting sweep: reports the reason, asks an autoscaler, and gives up when it is hopeless."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from scaling.study.declaration import Placement
from scaling.sweep.admission import bundles, fits_ever
from scaling.sweep.limits import SAY_WAITING_SECONDS, WAIT_SECONDS
from scaling.sweep.nodes import Node

MOST_ASKED = 100
"""Maximum number of waiting trials per placement that are reported to an autoscaler."""


class Waiting:
    """Tracks since when trials wait and since when nothing runs, and when that was last reported.

    The searcher sets `waits_since` when a trial starts, and `idle_since` when one ends.

    Args:
        say: Called with each line.
        ask_for: Called with the bundles that an autoscaler should make room for.
        now: Current time in seconds of any clock.
    """

    def __init__(
        self, say: Callable[[str], None], ask_for: Callable[[list[dict[str, float]]], None], now: float
    ) -> None:
        self.say, self.ask_for, self.said = say, ask_for, -math.inf
        self.waits_since = self.idle_since = now

    def look(
        self,
        now: float,
        offers: Sequence[Node],
        ready: Mapping[Placement, int],
        live: Mapping[str, Placement],
        pending: Callable[[], str],
    ) -> str:
        """Report the reason for waiting after half a minute, and then every five minutes.

        Args:
            now: Current time in seconds.
            offers: The available nodes.
            ready: Number of trials that could start, by placement.
            live: Placements of the running trials, by name.
            pending: Describes the nodes that may still become available.

        Returns:
            Why it is hopeless; empty if it is not.
        """
        unfit = {place for place in ready if not fits_ever(place, offers)}
        if live and not unfit:
            self.waits_since = now
        needed = unfit or set(ready)
        # An autoscaler is given the total that the cluster should hold, not what to add.
        asked = [place for place in needed for _ in range(min(MOST_ASKED, ready[place]))]
        self.ask_for([bundle for place in [*live.values(), *asked] for bundle in bundles(place)])
        if now - self.waits_since < SAY_WAITING_SECONDS or not needed:
            return ""
        there = f"{sum(n.cpus for n in offers):g} CPU and {sum(n.gpus for n in offers):g} GPU on {len(offers)} nodes"
        wanted = "; ".join(sorted({place.describe() for place in needed}))
        text = f"waiting for {wanted}; the cluster has {there}; running: {', '.join(sorted(live)[:4]) or 'none'}"
        if comes := pending():
            text += f"; {comes}"
        if now - self.said > 10 * SAY_WAITING_SECONDS:
            self.said = now
            self.say(text)
        if not live and now - self.idle_since > WAIT_SECONDS:
            return f"{text}: nothing came in {WAIT_SECONDS / 60:.0f} minutes; change Study.placements or the cluster"
        return ""
