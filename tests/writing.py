"""Runs for the tests: their pieces and ends go straight into a store."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sse.event import EndReason, Event, Piece, Position
from sse.stores import Store
from sse.stores.leases import weight


class Run:
    """A live run on a channel of a store."""

    def __init__(self, store: Store, channel: str, *, restart: bool = False) -> None:
        self.channel = channel
        self._leases = store.leases
        self._token = secrets.token_hex(8)
        self._written = 0
        assert self._leases.start(channel, self._token, restart=restart) == "started"

    def write(self, *items: str | Event) -> list[Position]:
        """Store each text as a piece, each event as it is; return their positions."""
        return [self._write(Piece(item) if isinstance(item, str) else item) for item in items]

    def renew(self) -> None:
        """Renew the lease, so that the run does not count as lost."""
        assert self._leases.renew([(self.channel, self._token)]) == [True]

    def end(self, reason: EndReason = "done") -> Position:
        """End the run; return the position of its end."""
        position = self._leases.end(self.channel, reason, token=self._token)
        assert position is not None
        return position

    def _write(self, event: Event) -> Position:
        position = self._leases.write(self.channel, self._token, event, key=secrets.token_hex(8), written=self._written)
        self._written += weight(event)
        return position


@contextmanager
def kept_alive(run: Run) -> Iterator[None]:
    """Renew the run's lease in a thread."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(1):
            run.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)
