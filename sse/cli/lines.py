"""Publishes each line of standard input as an event, as soon as the line is complete."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final

import click

from sse.cli.backoff import pause
from sse.cli.ending import StopSignals
from sse.errors import Ended, InvalidEvent, TooLarge, Unavailable
from sse.event import Event
from sse.wire import MAX_BATCH

Publish = Callable[[Sequence[Event], str | None], list[str]]
"""A function that publishes events under one idempotency key, and returns their ids."""

_READ: Final = 65_536  # bytes
_LONGEST_LINE: Final = (1 << 20) + 1  # bytes; longer than any SSE_MAX_EVENT_BYTES allows


class Lines:
    """Publishes lines, each once and in order, and counts them."""

    def __init__(self, publish: Publish, type: str) -> None:
        self._publish = publish
        self._type = type
        self._read = self._published = self._refused = 0

    def publish(self, source: BinaryIO) -> None:
        """Publish every line of `source`, and print how many were published, refused, or perhaps not published.

        :raises click.exceptions.Exit: with status 1, if a line was refused or perhaps not published.
        :raises Ended: if the channel has ended.
        """
        try:
            with StopSignals():
                for lines in _complete_lines(source):
                    self._read += len(lines)
                    events = [Event(line, self._type) for line in lines]
                    for start in range(0, len(events), MAX_BATCH):
                        self._publish_batch(events[start : start + MAX_BATCH])
        except KeyboardInterrupt:
            pass
        finally:
            uncertain = self._read - self._published - self._refused
            counts = ((self._published, "published"), (self._refused, "refused"), (uncertain, "perhaps not published"))
            texts = [f"{count} {outcome}" for count, outcome in counts if count or outcome == "published"]
            click.echo(f"lines: {', '.join(texts)}", err=True)
        if self._refused or uncertain:
            raise click.exceptions.Exit(1)

    def _publish_batch(self, events: Sequence[Event]) -> None:
        try:
            self._publish_at_last(events)
        except (InvalidEvent, TooLarge) as error:
            if error.code == "run_full":
                raise  # some events of the batch may be stored
            # No event of the batch is stored. Publishing its halves finds the faulty line, and keeps the order.
            half = len(events) // 2
            if half:
                self._publish_batch(events[:half])
                self._publish_batch(events[half:])
            else:
                click.echo(f"line {self._published + self._refused + 1} is refused: {error}", err=True)
                self._refused += 1
        except Ended as error:
            stored = sum(id is not None for id in error.ids)
            self._published += stored
            self._refused += len(events) - stored
            raise
        else:
            self._published += len(events)

    def _publish_at_last(self, events: Sequence[Event]) -> None:
        """Publish events, and repeat that until the service answers, however long it takes.

        The idempotency key stays the same, so no line is stored twice.
        """
        key = secrets.token_hex(16)
        attempt = 0
        while True:
            try:
                self._publish(events, key)
            except Unavailable as error:
                if attempt == 0:
                    click.echo(f"waiting: {error}", err=True)
                pause(attempt, error.retry_after)
                attempt += 1
            else:
                return


def _complete_lines(source: BinaryIO) -> Iterator[list[str]]:
    """Yield lists of lines as they come. Of a line that is too long for every service, only the start is kept."""
    pending = b""
    while chunk := source.read1(_READ):  # type: ignore[attr-defined]
        *lines, incomplete = (pending + chunk).split(b"\n")
        pending = incomplete[:_LONGEST_LINE]
        yield [line.decode(errors="replace").removesuffix("\r") for line in lines]
    if pending:
        yield [pending.decode(errors="replace").removesuffix("\r")]
