"""The right that a stream or poll holds: until its token expires or is revoked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from sse.access.revocations import Revocations, is_revoked
from sse.access.token import LEEWAY, Grant

WARNING: Final = 60
"""Seconds before a token's exp at which its streams tell their clients of it."""


class Permit:
    """The right of one stream or poll to read its channels.

    :param grant: the token's grant, if a channel is read by it. The right ends when that ends.
    :param by_grant: the channels that the grant opens.
    :param by_rule: the channels that the app's rule, or a view of the app, opens.
    :param seen: the number of revocations that were known when the rule or the view was asked. Only later ones end the
        right. This holds for the subject of a grant without channels, too: an own view has named this subject.
    """

    __slots__ = ("_revocations", "by_grant", "by_rule", "ends_at", "grant", "revoked", "seen", "wake", "warn_at")

    def __init__(
        self,
        revocations: Revocations,
        grant: Grant | None,
        by_grant: Sequence[str],
        by_rule: Sequence[str] = (),
        seen: float = math.inf,
    ) -> None:
        self._revocations = revocations
        self.grant = grant
        self.by_grant = by_grant
        self.by_rule = by_rule
        self.seen = seen
        self.ends_at = grant.ends_at if grant else math.inf
        """The moment at which the right ends, in seconds since 1970."""
        self.warn_at = self.ends_at - LEEWAY - WARNING
        """The moment at which the client is told of that end; infinity once it has been told."""
        self.revoked = False
        """True once the right has been revoked."""
        self.wake: Callable[[], None] | None = None

    @property
    def ends_in(self) -> float:
        """Seconds until the right ends; minus infinity once it has been revoked."""
        if not self.revoked and not self._is_revoked():
            return self.ends_at - time.time()
        self.revoked = True
        return -math.inf

    @property
    def notice_in(self) -> float:
        """Seconds until the client is to be told of the right's end; infinity once it has been told."""
        return self.warn_at - time.time()

    @property
    def due_in(self) -> float:
        """Seconds until the client is to be told, or the right ends. A revocation may come before, and calls `wake`."""
        return min(self.warn_at, self.ends_at) - time.time()

    @property
    def is_due(self) -> bool:
        """True if the right has ended, or if the client is to be told of its end now."""
        return self.due_in <= 0 or self.revoked or self._is_revoked()

    @property
    def is_over(self) -> bool:
        """True if the right has expired or has been revoked."""
        return self.ends_in <= 0

    def begin(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when the right is revoked. The caller has to call `end` afterwards."""
        self.wake = wake
        self._revocations.watch(self)

    def notice(self) -> int | None:
        """Return in how many seconds the token expires, once, when it is time to tell the client; else None."""
        now = time.time()
        if now < self.warn_at:
            return None
        self.warn_at = math.inf
        return max(round(self.ends_at - LEEWAY - now), 0)

    def check(self) -> None:
        """Wake the stream or poll that holds the right, if the right has been revoked."""
        # Not `self.revoked`: the stream or poll may know already, and have been unable to act at that moment.
        if self._is_revoked():
            self.revoked = True
            wake = self.wake  # read once, because `end` may be called meanwhile
            if wake:
                wake()

    def end(self) -> None:
        """Do not call `wake` any more. A second call does nothing."""
        wake, self.wake = self.wake, None
        if wake:  # else it has not begun, or has ended already; then no lock is waited for, as in `Hub.detach`
            self._revocations.unwatch(self)

    def _is_revoked(self) -> bool:
        """Return True if the token, its subject or a channel has been revoked since the right was given."""
        since = self._revocations.since
        if not since:
            return False
        judged = [("channel", channel) for channel in self.by_rule]
        if self.grant is not None and not self.by_grant:
            judged.append(("sub", self.grant.sub))
        return any(revoked.number > self.seen for item in judged if (revoked := since.get(item))) or (
            self.grant is not None and is_revoked(self.grant, self.by_grant, since)
        )
