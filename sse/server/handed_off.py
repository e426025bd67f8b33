"""The end, the permit and the app's functions of each connection in a row that has a permit or such functions."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from sse.server.effects import EndFunctions
from sse.transports.life import ClientPart, Next, Pending, decide

if TYPE_CHECKING:
    from sse.access.permit import Permit


class HandedOff:
    """The `ClientPart` of each connection that has a permit, or functions to call at its end.

    For any other connection, the wheel's slot alone says when it ends.
    """

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: dict[int, ClientPart] = {}

    def add(self, fd: int, part: ClientPart) -> None:
        """Keep the part of a stream or poll that concerns a connection, if it has more than a deadline."""
        if part.permit or part.closing:
            self._parts[fd] = part

    def remove(self, fd: int) -> EndFunctions:
        """Forget a connection that ends, and end its permit. Return the functions to call then."""
        part = self._parts.pop(fd, None)
        if part is None:
            return ()
        if part.permit:
            part.permit.end()
        return part.closing

    def permit(self, fd: int) -> Permit | None:
        """Return the permit of a connection; None if all its channels are public."""
        part = self._parts.get(fd)
        return part.permit if part else None

    def with_permit(self) -> list[int]:
        """Return all connections with a permit."""
        return [fd for fd, part in self._parts.items() if part.permit]

    def is_over(self, fd: int) -> bool:
        """Return whether a connection may get no more events, because its permit has ended."""
        permit = self.permit(fd)
        return permit is not None and permit.is_over

    def next_of(
        self,
        fd: int,
        now: float,
        pending: Pending,
        *,
        draining: bool,
        last_progress: float = inf,
        has_notice: bool = False,
    ) -> Next:
        """Return what is to happen to a connection that is checked, see `life`.

        :param has_notice: True if its client gets a notice before its permit ends.
        """
        part = self._parts.get(fd)
        if part is None:
            # Its deadline is kept by the wheel alone, and counts as come. It is checked at that time or in a drain. A
            # poll whose client sends too much is also looked at, but only while its answer is being made: then no
            # deadline ends it.
            return decide(now, now, last_progress=last_progress, draining=draining, pending=pending)
        deadline, permit, _ = part
        return decide(
            now,
            deadline,
            ends_in=permit.ends_in if permit else inf,
            notice_in=permit.notice_in if permit and has_notice else inf,
            last_progress=last_progress,
            draining=draining,
            pending=pending,
        )
