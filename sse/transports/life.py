"""The rule for the end of one connection, whatever it is: a generator, a waiting poll, or a member of a row.

`decide` is a pure function. Its callers bring the moment, and do what it says. The first line that applies counts.
The columns name the bytes that would have to go out before a goodbye, see `Before`:

| state                             | nothing, or events, before | an answer before    | unsent bytes before |
|-----------------------------------|----------------------------|---------------------|---------------------|
| it takes nothing for 20 s         | close: slow                | close: slow         | cut                 |
| its permit is over                | close: expired             | close: expired      | cut                 |
| it is drained                     | close: drain               | close: drain        | cut                 |
| its deadline has come             | close: lifetime            | look again in 1 s   | look again in 1 s   |
| its permit's notice is due        | tell, if nothing is before | look again in 0.1 s | look again in 0.1 s |
| none of these                     | go on until the first of these moments                           |||

A notice that is due may also be told in the very moment of a drain or of a deadline, before the goodbye.
A goodbye has no id, so it may overtake events that a row has taken and not yet written: the client comes back for these
events. A notice waits until they are written. A connection that stalled at the notice would leave its row with the
position after events that its client never received.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from sse.access.permit import Permit

STALLED_AFTER: Final = 20.0
"""Seconds after which a connection ends whose client takes no bytes, although some wait for it."""

_AGAIN: Final = 1.0  # seconds until a deadline that has to wait is looked at again
_SOON: Final = 0.1  # the same for a notice

CloseReason = Literal["lifetime", "drain", "expired", "slow", "busy"]
"""The word by which a goodbye tells why."""

Before = Literal["nothing", "events", "answer", "unsent"]
"""The bytes that would have to go out before a goodbye: none; events that a row has taken and not written; a poll's
answer, which is being made; or bytes that the client has not taken.
"""


class Next(NamedTuple):
    """The thing to do with a connection now; if it goes on, it is looked at again `until` then at the latest.

    :param until: by the clock of `now`.
    :param reason: say goodbye, and why. A poll is answered with nothing.
    :param cuts: close it without a word.
    :param tells: its permit's notice is due, and may be told now.
    """

    until: float
    reason: CloseReason | None = None
    cuts: bool = False
    tells: bool = False

    @property
    def ends(self) -> bool:
        """True if the connection ends, with a goodbye or without."""
        return self.cuts or self.reason is not None


class Handed(NamedTuple):
    """The things that a body gives up when it is handed off: they are one connection's, and its row has them now."""

    deadline: float
    permit: Permit | None
    closing: Sequence[Callable[[], object]]


def decide(
    now: float,
    deadline: float,
    *,
    ends_in: float = inf,
    notice_in: float = inf,
    last_progress: float = inf,
    draining: bool = False,
    before: Before = "nothing",
) -> Next:
    """Return what is to happen to a connection, by the table above.

    :param deadline: the end of its lifetime, or of a poll's timeout, by the clock of `now`.
    :param ends_in: seconds until its permit is over.
    :param notice_in: seconds until its client is to be told of that.
    :param last_progress: when its client last took bytes, while others wait for it; infinity if none wait.
    """
    reason = _reason(now, deadline, ends_in, last_progress, draining=draining, before=before)
    tells = notice_in <= 0 and before == "nothing" and reason not in ("slow", "expired")
    if reason:
        return Next(now, cuts=True) if before == "unsent" else Next(now, reason, tells=tells)
    ends_at = deadline if deadline > now else now + _AGAIN
    notice_at = now + notice_in if notice_in > 0 else inf if tells else now + _SOON
    return Next(min(ends_at, now + ends_in, last_progress + STALLED_AFTER, notice_at), tells=tells)


def _reason(
    now: float, deadline: float, ends_in: float, last_progress: float, *, draining: bool, before: Before
) -> CloseReason | None:
    if now - last_progress >= STALLED_AFTER:
        return "slow"
    if ends_in <= 0:
        return "expired"
    if draining:
        return "drain"
    if now >= deadline and before in ("nothing", "events"):
        return "lifetime"
    return None
