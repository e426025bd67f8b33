"""Follows channels until all have ended. When a stream ends before that, another continues from its last event id."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Generator

import click

from sse.cli.backoff import pause
from sse.errors import Ended, Unavailable
from sse.event import PIECE_TYPE, RESERVED_PREFIX
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


class Output:
    """Prints events on standard output, resets and ends on standard error, and no other block of the service.

    The pieces of a text are printed as the text that they are. A line end follows the last of them only if something
    else comes after it on standard output, or a reset, after which the text begins again.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._text_of = ""  # the channel whose text stands in a line without an end

    def show(self, block: Block) -> None:
        """Print a block, unless it is a block of the service that is neither a reset nor an end."""
        id = block.last_event_id.partition("~")[0]
        channel = id.partition("=")[0]
        if block.type in ("sse.reset", "sse.end"):
            if block.type == "sse.reset":
                self._end_line()
            self.tell(f"{block.type.removeprefix(RESERVED_PREFIX)}: {block.data}")
        elif block.type.startswith(RESERVED_PREFIX):
            return
        elif self._as_json:
            item = {"channel": channel, "id": id, "type": block.type, "data": block.data}
            _print(json.dumps(item, ensure_ascii=False) + "\n")
        elif block.type == PIECE_TYPE:
            if channel != self._text_of:
                self._end_line()
            _print(block.data)
            self._text_of = "" if block.data.endswith("\n") else channel
        else:
            self._end_line()
            _print(block.data + "\n")

    def tell(self, text: str) -> None:
        """Print a line on standard error. On a terminal, it does not stand in the line of a text."""
        click.echo("\n" * (self._text_of != "" and sys.stdout.isatty()) + text, err=True)

    def _end_line(self) -> None:
        if self._text_of:
            self._text_of = ""
            _print("\n")


def _print(text: str) -> None:
    # Bytes are printed, so that the data comes out unchanged, whatever encoding the terminal has.
    click.echo(text.encode(), nl=False)
