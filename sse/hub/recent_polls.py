"""The channels whose polls ended a short while ago. Their clients are about to ask again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

LINGER: Final = 10.0
"""Seconds after its answer for which a poll still counts as a listener."""


class RecentPolls:
    """Channels by name, with the time when a poll of each last ended. Any thread may call this, and none waits.

    Names are forgotten by the lot: there are two dicts, of which the older one is dropped every ten seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._new: dict[str, float] = {}
        self._old: dict[str, float] = {}
        self._renewed_at = clock()

    def note(self, names: Iterable[str]) -> None:
        """Note that a poll of these channels has ended now."""
        now = self._clock()
        if now - self._renewed_at >= LINGER:
            self._new, self._old = {}, self._new
            self._renewed_at = now
        self._new.update(dict.fromkeys(names, now))

    def __contains__(self, name: str) -> bool:
        ended_at = self._new.get(name, self._old.get(name))
        return ended_at is not None and self._clock() - ended_at < LINGER
