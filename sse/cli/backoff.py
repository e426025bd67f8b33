"""The wait before a command tries again after a failure."""

from __future__ import annotations

import random
import time


def pause(attempt: int, least: float) -> None:
    """Sleep for `least` seconds, and for a random time that grows with the number of failed attempts, up to 10 s.

    :param attempt: the number of attempts that have failed before this wait.
    """
    time.sleep(least + random.uniform(0.5, 1) * min(0.1 * 2 ** min(attempt, 10), 10))
