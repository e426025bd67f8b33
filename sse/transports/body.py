"""The part of a stream and of a poll that is the same for both: the end of the subscriber, and the hand-off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import ClassVar

from sse.access.permit import Permit
from sse.hub.hub import Hub
from sse.hub.subscriber import Subscriber
from sse.transports.life import ClientPart


class Body:
    """A subscriber as the body of an answer."""

    __slots__ = ("_attached", "closing", "deadline", "hub", "permit", "request_id", "subscriber")
    is_stream: ClassVar[bool]
    """True for a stream, False for a poll."""
    keeps_greenlet: ClassVar[bool] = False
    """True for a body that our worker sends in the request's greenlet. All others are handed off."""
    _attached: bool
    closing: Sequence[Callable[[], object]]
    """The functions to call at the end."""
    deadline: float
    """The end by the clock. Infinity once it is handed off."""
    hub: Hub
    permit: Permit | None
    """The right to read; None if all channels are public, and once it is handed off."""
    request_id: str
    """The id by which the log names its request; empty if it has none. The row has it once it is handed off."""
    subscriber: Subscriber

    @property
    def is_attached(self) -> bool:
        """True if it has a subscriber, and so a seat that `close` gives back."""
        return self._attached

    def release(self) -> None:
        """Give up the seat of one client; other clients remain."""
        self.hub.release(self.subscriber)

    def detach(self) -> None:
        """Detach the subscriber, with the seat of its last client. A second call does nothing."""
        if self._attached:
            self._attached = False
            self.hub.detach(self.subscriber, polled=not self.is_stream)

    def hand_off(self) -> ClientPart:
        """Return the part that concerns one client, and give it up. A row decides now when its connection ends."""
        part = ClientPart(self.deadline, self.permit, self.closing)
        self.deadline, self.permit, self.closing, self.request_id = inf, None, (), ""
        return part

    def close(self) -> None:
        """Detach, end the permit, and call `closing`. A second call does nothing."""
        self.detach()
        if self.permit:
            self.permit.end()
        closing, self.closing = self.closing, ()
        for done in closing:
            done()
