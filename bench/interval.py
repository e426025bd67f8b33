"""How sure a ratio is: the interval in which it lies with 95 % confidence, by pairs that were measured in turn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

WIDTH: Final = 0.04
"""The part of a ratio that its interval may be wide where the ratio counts as known."""
LOSS: Final = 1.02
"""The ratio of two costs from which on the higher one is a loss."""
LEAST: Final = 5
"""Pairs without which nothing counts as known: few pairs can be close to each other by chance."""

# Of Student's t, 97.5 %, for one degree of freedom and on.
_T: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

Pair = tuple[float, float]
"""A cost here and there, of one round."""


class Interval(NamedTuple):
    """A ratio of costs, here to there, and the bounds within which it lies with 95 % confidence."""

    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def width(self) -> float:
        """The width as a part of the ratio."""
        return (self.high - self.low) / self.ratio

    @property
    def is_known(self) -> bool:
        """True if there are enough pairs, and the interval is narrow."""
        return self.pairs >= LEAST and self.width < WIDTH

    @property
    def is_loss(self) -> bool:
        """True if the whole interval lies beyond a loss."""
        return self.pairs >= LEAST and self.low > LOSS

    @property
    def verdict(self) -> str:
        """Return in a word or two what the interval says of this checkout."""
        if self.is_loss:
            return "a loss"
        if not self.is_known:
            return "not known yet"
        if self.high < 1:
            return "a gain"
        return "the same" if self.low <= 1 else "more, but no loss"


def interval_of(pairs: Sequence[Pair]) -> Interval | None:
    """Return the interval of the ratio of positive costs, here to there; None for fewer than two pairs.

    The logarithms of the pairs' ratios are taken for a sample of a normal distribution: so here and there are treated
    alike, and the inverse ratio has the inverse bounds.
    """
    if len(pairs) < 2:
        return None
    logs = [math.log(here / there) for here, there in pairs]
    middle = statistics.fmean(logs)
    spread = student(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(middle), math.exp(middle - spread), math.exp(middle + spread), len(pairs))


def student(freedom: int) -> float:
    """Return the 97.5 % point of Student's t distribution; beyond 30 degrees of freedom by its expansion."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.37 / freedom + 2.9 / freedom**2
