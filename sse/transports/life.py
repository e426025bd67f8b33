"""The rule that says when a connection ends: a generator's, a waiting poll's, or one in a row.

`decide` is a pure function. Its callers give it the time and the state, and do what it returns. The first line of the
table that applies counts. The columns name the bytes that would have to go out before a goodbye, see `Pending`.
"Tell" means that the notice of the permit's end may be sent now:

| state                             | nothing, or events, before | an answer before    | unsent bytes before |
|-----------------------------------|----------------------------|---------------------|---------------------|
| it takes nothing for 20 s         | close: slow                | close: slow         | cut                 |
| its permit is over                | close: expired             | close: expired      | cut                 |
| it is drained                     | close: drain               | close: drain        | cut                 |
| its deadline has come             | close: lifetime            | look again in 1 s   | look again in 1 s   |
| its permit's notice is due        | tell, if nothing is before | look again in 0.1 s | look again in 0.1 s |
| none of these                     | go on until the first of these moments                           |||

Only the stream of a generator can be slow with nothing before its goodbye: its last chunk took over 20 s.
A notice that is due may also be sent together with the goodbye of a drain or of a deadline, before that goodbye.
A goodbye has no id, so it may overtake events that a row has taken and not yet written: the client reconnects and gets
them. A notice has to wait until those events are written. A connection that stalls at a notice gets a row of its own,
whose position would otherwise be after events that its client never received.

The end of a stream's last channel needs no line here. It is an event with an id, so it comes when everything before it
is out, and then it is written as a goodbye is. The stream does not take it before that. So a goodbye for any of these
reasons, or a cut, may come instead, and the client comes back to the end. Only a permit that is over keeps a
generator's client from it: the end may have come later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from sse.access.permit import Permit

STALLED_AFTER: Final = 20.0
"""Seconds after which a connection with unsent bytes ends if its client takes none of them."""

_AGAIN: Final = 1.0  # seconds until a deadline that has to wait is checked again
_SOON: Final = 0.1  # seconds until a notice that has to wait is checked again

CloseReason = Literal["lifetime", "drain", "expired", "slow", "busy"]
"""The word in a goodbye that says why the connection ends."""

Pending = Literal["nothing", "events", "answer", "unsent"]
"""The bytes that would have to go out before a goodbye.

They are none; events that a row has taken and not written; a poll's answer that is being made; or unsent bytes.
"""


class Next(NamedTuple):
    """The thing to do with a connection now.

    :param until: the time of the next check at the latest, by the clock of `now`.
    :param reason: the reason why the connection ends; None if it goes on. A poll gets an empty answer as goodbye.
    :param is_cut: True if the connection closes without a goodbye.
    :param tells_notice: True if its permit's notice is due and may be sent now.
    """

    until: float
    reason: CloseReason | None = None
    is_cut: bool = False
    tells_notice: bool = False

    @property
    def is_end(self) -> bool:
        """True if the connection ends, with a goodbye or without."""
        return self.reason is not None

    @property
    def reason_of_poll(self) -> str:
        """The word of the log for the end of a poll, whose lifetime is its timeout; empty if it goes on."""
        return "timeout" if self.reason == "lifetime" else self.reason or ""


class ClientPart(NamedTuple):
    """The part of a stream or poll that concerns one connection. Its row has this part after the hand-off.

    :param deadline: the end of the connection's lifetime or timeout, by the monotonic clock.
    :param permit: the right to read; None if all channels are public.
    :param closing: the functions that the app wants called after the end.
    """

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
    pending: Pending = "nothing",
) -> Next:
    """Return what is to happen to a connection now, by the table at the head of this module.

    :param deadline: the end of its lifetime, or of a poll's timeout, by the clock of `now`.
    :param ends_in: seconds until its permit is over.
    :param notice_in: seconds until its client is to get the notice of that end.
    :param last_progress: the time when its client last took bytes, if some are unsent; infinity if none are.
    """
    reason = _reason(now, deadline, ends_in, last_progress, draining=draining, pending=pending)
    tells_notice = notice_in <= 0 and pending == "nothing" and reason not in ("slow", "expired")
    if reason:
        return Next(now, reason, is_cut=pending == "unsent", tells_notice=tells_notice)
    ends_at = deadline if deadline > now else now + _AGAIN
    notice_at = now + notice_in if notice_in > 0 else inf if tells_notice else now + _SOON
    return Next(min(ends_at, now + ends_in, last_progress + STALLED_AFTER, notice_at), tells_notice=tells_notice)


def _reason(
    now: float, deadline: float, ends_in: float, last_progress: float, *, draining: bool, pending: Pending
) -> CloseReason | None:
    if now - last_progress >= STALLED_AFTER:
        return "slow"
    if ends_in <= 0:
        return "expired"
    if draining:
        return "drain"
    if now >= deadline and pending in ("nothing", "events"):
        return "lifetime"
    return None
