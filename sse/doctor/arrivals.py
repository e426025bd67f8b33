"""Tells from the times of a stream's blocks whether something has held them back on their way.

A block is `[n, now, arrived, bytes]`: its number, the server's clock when it was sent, the seconds after the request
when it arrived here, and its size. The two clocks need not agree. A block is late by as much as it took longer than the
fastest block of the same stream. So a way that delays all blocks alike makes none of them late, and neither does a
server that sends late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final

Blocks = Sequence[Sequence[float]]

_TOGETHER: Final = 0.25  # of the time between two blocks at the server: those that come closer here are bunched
_BUNCHED: Final = 0.4  # of all blocks: a network that stalls once bunches fewer of them
_LATE: Final = 0.4  # seconds that a proxy which holds nothing may add to a block, beyond what it adds to all
_FEWEST: Final = 4  # blocks that can tell anything


@dataclass(frozen=True, slots=True)
class Held:
    """How something on the way holds blocks back.

    `seconds` is the longest time that a block was late, and `bytes` the most that was held at any moment. With
    `until_end`, all blocks came together.
    """

    seconds: float
    bytes: int
    until_end: bool


def held(blocks: Blocks, slack: float = 0) -> Held | None:
    """Return how blocks were held back, or None if they were not.

    :param slack: seconds for which this machine itself may have stood still.
    """
    if len(blocks) < _FEWEST:
        return None
    late = _lateness(blocks)
    sent = [now - blocks[0][1] for _, now, _, _ in blocks]
    arrived = [at for _, _, at, _ in blocks]
    gaps = [(ours, theirs) for ours, theirs in zip(_gaps(arrived), _gaps(sent), strict=True) if theirs > 0]
    if not gaps or max(late) < _LATE + slack:
        return None
    together = [ours < _TOGETHER * theirs for ours, theirs in gaps]
    if sum(together) < _BUNCHED * len(together) or not _is_more_than_once(late, _LATE + slack):
        return None
    return Held(max(late), _most_held(blocks, late), arrived[-1] - arrived[0] < _TOGETHER * sent[-1])


def _is_more_than_once(late: Sequence[float], limit: float) -> bool:
    """Return True if blocks came late again and again, or a large part of them did.

    A proxy may hand blocks over in pairs, and add little to each. Then one hiccup of a machine is no buffer.
    """
    runs = [len([*run]) for is_late, run in groupby(late, lambda each: each >= limit) if is_late]
    return len(runs) > 1 or max(runs, default=0) >= _BUNCHED * len(late)


def longest_pause(blocks: Blocks) -> float:
    """Return the longest time between two blocks by the server's own clock, in seconds; 0 if there are none."""
    return max(_gaps([now for _, now, _, _ in blocks]), default=0.0)


def _gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def _lateness(blocks: Blocks) -> list[float]:
    took = [arrived - now for _, now, arrived, _ in blocks]
    return [each - min(took) for each in took]


def _most_held(blocks: Blocks, late: Sequence[float]) -> int:
    """Return the most bytes that were under way at any moment when a block was sent."""
    took = [(now, now + more, size) for (_, now, _, size), more in zip(blocks, late, strict=True)]
    return int(max(sum(size for start, end, size in took if start <= moment <= end) for moment, _, _ in took))
