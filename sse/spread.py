"""One loop that does something to many items, spread evenly over some time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final, TypeVar

PAUSE: Final = 1e-6
"""Seconds of sleep that let other greenlets or threads run.

Under gevent this sets a timer, so its loop also takes in input meanwhile. A sleep of 0 would not let it do so.
"""

_PER_PAUSE: Final = 128  # late items between two pauses in which others run

T = TypeVar("T")


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
