"""The wait before something that has failed is tried again."""

from __future__ import annotations

import random
import time


def pause(attempt: int, least: float) -> None:
    """Sleep for `least` seconds and up to 10 s more, by chance; the longer, the more attempts there were before."""
    time.sleep(least + random.uniform(0.5, 1) * min(0.1 * 2 ** min(attempt, 10), 10))
