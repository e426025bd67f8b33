"""A row: connections that wait for the same thing. `rows` has their register, and the table of all rows."""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from typing import Protocol

from sse.server.agenda import Agenda
from sse.server.effects import Effects, Interest
from sse.small_set import SmallSet
from sse.transports.life import Next, Pending


class Register(Protocol):
    """The register of all connections, as a row sees it: see `Rows`, which is the only one."""

    effects: Effects
    agenda: Agenda[Row]
    slots: array[int]
    draining: bool
    held: int

    @property
    def is_holding_much(self) -> bool: ...
    def take_up(self, fd: int) -> None: ...
    def have_handled(self, fd: int) -> None: ...
    def keep(self, fd: int, read_ahead: bytes) -> None: ...
    def give_back(self, fd: int) -> None: ...
    def close(self, fd: int) -> None: ...
    def end(self, fd: int, reason: str | None = None) -> None: ...
    def next_of(self, fd: int, pending: Pending) -> Next: ...


class Row:
    """Connections that wait for the same thing, each kept as its number alone. Only `Rows` adds and removes them."""

    __slots__ = ("fds", "is_asking", "joinable_as", "rows")
    interest: Interest = "end"
    awaits_events = True  # then its connections get a goodbye when this process drains

    def __init__(self, rows: Register) -> None:
        self.rows = rows
        self.fds: SmallSet[int] = ()  # in the order in which they came
        self.joinable_as: Hashable = None  # under which `Joinable` finds it; None if nobody may join it
        self.is_asking = False  # a greenlet gets the next bytes, and may wait for the store

    def __call__(self) -> None:
        """Have the next round serve this row, because there may be something to send.

        The hub calls this while it holds its lock.
        """
        self.rows.agenda.serve_soon(self)

    def serve(self) -> None:
        """Send each connection what there is for it. The rounds call this."""

    def on_ready(self, fd: int) -> None:
        """Handle bytes from a peer, or room for more bytes to it. This must not wait."""

    def on_hang_up(self, fd: int) -> None:
        """Handle the end of what a peer sends. This must not wait."""
        self.rows.end(fd, "left")

    def next_for(self, fd: int) -> Next:
        """Return what is to happen to a connection now, by the table in `life`."""
        return self.rows.next_of(fd, "nothing")

    def check(self, fd: int) -> None:
        """End a connection whose time is over, or set the time of its next check. The rounds call this."""

    def on_removed(self, fd: int) -> None:  # noqa: ARG002 - for `Sending`
        """Give up the seat of a connection that has just left this row and is in no other."""
        if self.fds:
            self.release()
        elif not self.is_asking:  # else `asking_done` detaches: the greenlet still uses the stream or poll
            self.detach()

    def asking_done(self) -> None:
        """Have the row served, now that its greenlet is done; detach if no connection is left."""
        self.is_asking = False
        if self.fds:
            self.rows.agenda.serve_soon(self)  # also for events that came meanwhile
        else:
            self.detach()

    def release(self) -> None:
        """Give up one connection's seat in the hub; other connections remain."""

    def detach(self) -> None:
        """Detach from the hub, with the seat of the last connection."""

    def end_all(self, reason: str) -> None:
        """End all connections of this row without a goodbye.

        :param reason: for the log.
        """
        for fd in list(self.fds):
            self.rows.end(fd, reason)

    def log_end(self, fd: int, reason: str) -> None:
        """Log the end of a connection, if this row has streams or polls."""
