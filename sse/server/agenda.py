"""The agenda of the loop: what its next round has to do, and since when that has been waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from sse.transports.dialect import Shared

FEW: Final = 64
"""Rows that may be late without publishers having to wait."""

BEHIND: Final = 0.01
"""Seconds after which a row is late."""

R = TypeVar("R")


class Agenda(Generic[R]):
    """The work of the next round, and since when it waits. To put something on it never waits."""

    __slots__ = ("_clock", "_left", "_since", "_taken_since", "_wake", "shared", "to_check", "to_serve")

    def __init__(self, clock: Callable[[], float], wake: Callable[[], object]) -> None:
        self.to_check: list[int] = []
        """Connections that are to be dismissed."""
        self.to_serve: set[R] = set()
        """Rows that are to be served."""
        self.shared: Shared = {}
        """Blocks that are encoded in this round."""
        self._clock = clock
        self._wake = wake
        self._since: float | None = None  # when the first of `ready` came
        self._taken_since: float | None = None  # the same for the rows of the round that is under way
        self._left = 0  # rows of that round that are still to be served

    def serve_soon(self, row: R) -> None:
        """Have a row served in the next round."""
        self.to_serve.add(row)
        if self._since is None:
            self._since = self._clock()
            self._wake()

    def check_soon(self, fd: int) -> None:
        """Have a connection dismissed in the next round."""
        self.to_check.append(fd)
        self._wake()

    def take_to_check(self) -> list[int]:
        """Return the connections to be dismissed."""
        due, self.to_check = self.to_check, []
        return due

    def take_to_serve(self) -> set[R]:
        """Return the rows to be served. Before each, `begin_next` has to follow, and after the last one, `finish`."""
        ready, self.to_serve = self.to_serve, set()
        self._taken_since, self._since = self._since, None
        self._left = len(ready)
        self.shared = {}
        return ready

    def begin_next(self) -> None:
        """Count one row fewer that is late."""
        self._left -= 1

    def finish(self, due: Iterable[int] = ()) -> None:
        """End the round, and set off the next one if there is work for it.

        :param due: connections that this round has taken, and not dismissed because of a fault.
        """
        self.to_check.extend(due)
        self._taken_since, self._left = None, 0
        if self.to_check or self.to_serve:
            self._wake()

    def is_late(self, now: float) -> bool:
        """Return whether more rows than a few have been waiting for long."""
        since = self._since if self._taken_since is None else self._taken_since
        return since is not None and now - since > BEHIND and self._left + len(self.to_serve) > FEW
