"""A TCP proxy before Redis that loses replies."""

from __future__ import annotations

from tests.proxy import Connection, Cutter


class LosingProxy(Cutter):
    """Forwards both ways; but a command that contains `marker` is answered to nobody, `losses` times.

    Redis has done the command by then, and its client sees the connection end.
    """

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
        self.marker = b""
        self.losses = self.lost = 0

    def lose(self, marker: bytes, losses: int) -> None:
        self.marker, self.losses, self.lost = marker, losses, 0

    def passes(self, connection: Connection, data: bytes, upward: bool) -> bool:
        if upward and self.losses and self.marker in data:
            self.losses -= 1
            connection.doomed = True
        elif not upward and connection.doomed:
            self.lost += 1
            return False
        return True
