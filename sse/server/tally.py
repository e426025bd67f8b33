"""When each connection was taken over, and how much its row had written by then, for the line that tells its end.

A row counts what it writes once for all of its connections. The share of a connection is the row's count without the
count at which the connection came. So a delivery costs nothing more for each connection, and an idle connection takes
24 bytes here.
"""

from __future__ import annotations

from array import array


class Tally:
    """The beginning of each connection, by its number. A connection that moves to another row keeps its share."""

    __slots__ = ("_began", "_events", "_request_ids", "_size")

    def __init__(self) -> None:
        # File descriptors are small numbers close together, so arrays are enough, as for `Rows.slots`.
        self._began = array("d")
        self._events = array("q")
        self._size = array("q")
        self._request_ids: dict[int, str] = {}  # of those that have one

    def begin(self, fd: int, now: float, request_id: str) -> None:
        """Begin to count for a connection whose row has written nothing yet."""
        if missing := max(fd + 1 - len(self._began), 0):
            for each in (self._began, self._events, self._size):
                each.frombytes(bytes(each.itemsize * missing))
        self._began[fd] = now
        self._events[fd] = self._size[fd] = 0
        if request_id:
            self._request_ids[fd] = request_id
        else:
            self._request_ids.pop(fd, None)

    def move(self, fd: int, events: int, size: int) -> None:
        """Note that a connection moves to a row that has written so many more events and bytes."""
        self._events[fd] += events
        self._size[fd] += size

    def end(self, fd: int, now: float, events: int, size: int) -> tuple[float, int, int, str]:
        """Return the seconds, events and bytes of a connection that ends, and the id of its request.

        :param events: that its row has written.
        :param size: bytes that its row has written.
        """
        request_id = self._request_ids.pop(fd, "")
        return now - self._began[fd], events - self._events[fd], size - self._size[fd], request_id
