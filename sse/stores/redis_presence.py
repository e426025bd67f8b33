"""Presence in Redis. A channel has a hash of sums, two sorted sets, and a hash for each record: see presence.lua."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

from sse.errors import StoreUnavailable
from sse.stores import faults
from sse.stores.base import nonce
from sse.stores.presence import (
    ABSENCE_SECONDS,
    CHANGES_AT_ONCE,
    KEPT_SECONDS,
    RECORD_SECONDS,
    Attendance,
    Outcome,
    PresenceStore,
    Report,
)

_MOST_STEPS: Final = 1000  # in which the records that have ended are removed for one question
_TIMES: Final = (int(RECORD_SECONDS * 1000), int(ABSENCE_SECONDS * 1000), KEPT_SECONDS, CHANGES_AT_ONCE)


class RedisPresence(PresenceStore):
    """The presence of the channels of a `RedisStore`.

    :param run: runs presence.lua with each of these arguments, in one round trip, and returns the replies.
    :param execute: sends these commands in one round trip, and returns the replies.
    :param key: returns the key of a channel's ring, with which the keys of its presence begin.
    """

    def __init__(
        self,
        run: Callable[[Sequence[tuple[Any, ...]]], list[Any]],
        execute: Callable[[Sequence[tuple[Any, ...]]], list[Any]],
        key: Callable[[str], str],
    ) -> None:
        self._run = run
        self._execute = execute
        self._key = key

    def report(self, reports: Sequence[Report]) -> list[Outcome | StoreUnavailable]:
        replies = self._run([self._call(report) for report in reports])
        return [_outcome(reply, report.channel) for reply, report in zip(replies, reports, strict=True)]

    def count(self, channel: str) -> int:
        for _ in range(_MOST_STEPS):
            (reply,) = self._run([self._call(Report(channel, "", 0, {}))])
            if not isinstance(reply, list):
                raise _refusal(reply, channel)
            count, has_more = reply
            if not has_more:
                break
        return int(count)

    def read(self, channel: str) -> Attendance:
        self.count(channel)  # removes the records that have ended
        (reply,) = self._execute([("HGETALL", self._sums(channel))])
        if not isinstance(reply, list):
            raise _refusal(reply, channel)
        sums = {
            key.decode(): int(value) for key, value in zip(reply[::2], reply[1::2], strict=True) if key != b"#origin"
        }
        connections = {key[1:]: value for key, value in sums.items() if key.startswith("=") and key != "="}
        return Attendance(sums.get("#count", 0), connections)

    def _sums(self, channel: str) -> str:
        return f"{self._key(channel)}:present"

    def _call(self, report: Report) -> tuple[Any, ...]:
        sums = self._sums(report.channel)
        return (
            3,
            sums,
            f"{sums}:records",
            f"{sums}:leaving",
            report.record,
            report.number,
            report.origin,
            nonce()[:16],
            *_TIMES,
            int(report.is_last),
            *chain.from_iterable(report.changes.items()),
        )


def _outcome(reply: Any, channel: str) -> Outcome | StoreUnavailable:
    if not isinstance(reply, list):
        return _refusal(reply, channel)
    is_known, origin, *rest = reply
    if not is_known:
        return Outcome(is_known=False, origin=origin.decode())
    has_more, leaving, joined, left = rest
    return Outcome(
        True, origin.decode(), [sub.decode() for sub in joined], [sub.decode() for sub in left], leaving, bool(has_more)
    )


def _refusal(reply: object, channel: str) -> StoreUnavailable:
    return faults.refusal(
        reply,
        f"the presence of channel {channel}",
        "give its user the rights that docs/operating.md lists for SSE_PRESENCE, or see the keys in redis-cli",
    )
