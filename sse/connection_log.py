"""The log's lines about streams and held polls: one at debug when each opens, one at info when it ends.

A worker may have ten thousand connections, and a deploy ends all of them. So a process writes at most SSE_LOG_RATE of
the lines about ends in a second. It counts the others, and the next line after that second sums them up. Without such a
bound the lines would slow down the loop that writes to all streams, and could make a log that has a bound of its own
drop warnings: journald keeps 10,000 lines of a service in 30 s, unless it is told otherwise (RateLimitBurst in
journald.conf(5)).

No line names a channel, an address, a query or a credential.
"""

from __future__ import annotations

import logging
import time
from _thread import RLock  # never patched by gevent, so that real threads can log, too
from collections import Counter
from typing import Final, Literal

from sse import log

Transport = Literal["stream", "poll"]
_WINDOW: Final = 1.0  # seconds


class _Rate:
    """The number of lines in the current second, and the ends that were not written."""

    def __init__(self) -> None:
        self.most = 50
        self._began = 0.0
        self._lines = 0
        self._held: Counter[tuple[str, str]] = Counter()  # by transport and reason, of which there are few
        self._lock = RLock()  # never held while waiting or writing

    def takes(self, transport: str, reason: str) -> bool:
        """Return whether an end may have its own line; if not, count it."""
        with self._lock:
            if self._lines >= self.most:
                self._held[transport, reason] += 1
                return False
            self._lines += 1
            return True

    def next_window(self, *, is_last: bool) -> tuple[float, Counter[tuple[str, str]]]:
        """Begin another second if this one is over. Return the seconds since its beginning, and the ends not told."""
        now = time.monotonic()
        with self._lock:
            seconds = now - self._began
            if seconds < _WINDOW and not is_last:
                return 0.0, Counter()
            held, self._held = self._held, Counter()
            self._began, self._lines = now, 0
            return seconds, held


_rate = _Rate()


def set_rate(most: int) -> None:
    """Set how many ends may have their own line in a second; 0 for no lines about ends at all."""
    _rate.most = most


def opened(transport: Transport, request_id: str = "") -> None:
    """Log at debug that a stream has been opened, or that a poll waits."""
    if log.is_enabled(logging.DEBUG):
        fields = {"transport": transport, **_id_field(request_id)}
        log.tell(logging.DEBUG, f"{transport} opened{_id_words(request_id)}", fields)


def ended(transport: Transport, reason: str, seconds: float, events: int, size: int, request_id: str = "") -> None:
    """Log at info that a stream or held poll has ended, unless there are too many such lines.

    :param reason: a close reason, or one of the words of docs/operating.md.
    :param seconds: since it was opened.
    :param events: that were written to it.
    :param size: bytes that were written to it, without the head of the answer.
    """
    if not _rate.most or not log.is_enabled(logging.INFO):
        return
    flush()
    if not _rate.takes(transport, reason):
        return
    fields = {
        "transport": transport,
        "reason": reason,
        "seconds": round(seconds, 3),
        "events": events,
        "bytes": size,
        **_id_field(request_id),
    }
    text = f"{transport} ended: {reason} after {seconds:.1f} s, {events} events, {size} bytes{_id_words(request_id)}"
    log.tell(logging.INFO, text, fields)


def flush(*, is_last: bool = False) -> None:
    """Log the sum of the ends that had no line of their own, once their second is over.

    :param is_last: do it now, because this process ends.
    """
    seconds, held = _rate.next_window(is_last=is_last)
    if held:
        words = ", ".join(f"{count} {transport}s {reason}" for (transport, reason), count in held.most_common())
        fields = {"ended": {f"{transport} {reason}": count for (transport, reason), count in held.most_common()}}
        log.tell(logging.INFO, f"{held.total()} more ended within {seconds:.1f} s: {words}", fields)


def _id_field(request_id: str) -> dict[str, str]:
    return {"request_id": request_id} if request_id else {}


def _id_words(request_id: str) -> str:
    return f", request {request_id}" if request_id else ""
