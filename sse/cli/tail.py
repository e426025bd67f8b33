"""Follows channels for ever. When a stream ends, the next one continues from its last event id."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator

import click

from sse.cli.backoff import pause
from sse.errors import Unavailable
from sse.event import RESERVED_PREFIX
from sse.wire import Block, Parser


def follow(connect: Callable[[str], Generator[bytes]]) -> Generator[Block]:
    """Yield the blocks of one stream after another.

    :param connect: opens a stream that continues after a last event id, and yields its bytes.
    """
    last, retry, attempt = "", 0, 0
    while True:
        parser = Parser(last)
        least, trouble = 0.0, "the service is busy"
        try:
            with contextlib.closing(connect(last)) as chunks:
                for chunk in chunks:
                    for block in parser.feed(chunk):
                        attempt = 0 if block.type == "sse.open" else attempt
                        yield block
        except Unavailable as error:
            least, trouble = error.retry_after, str(error)
        if attempt == 1:  # not at the first failure, because most interruptions are over soon
            click.echo(f"waiting: {trouble}", err=True)
        last = parser.last_event_id
        retry = retry if parser.retry is None else parser.retry
        pause(attempt, max(least, retry / 1000))
        attempt += 1


def show(block: Block, as_json: bool) -> None:
    """Print an event on standard output, or a reset on standard error. Print no other block of the service."""
    if block.type == "sse.reset":
        click.echo(f"reset: {block.data}", err=True)
    elif not block.type.startswith(RESERVED_PREFIX):
        id = block.last_event_id.partition("~")[0]
        item = {"channel": id.partition("=")[0], "id": id, "type": block.type, "data": block.data}
        # Bytes are printed, so that the data comes out unchanged, whatever encoding the terminal has.
        click.echo((json.dumps(item, ensure_ascii=False) if as_json else block.data).encode())
