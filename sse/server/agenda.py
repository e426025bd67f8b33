"""The agenda of the loop: the connections to check and the rows to serve in the next round.

It also knows since when the rows have been waiting, so that publishers can wait while many rows are late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from sse.transports.dialect import Shared

FEW: Final = 64
"""Rows that may be late before publishers have to wait."""

BEHIND: Final = 0.01
"""Seconds after which a row on the agenda is late."""

R = TypeVar("R")


class Agenda(Generic[R]):
    """The work of the next round, and since when it has been waiting. Adding work never waits."""

    __slots__ = ("_clock", "_left", "_since", "_taken_since", "_wake", "shared", "to_check", "to_serve")

    def __init__(self, clock: Callable[[], float], wake: Callable[[], object]) -> None:
        self.to_check: list[int] = []
        """Connections that the next round checks."""
        self.to_serve: set[R] = set()
        """Rows that the next round serves."""
        self.shared: Shared = {}
        """The blocks that have been encoded in this round, for all rows that need the same ones."""
        self._clock = clock
        self._wake = wake
        self._since: float | None = None  # when the first row of `to_serve` was added
        self._taken_since: float | None = None  # the same for the rows of the round that is running
        self._left = 0  # rows of the running round that are still to be served

    def serve_soon(self, row: R) -> None:
        """Have a row served in the next round."""
        self.to_serve.add(row)
        if self._since is None:
            self._since = self._clock()
            self._wake()

    def check_soon(self, fd: int) -> None:
        """Have a connection checked in the next round."""
        self.to_check.append(fd)
        self._wake()

    def take_to_check(self) -> list[int]:
        """Return the connections to check, and take them off the agenda."""
        due, self.to_check = self.to_check, []
        return due

    def take_to_serve(self) -> set[R]:
        """Return the rows to serve, and take them off the agenda.

        The caller calls `begin_next` before it serves each row, and `finish` after the last one.
        """
        ready, self.to_serve = self.to_serve, set()
        self._taken_since, self._since = self._since, None
        self._left = len(ready)
        self.shared = {}
        return ready

    def begin_next(self) -> None:
        """Note that the round now serves one more of its rows."""
        self._left -= 1

    def finish(self, due: Iterable[int] = ()) -> None:
        """End the round, and start the next one if there is work for it.

        Rows that the round has taken and not served are not put back. A fault of one row does not end the round.

        :param due: connections that this round has taken, but did not check because of a fault.
        """
        self.to_check.extend(due)
        self._taken_since, self._left = None, 0
        if self.to_check or self.to_serve:
            self._wake()

    def is_late(self, now: float) -> bool:
        """Return whether more than `FEW` rows are on the agenda, and the first of them is late."""
        since = self._since if self._taken_since is None else self._taken_since
        return since is not None and now - since > BEHIND and self._left + len(self.to_serve) > FEW
