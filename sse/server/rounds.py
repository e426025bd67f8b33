"""The rounds of the loop: each one checks the connections that are due, and then serves the rows on the agenda."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sse.server.row import Row
from sse.server.rows import Rows, Streams


class Rounds:
    """Runs the rounds, and puts on their agenda the connections and rows whose time has come."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def run(self) -> None:
        """Do the work on the agenda. Only the loop's own greenlet may call this, because it pauses."""
        agenda, pause = self._rows.agenda, self._rows.effects.pause
        due = deque(agenda.take_to_check())
        try:
            while due:
                self._check(due.popleft())
                pause()
            # Serve the rows that nobody can join yet first, so that they can catch up and merge.
            for row in sorted(agenda.take_to_serve(), key=lambda row: row.joinable_as is not None):
                agenda.begin_next()
                self._serve(row)
        finally:
            agenda.finish(due)

    def look_at_slot(self, slot: int, items: Sequence[int | Streams]) -> None:
        """Put the items of a slot of the wheel on the agenda, as far as they are due by now."""
        now = self._rows.effects.clock()
        for item in items:
            try:
                self._look_at_item(item, slot, now)
            except Exception:  # noqa: BLE001 - logged; the others go on
                self._rows.effects.fault("a connection or row may be late after a fault")

    def _look_at_item(self, item: int | Streams, slot: int, now: float) -> None:
        rows = self._rows
        if isinstance(item, int):
            if item in rows.row_of and rows.slots[item] == slot:
                rows.check_soon(item)
        elif item.fds and item.slot == slot:
            if item.due <= now:
                rows.agenda.serve_soon(item)
            item.set_timer()

    def check_permits_soon(self) -> None:
        """Put all connections with a permit on the agenda, because the wall clock has leapt."""
        for fd in self._rows.handed_off.with_permit():
            self._rows.check_soon(fd)

    def _check(self, fd: int) -> None:
        row = self._rows.row_of.get(fd)
        if row is None or self._rows.slots[fd]:
            return  # it has ended meanwhile, or its next check is later
        try:
            row.check(fd)
        except Exception:  # noqa: BLE001 - logged; the others go on
            self._rows.effects.fault("a connection is cut after a fault")
            self._rows.end(fd, "fault")

    def _serve(self, row: Row) -> None:
        try:
            if row.fds:
                row.serve()
        except Exception:  # noqa: BLE001 - logged; the others go on
            self._rows.effects.fault("streams are cut after a fault")
            row.end_all("fault")
