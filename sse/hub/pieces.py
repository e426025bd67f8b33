"""Joins pieces of a text, for subscribers that are behind. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from sse.event import Entry, Piece
from sse.wire import stored_size

PIECES: Final = 4000
"""The most entries of a run's channel that are looked at together: 16 KB of text, if a piece has four characters."""

PIECE_REST: Final = 96
"""The most bytes of a piece besides its text and twice the name of its channel, in a stream or a poll's answer."""


def joined(entries: Iterable[Entry], max_bytes: int) -> Iterator[Entry]:
    """Yield the entries, with consecutive pieces as one entry: their texts joined, at the position of the last one.

    The ring keeps the single pieces, so a reader can go on from the position of any of them.

    :param max_bytes: the most bytes of a joined text, in a stream's block or in JSON. A piece beyond it stays single.
    """
    texts: list[str] = []
    size = 0
    last: Entry | None = None  # of the pieces whose texts are gathered
    for entry in entries:
        event = entry.event
        more = _most_bytes(event) if isinstance(event, Piece) else 0
        if last and (not isinstance(event, Piece) or size + more > max_bytes):
            yield _one(texts, last)
            texts, size, last = [], 0, None
        if isinstance(event, Piece):
            texts.append(event.data)
            size += more
            last = entry
        else:
            yield entry
    if last:
        yield _one(texts, last)


def _one(texts: list[str], last: Entry) -> Entry:
    return last if len(texts) == 1 else Entry(last.position, Piece("".join(texts)))


def _most_bytes(piece: Piece) -> int:
    """Return the most bytes that a piece adds to a text: JSON escapes some characters, and a block repeats `data: `."""
    return stored_size(piece) + 6 * piece.data.count("\n")
