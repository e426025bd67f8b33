"""The terms on which connections are here: each one's end, its permit, and what the app wants done afterwards."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from sse.server.effects import Calls
from sse.transports.life import Before, Handed, Next, decide

if TYPE_CHECKING:
    from sse.access.permit import Permit


class HandedOff:
    """The terms of each connection that has a permit, or something to be done at its end.

    The end of any other connection is the slot of the wheel that it has, and nothing more.
    """

    __slots__ = ("_handed",)

    def __init__(self) -> None:
        self._handed: dict[int, Handed] = {}

    def put(self, fd: int, handed: Handed) -> None:
        """Note what a body gave up when it was handed off."""
        if handed.permit or handed.closing:
            self._handed[fd] = handed

    def take(self, fd: int) -> Calls:
        """End the permit of a connection that leaves. Return what is to be done then."""
        handed = self._handed.pop(fd, None)
        if handed is None:
            return ()
        if handed.permit:
            handed.permit.end()
        return handed.closing

    def permit(self, fd: int) -> Permit | None:
        """Return the permit of a connection, if it needs one."""
        handed = self._handed.get(fd)
        return handed.permit if handed else None

    def with_permit(self) -> list[int]:
        """Return all connections that need a permit."""
        return [fd for fd, handed in self._handed.items() if handed.permit]

    def is_over(self, fd: int) -> bool:
        """Return whether a connection may be told nothing more, because its permit has ended."""
        permit = self.permit(fd)
        return permit is not None and permit.is_over

    def decide(
        self,
        fd: int,
        now: float,
        before: Before,
        *,
        draining: bool,
        last_progress: float = inf,
        has_notice: bool = False,
    ) -> Next:
        """Return what is to happen to a connection that is due, see `life`.

        :param has_notice: whether the end of its permit is told.
        """
        handed = self._handed.get(fd)
        if handed is None:  # due for no other reason than its time
            return decide(now, now, last_progress=last_progress, draining=draining, before=before)
        deadline, permit, _ = handed
        return decide(
            now,
            deadline,
            ends_in=permit.ends_in if permit else inf,
            notice_in=permit.notice_in if permit and has_notice else inf,
            last_progress=last_progress,
            draining=draining,
            before=before,
        )
