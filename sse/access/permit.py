"""The right on which a stream or a waiting poll stands: it ends with its token, or when some of it is revoked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from sse.access.revocations import Revocations, is_revoked
from sse.access.token import LEEWAY, Grant

WARNING: Final = 60
"""Seconds before a token's exp at which its streams tell their pages."""


class Permit:
    """The right of one stream or poll: to `granted` channels by a token until that ends, to `ruled` by the app's rule.

    :param grant: the token's, where a channel is read by it.
    :param decided: how many revocations were known when the rule was asked.
    """

    __slots__ = ("_revocations", "decided", "ends_at", "grant", "granted", "revoked", "ruled", "wake", "warn_at")

    def __init__(
        self,
        revocations: Revocations,
        grant: Grant | None,
        granted: Sequence[str],
        ruled: Sequence[str] = (),
        decided: float = math.inf,
    ) -> None:
        self._revocations = revocations
        self.grant = grant
        self.granted = granted
        self.ruled = ruled
        self.decided = decided
        self.ends_at = grant.ends_at if grant else math.inf
        """The moment at which the right ends, in seconds since 1970."""
        self.warn_at = self.ends_at - LEEWAY - WARNING
        """The moment at which the client is told of that end; infinity once it has been told."""
        self.revoked = False
        """True once the right has been revoked."""
        self.wake: Callable[[], None] | None = None

    @property
    def ends_in(self) -> float:
        """Seconds until it is over; minus infinity once it has been revoked."""
        if not self.revoked and not self._is_revoked():
            return self.ends_at - time.time()
        self.revoked = True
        return -math.inf

    @property
    def notice_in(self) -> float:
        """Seconds until its client is to be told of its end; infinity once that is done."""
        return self.warn_at - time.time()

    @property
    def due_in(self) -> float:
        """Seconds until there is something to say or to end, unless it is revoked before, which wakes its user."""
        return min(self.warn_at, self.ends_at) - time.time()

    @property
    def is_due(self) -> bool:
        """True if the right is over, or its client is to be told of its end."""
        return self.due_in <= 0 or self.revoked or self._is_revoked()

    @property
    def is_over(self) -> bool:
        """True if the right has expired or has been revoked."""
        return self.ends_in <= 0

    def begin(self, wake: Callable[[], None]) -> None:
        """From now on, have `wake` called when it is revoked; `end` has to follow."""
        self.wake = wake
        self._revocations.watch(self)

    def notice(self) -> int | None:
        """Return in how many seconds it ends, once, when it is time to tell its client; else None."""
        now = time.time()
        if now < self.warn_at:
            return None
        self.warn_at = math.inf
        return max(round(self.ends_at - LEEWAY - now), 0)

    def check(self) -> None:
        """Wake the stream or poll that stands on it, if it has been revoked."""
        if self._is_revoked():  # also if its user has seen that: it may have been unable to act at that moment
            self.revoked = True
            wake = self.wake  # read once: `end` may come in between
            if wake:
                wake()

    def end(self) -> None:
        """Have nobody woken any more; a second time does nothing."""
        wake, self.wake = self.wake, None
        if wake:  # else it has not begun, or has ended, and nothing is waited for, as in `Hub.detach`
            self._revocations.unwatch(self)

    def _is_revoked(self) -> bool:
        """Return True if the token, its subject or a channel has been revoked since the right was given."""
        since = self._revocations.since
        if not since:
            return False
        ruled = [revoked for channel in self.ruled if (revoked := since.get(("channel", channel)))]
        return any(revoked.number > self.decided for revoked in ruled) or (
            self.grant is not None and is_revoked(self.grant, self.granted, since)
        )
