"""One loop for whatever is to happen to many, spread over some time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final, TypeVar

PAUSE: Final = 1e-6
"""Seconds of sleep that let others have their turn. Under gevent this is a real timer. A sleep of 0 would be none, and
let no input in."""

_AT_ONCE: Final = 128  # items that are late, before others have their turn

T = TypeVar("T")


def spread(
    items: Collection[T],
    window: float,
    act: Callable[[T], object],
    sleep: Callable[[float], object],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Call `act` with each item, at equal distances over `window` seconds; return at their end.

    :param sleep: called with the seconds until the next item. A short sleep takes longer than it says, so where items
        are late, it is called once for many of them.
    """
    begun = clock()
    for number, item in enumerate(items, 1):
        act(item)
        ahead = begun + window * number / len(items) - clock()
        if ahead > 0 or number % _AT_ONCE == 0:
            sleep(max(ahead, PAUSE))
