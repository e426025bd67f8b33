"""Standard input whose lines become events, each as soon as it is complete."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final

import click

from sse.cli.backoff import pause
from sse.cli.ending import Ending
from sse.errors import InvalidEvent, TooLarge, Unavailable
from sse.event import Event
from sse.wire import MAX_BATCH

Put = Callable[[Sequence[Event], str | None], list[str]]
"""Publishes events under one idempotency key, and returns their ids."""

_READ: Final = 65_536
_LONGEST_LINE: Final = (1 << 20) + 1  # longer than any SSE_MAX_EVENT_BYTES allows


class Lines:
    """Publishes lines once and in order, and counts them."""

    def __init__(self, put: Put, type: str) -> None:
        self._put = put
        self._type = type
        self._read = self._published = self._refused = 0

    def publish(self, source: BinaryIO) -> None:
        """Publish every line of `source`, and print the counts.

        :raises click.exceptions.Exit: with status 1, if a line was refused or perhaps not published.
        """
        try:
            with Ending():
                for lines in _lines(source):
                    self._read += len(lines)
                    events = [Event(line, self._type) for line in lines]
                    for start in range(0, len(events), MAX_BATCH):
                        self._send(events[start : start + MAX_BATCH])
        except KeyboardInterrupt:
            pass
        finally:
            lost = self._read - self._published - self._refused
            counts = ((self._published, "published"), (self._refused, "refused"), (lost, "perhaps not published"))
            told = [f"{count} {what}" for count, what in counts if count or what == "published"]
            click.echo(f"lines: {', '.join(told)}", err=True)
        if self._refused or lost:
            raise click.exceptions.Exit(1)

    def _send(self, events: Sequence[Event]) -> None:
        try:
            self._insist(events)
        except (InvalidEvent, TooLarge) as error:
            # Nothing of the batch is stored. Halving it finds the line and keeps the order.
            half = len(events) // 2
            if half:
                self._send(events[:half])
                self._send(events[half:])
            else:
                click.echo(f"line {self._published + self._refused + 1} is refused: {error}", err=True)
                self._refused += 1
        else:
            self._published += len(events)

    def _insist(self, events: Sequence[Event]) -> None:
        """Publish, however long that takes. The key and the place in the batch name each line: none is stored twice."""
        once = secrets.token_hex(16)
        attempt = 0
        while True:
            try:
                self._put(events, once)
            except Unavailable as error:
                if attempt == 0:
                    click.echo(f"waiting: {error}", err=True)
                pause(attempt, error.retry_after)
                attempt += 1
            else:
                return


def _lines(source: BinaryIO) -> Iterator[list[str]]:
    """Yield the lines that have come, as soon as any has; only the start of a line that is too long for any service."""
    pending = b""
    while chunk := source.read1(_READ):  # type: ignore[attr-defined]
        *lines, rest = (pending + chunk).split(b"\n")
        pending = rest[:_LONGEST_LINE]
        yield [line.decode(errors="replace").removesuffix("\r") for line in lines]
    if pending:
        yield [pending.decode(errors="replace").removesuffix("\r")]
