"""Loops that leave time to others: one over many items, spread evenly over some time, and pauses for any other."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final, TypeVar

PAUSE: Final = 1e-6
"""Seconds of sleep that let other greenlets or threads run.

Under gevent this sets a timer, so its loop also takes in input meanwhile. A sleep of 0 would not let it do so.
"""

_PER_PAUSE: Final = 128  # late items between two pauses in which others run

_WITHOUT_PAUSE: Final = 0.01  # seconds

T = TypeVar("T")


class Pauses:
    """Pauses of a loop whose steps may never wait: a call at each step lets others run, every 10 ms."""

    def __init__(self) -> None:
        self._due = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._due:
            time.sleep(PAUSE)
            self._due = time.monotonic() + _WITHOUT_PAUSE


def spread(
    items: Collection[T],
    window: float,
    act: Callable[[T], object],
    sleep: Callable[[float], object],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Call `act` with each item, at equal intervals over `window` seconds; return after these.

    :param window: seconds.
    :param sleep: called with the seconds until the next item. A short sleep takes longer than it says, so if items are
        late, it is called once for many of them.
    :param clock: returns seconds of a monotonic clock.
    """
    begun = clock()
    for number, item in enumerate(items, 1):
        act(item)
        ahead = begun + window * number / len(items) - clock()
        if ahead > 0 or number % _PER_PAUSE == 0:
            sleep(max(ahead, PAUSE))
