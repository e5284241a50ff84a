"""What a sweep waits for: said after a while, asked of an autoscaler, and given up when it is hopeless."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from scaling.study.declaration import Placement
from scaling.sweep.admission import Offer, bundles, fits_ever
from scaling.sweep.limits import SAY_WAITING_SECONDS, WAIT_SECONDS

MOST_ASKED = 100
"""Trials that wait for the same devices of which an autoscaler hears."""


class Waiting:
    """Since when nothing runs or fits, and when that was last said.

    Args:
        say: Takes a line.
        ask_for: Takes the bundles that an autoscaler is to make room for.
        now: Seconds of any clock.
    """

    def __init__(
        self, say: Callable[[str], None], ask_for: Callable[[list[dict[str, float]]], None], now: float
    ) -> None:
        self.say, self.ask_for, self.idle_since, self.said = say, ask_for, now, -math.inf

    def look(
        self,
        now: float,
        offers: Sequence[Offer],
        ready: Mapping[Placement, int],
        live: Mapping[str, Placement],
        pending: Callable[[], str],
    ) -> str:
        """Say what is waited for once it has been for half a minute, and again now and then.

        Args:
            now: Seconds.
            offers: The nodes there are.
            ready: How many trials could start, by what each occupies.
            live: The same of those that run, by their names.
            pending: Says which nodes may still come.

        Returns:
            Why it is hopeless; empty where it is not.
        """
        unfit = {place for place in ready if not fits_ever(place, offers)}
        if live and not unfit:
            self.idle_since = now
        needed = unfit or set(ready)
        # An autoscaler is asked for all that the cluster is to hold, not for what is to be added.
        asked = [place for place in needed for _ in range(min(MOST_ASKED, ready[place]))]
        self.ask_for([bundle for place in [*live.values(), *asked] for bundle in bundles(place)])
        waited = now - self.idle_since
        if waited < SAY_WAITING_SECONDS or not needed:
            return ""
        there = f"{sum(n.cpus for n in offers):g} CPU and {sum(n.gpus for n in offers):g} GPU on {len(offers)} nodes"
        wanted = "; ".join(sorted({place.describe() for place in needed}))
        text = f"waiting for {wanted}; the cluster has {there}; running: {', '.join(sorted(live)[:4]) or 'none'}"
        if comes := pending():
            text += f"; {comes}"
        if now - self.said > 10 * SAY_WAITING_SECONDS:
            self.said = now
            self.say(text)
        if not live and waited > WAIT_SECONDS:
            return f"{text}: nothing came in {WAIT_SECONDS / 60:.0f} minutes; change Study.placements or the cluster"
        return ""
