"""Follows channels until all have ended. When a stream ends before that, another continues from its last event id."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator

import click

from sse.cli.backoff import pause
from sse.errors import Ended, Unavailable
from sse.event import RESERVED_PREFIX
from sse.wire import Block, Parser


def follow(connect: Callable[[str], Generator[bytes]]) -> Generator[Block]:
    """Yield the blocks of one stream after another, until all channels have ended.

    :param connect: opens a stream that continues after a last event id, and yields its bytes.
    """
    last, retry, attempt = "", 0, 0
    ended: set[str] = set()
    channels: set[str] = set()
    while True:
        parser = Parser(last)
        least, trouble = 0.0, "the service is busy"
        try:
            with contextlib.closing(connect(last)) as chunks:
                for chunk in chunks:
                    for block in parser.feed(chunk):
                        attempt = 0 if block.type == "sse.open" else attempt
                        yield block
                        if block.type == "sse.open":
                            channels, ended = _of_opening(block)
                        elif block.type in ("sse.end", "sse.reset"):
                            channel = json.loads(block.data)["channel"]
                            ended = ended | {channel} if block.type == "sse.end" else ended - {channel}
        except Ended:
            return
        except Unavailable as error:
            least, trouble = error.retry_after, str(error)
        if channels and ended >= channels:
            return
        if attempt == 1:  # not at the first failure, because most interruptions are over soon
            click.echo(f"waiting: {trouble}", err=True)
        last = parser.last_event_id
        retry = retry if parser.retry is None else parser.retry
        pause(attempt, max(least, retry / 1000))
        attempt += 1


def _of_opening(block: Block) -> tuple[set[str], set[str]]:
    """Return the channels of a stream, and those of them that have ended."""
    told = json.loads(block.data)["channels"]
    return set(told), {channel for channel, members in told.items() if "ended" in members}


def show(block: Block, as_json: bool) -> None:
    """Print an event on standard output, a reset or an end on standard error. Print no other block of the service."""
    if block.type in ("sse.reset", "sse.end"):
        click.echo(f"{block.type.removeprefix(RESERVED_PREFIX)}: {block.data}", err=True)
    elif not block.type.startswith(RESERVED_PREFIX):
        id = block.last_event_id.partition("~")[0]
        item = {"channel": id.partition("=")[0], "id": id, "type": block.type, "data": block.data}
        # Bytes are printed, so that the data comes out unchanged, whatever encoding the terminal has.
        click.echo((json.dumps(item, ensure_ascii=False) if as_json else block.data).encode())
