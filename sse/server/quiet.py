"""The rows of connections that wait for bytes of their clients: for a request, or for the rest of one.

The table at the head of `rows` says where each of them goes. Some are closed when a new connection needs their room.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Final, Protocol

from sse.server.row import Register, Row
from sse.server.wheel import slot_of

REQUEST_BYTES: Final = 16_384
"""Bytes in one read of a request."""

_FIRST_REQUEST: Final = 20.0  # seconds that a new client has to begin a request
_LAST_REQUEST: Final = 1.0  # seconds that a client has to send another request while this process drains
_HEAD: Final = 20.0  # seconds from a head's first byte to its last
_BODY: Final = 0.05  # seconds for which the rest of a body is awaited without a greenlet
_MOST_PARTIAL: Final = 4 << 20  # bytes of all heads that are not complete, and as many of such bodies
_SILENT: Final = 1.0  # seconds after which a new connection counts as silent, and may be closed first


class Quiet(Row):
    """Connections that wait for bytes of their client, all for the same time: so the first one is due first.

    The wheel does not know them, because one connection may come here many times a second.
    """

    __slots__ = ("_seconds",)
    interest = "input"
    awaits_events = False

    def __init__(self, rows: Register, seconds: float) -> None:
        super().__init__(rows)
        self._seconds = seconds

    @property
    def until_from_now(self) -> float:
        """The time when a connection is over if it sends nothing from now on."""
        return self.rows.effects.clock() + self._seconds

    @property
    def first_slot(self) -> int:
        """The slot of the wheel in which the time of the first connection is over. There has to be one."""
        return self.rows.slots[next(iter(self.fds))]

    @property
    def is_silent(self) -> bool:
        """True if the first connection has been here for a second."""
        return self.first_slot < slot_of(self.until_from_now - _SILENT)

    def begin(self, fd: int) -> None:
        """Begin the time of a connection that has just come."""
        self.rows.slots[fd] = slot_of(self.until_from_now)

    def check_first(self) -> None:
        """Check the connection that has been here longest."""
        self.check(next(iter(self.fds)))

    def check_late(self) -> None:
        """Check the connections whose time is over."""
        now, slots = slot_of(self.rows.effects.clock()), self.rows.slots
        # To look for the first one again and again would take the longer, the more have left before it.
        for fd in list(takewhile(lambda fd: slots[fd] < now, self.fds)):
            try:
                self.check(fd)
            except Exception:  # noqa: BLE001 - logged; the others go on
                self.rows.effects.fault("a connection is cut after a fault")
                self.rows.end(fd)


class Parked(Quiet):
    """Connections between two requests, or before the first one: no byte of a request has come yet."""

    __slots__ = ()

    @property
    def until_from_now(self) -> float:
        return self.rows.effects.clock() + (_LAST_REQUEST if self.rows.draining else self._seconds)

    def on_ready(self, fd: int) -> None:
        self.rows.take_up(fd)

    def on_hang_up(self, fd: int) -> None:
        self.check(fd)  # a request may have come before the hang-up

    def check(self, fd: int) -> None:
        """Close the connection, unless a request has come just now."""
        if self.rows.effects.unread(fd):
            self.rows.take_up(fd)
        else:
            self.rows.close(fd)


class Gathers(Protocol):
    """Gathers the bytes of a request until there are enough, as `Head` and `Rest` do."""

    data: bytearray

    def add(self, data: bytes) -> bool:
        """Add the next bytes. Return whether all have come."""


class Partial(Quiet):
    """Connections with a part of a request: of its head, or of its body.

    :param closes: True if a connection is closed when its time is over; else a greenlet reads the rest of its request.
    """

    __slots__ = ("_closes", "_gathered", "_size")

    def __init__(self, rows: Register, seconds: float, *, closes: bool) -> None:
        super().__init__(rows, seconds)
        self._closes = closes
        self._gathered: dict[int, Gathers] = {}
        self._size = 0  # of what they have gathered

    def gather(self, fd: int, gathered: Gathers) -> None:
        """Begin to gather the rest of the request of a connection that has just come."""
        self._gathered[fd] = gathered
        self.begin(fd)
        self._count(len(gathered.data))
        self._bound()

    def on_ready(self, fd: int) -> None:
        rows = self.rows
        try:
            data = rows.effects.read(fd, REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._count(len(data))
        is_enough = self._gathered[fd].add(data)
        if not data or rows.is_holding_much:
            self.end(fd)
        elif is_enough:
            rows.keep(fd, self._take(fd))
            rows.have_handled(fd)
        else:
            self._bound()

    def on_hang_up(self, fd: int) -> None:
        self.on_ready(fd)

    def check(self, fd: int) -> None:
        if self._closes:
            self.rows.close(fd)
        else:
            self.end(fd)

    def end(self, fd: int) -> None:
        """Give a connection to a greenlet, which reads the rest of its request or its end."""
        self.rows.keep(fd, self._take(fd))
        self.rows.give_back(fd)

    def on_removed(self, fd: int) -> None:
        self._take(fd)

    def _take(self, fd: int) -> bytes:
        gathered = self._gathered.pop(fd, None)
        if gathered is None:
            return b""
        self._count(-len(gathered.data))
        return bytes(gathered.data)

    def _count(self, more: int) -> None:
        self._size += more
        self.rows.held += more

    def _bound(self) -> None:
        """End the time of the connections that have been here longest, as long as all have too many bytes."""
        while self._size > _MOST_PARTIAL:
            self.check_first()


class QuietConnections:
    """The connections that wait for their clients: some are closed when a new connection needs their room."""

    __slots__ = ("bodies", "heads", "kept", "new")

    def __init__(self, rows: Register, keepalive: float) -> None:
        self.new = Parked(rows, _FIRST_REQUEST)
        """The connections that have sent nothing yet."""
        self.kept = Parked(rows, keepalive)
        self.heads = Partial(rows, _HEAD, closes=True)
        self.bodies = Partial(rows, _BODY, closes=False)

    def __len__(self) -> int:
        return len(self.new.fds) + len(self.kept.fds) + len(self.heads.fds) + len(self.bodies.fds)

    def make_room(self) -> None:
        """Close one connection: the oldest that is silent, or else the one that was kept longest between requests.

        A connection is silent if its first request, or the rest of a head, has not come within a second. If a request
        has come just now on the chosen connection, it is handled instead, and no room is made.
        """
        begun = min((row for row in (self.new, self.heads) if row.fds), key=lambda row: row.first_slot, default=None)
        if begun is not None and (begun.is_silent or not self.kept.fds):
            begun.check_first()
        elif self.kept.fds:
            self.kept.check_first()

    def check_late(self) -> None:
        """Check the connections whose time is over."""
        for row in (self.new, self.kept, self.heads, self.bodies):
            row.check_late()

    def shorten(self) -> None:
        """Set the end of each parked connection anew, because a drain has shortened the time that they have."""
        for parked in (self.new, self.kept):
            for fd in parked.fds:
                parked.begin(fd)
