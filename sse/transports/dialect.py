"""The writer of a stream's blocks: opening, events, ends, resets, notices, heartbeats and the close, in each dialect.

`wire` has the grammar of single fields and blocks, and the hub encodes an event's body once for all. All else that a
stream says is written here. Nothing here does I/O.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from sse.event import UNBORN, End, EndReason, Entry, Event, Position, format_last_event_id, rest_of_id
from sse.hub.subscriber import Item, Reset, SourceState, Start
from sse.transports.life import CloseReason
from sse.wire import (
    BARE_HEARTBEAT,
    HEARTBEAT,
    around_id,
    encode_body,
    encode_comment,
    encode_control,
    type_in_data,
    with_id,
    with_retry,
)

Claims = Mapping[str, Position | None]
"""The position that a stream's ids give for each channel. It is None until a reset is sent to a client without one."""

ITEM_ID: Final = "~"
"""The id of all blocks of a stream that one client has for itself. No position has it."""

SplitBlock = tuple[bytes, bytes]
"""The two parts of a block, before and after the point where its id goes on with the other channels."""


class Segment(NamedTuple):
    """Consecutive blocks of one channel, for all streams that continue with them.

    `whole` has the blocks with ids of this channel only. `split_blocks` has each block as two parts, for ids that name
    other channels too; it is empty if the blocks have no id. `position` is that of the last block. `more` is True if
    the hub may have more at hand after it. `is_end` is True if the one block is the channel's end. `events` counts the
    blocks that are events.
    """

    whole: bytes
    split_blocks: Sequence[SplitBlock]
    position: Position
    more: bool
    is_end: bool = False
    events: int = 0


NOTHING: Final = Segment(b"", (), UNBORN, more=False)
"""The segment of a channel in which nothing has come; its position means nothing."""

Shared = dict[tuple[str, Position, int], Segment | None]
"""The segments of one round, by channel, position and `Dialect.kind`; None where the hub's ring has passed it."""


class Dialect(NamedTuple):
    """How a stream is written. Streams that are written alike share one: see `dialect_of`.

    :param heartbeat: seconds of quiet before a heartbeat.
    :param retry: milliseconds that a client waits before it reconnects.
    :param delta: True if an event's id has the position of its own channel only.
    :param typed: True if an event's type is written in its data, see `type_in_data`.
    :param bare: True if the service writes its own messages as comments, so that every block is an event's.
    :param cut: True if the body breaks off at its end.
    :param id_last: True if the id is the last line of its block. Some readers that need `bare` or `cut` take an id when
        they read its line. If the body broke off behind that line, in the middle of the data, they would never ask for
        that event again.
    :param kind: a number that is equal for dialects with the same `typed`, `bare` and `id_last`, whose segments are the
        same.
    """

    heartbeat: float
    retry: int
    delta: bool
    typed: bool
    bare: bool
    cut: bool
    id_last: bool
    kind: int

    @property
    def beat(self) -> bytes:
        """The heartbeat."""
        return BARE_HEARTBEAT if self.bare else HEARTBEAT

    def opening(
        self,
        starts: Mapping[str, Start],
        resets: Iterable[Reset],
        claims: Claims,
        lifetime: int,
        extra: Mapping[str, object],
        members: Mapping[str, Mapping[str, object]],
    ) -> bytes:
        """Return the block that says where the stream begins in each channel, and a heartbeat.

        :param resets: the resets that the client has not got yet.
        :param lifetime: seconds.
        :param members: further members of what the block says of a channel.
        :param extra: further members of the block's data.
        """
        with_reset = {reset.channel for reset in resets}
        channels = {
            name: {
                "position": str(claims[name]) if claims[name] else None,
                "resumed": start.position is not None and name not in with_reset,
                **members.get(name, {}),
            }
            for name, start in starts.items()
        }
        data = {"channels": channels, "heartbeat": self.heartbeat, "lifetime": lifetime, "retry": self.retry, **extra}
        if self.bare:
            return encode_comment("open", data) + self.beat
        id = format_last_event_id(claims)
        return encode_control("sse.open", data, last_event_id=id, retry=self.retry, id_last=self.id_last) + self.beat

    def blocks(self, taken: Iterable[Item], claims: dict[str, Position | None]) -> bytes:
        """Return the blocks of what a subscriber has taken, in order.

        This updates `claims`, so that the id of each block claims that block and the blocks before it, and no others.
        """
        parts: list[bytes] = []
        channel, others = "", b""
        for item in taken:
            if isinstance(item, SourceState):
                parts.append(self._notice_of_source(item))
                continue
            if item.channel != channel:
                channel = item.channel
                others = self._others(channel, claims)
            if isinstance(item, Reset):
                claims[channel] = item.position
                head, tail = self._reset(item)
            else:
                claims[channel] = item.entry.position
                if self.bare and isinstance(item.entry.event, End):
                    parts.append(_end_comment(item.entry))
                    continue
                head, tail = self._event(channel, item.entry)
            parts += (head, others, tail)
        return b"".join(parts)

    def segment(self, channel: str, entries: Sequence[Entry], max_bytes: int, *, more: bool) -> Segment:
        """Return the blocks of a channel's entries: the first one, and more while their bodies fit in `max_bytes`.

        The end of a channel has a segment of its own, because it may be the last block of a stream.

        :param more: True if the hub may have more at hand after these entries.
        """
        if type(entries[-1].event) is End:  # isinstance takes longer, and this is done in each delivery
            if len(entries) == 1:
                return self._end(channel, entries[0])
            entries, more = entries[:-1], True
        size = 0
        split_blocks: list[SplitBlock] = []
        for entry in entries:
            size += len(entry.body)
            if split_blocks and size > max_bytes:
                more = True
                break
            split_blocks.append(self._event(channel, entry))
        position = entries[len(split_blocks) - 1].position
        whole = b"".join([part for block in split_blocks for part in block])
        return Segment(whole, split_blocks, position, more, events=len(split_blocks))

    def segment_blocks(self, segment: Segment, channel: str, claims: Claims) -> bytes:
        """Return the blocks of a channel's segment, with the ids of a stream that has these claims."""
        if self.delta or len(claims) == 1 or not segment.split_blocks:
            return segment.whole
        others = self._others(channel, claims)
        return b"".join([head + others + tail for head, tail in segment.split_blocks])

    def first_blocks(self, blocks: bytes) -> bytes:
        """Return the same blocks, with `retry` in the first event of a bare stream."""
        return with_retry(self.retry, blocks)

    def notice(self, expires: int | None) -> bytes:
        """Return the block that says in how many seconds a permit ends; empty for None."""
        if expires is None:
            return b""
        data = {"expires": expires}
        return encode_comment("auth", data) if self.bare else encode_control("sse.auth", data)

    def close(self, reason: CloseReason, after: int | None = None) -> bytes:
        """Return the last block. It has the client wait for a random time of up to `retry` before it reconnects.

        :param after: seconds before which the client would be refused again. If they are given, it waits for 1 to 1.5
            times as long.
        """
        wait = random.uniform(0.1, 1) * self.retry if after is None else random.uniform(1, 1.5) * 1000 * after
        return _close(reason, round(wait), bare=self.bare)

    def farewell(self, end: bytes) -> bytes:
        """Return the end of a stream's last channel. It has the client wait for a random time, as `close` does."""
        return end if self.bare else with_retry(round(random.uniform(0.1, 1) * self.retry), end)

    def _event(self, channel: str, entry: Entry) -> SplitBlock:
        body = entry.body
        if self.typed and not isinstance(entry.event, End):
            body = type_in_data(body)
        return around_id(f"{channel}={entry.position}", body, self.id_last)

    def _end(self, channel: str, entry: Entry) -> Segment:
        if self.bare:
            return Segment(_end_comment(entry), (), entry.position, more=False, is_end=True)
        block = self._event(channel, entry)
        return Segment(b"".join(block), (block,), entry.position, more=False, is_end=True)

    def _notice_of_source(self, source: SourceState) -> bytes:
        data = {"channel": source.channel, "state": source.state, "retry": self.retry}
        return encode_comment("source", data) if self.bare else encode_control("sse.source", data)

    def _reset(self, reset: Reset) -> SplitBlock:
        return around_id(f"{reset.channel}={reset.position}", encode_control("sse.reset", reset.json), self.id_last)

    def _others(self, channel: str, claims: Claims) -> bytes:
        """Return the part of an id that names the other channels, as it follows the channel's own entry."""
        return b"" if self.delta or len(claims) == 1 else rest_of_id(claims, channel).encode()


@lru_cache(maxsize=1024, typed=True)  # a heartbeat of 15 is not told as 15.0
def dialect_of(heartbeat: float, retry: int, *, delta: bool, typed: bool, bare: bool, cut: bool) -> Dialect:
    """Return the dialect with these values: one object that very many streams share."""
    kind = typed + 2 * bare + 4 * (bare or cut)
    return Dialect(heartbeat, retry, delta, typed, bare, cut, id_last=bare or cut, kind=kind)


def claims_of(
    positions: Mapping[str, Position], resets: Iterable[Reset], starts: Mapping[str, Start]
) -> dict[str, Position | None]:
    """Return the claims with which a stream opens.

    They are the subscriber's positions. A channel whose reset has not been sent yet has the client's own position, if
    any. So a client that is cut before it gets the reset reconnects with a position that is reset again.
    """
    with_reset = {reset.channel for reset in resets}
    if not with_reset:
        return {**positions}
    return {name: starts[name].position if name in with_reset else position for name, position in positions.items()}


def item_opening(heartbeat: float, retry: int) -> bytes:
    """Return the first block of a stream that one client has for itself, and a heartbeat."""
    data = {"channels": {}, "heartbeat": heartbeat, "retry": retry}
    return encode_control("sse.open", data, last_event_id=ITEM_ID, retry=retry) + HEARTBEAT


def item_block(event: Event) -> bytes:
    """Return the block of an event for one client."""
    return with_id(ITEM_ID, encode_body(event))


def item_end(reason: EndReason, retry: int) -> bytes:
    """Return the last block of such a stream. Its client comes back after a random time, and gets a 204."""
    data = {"channel": None, "reason": reason}
    return encode_control("sse.end", data, last_event_id=ITEM_ID, retry=round(random.uniform(0.1, 1) * retry))


def busy(retry: int, after: int = 0, *, bare: bool = False) -> bytes:
    """Return the whole body for a client that cannot be served now.

    An error status would end an EventSource for good.

    :param retry: milliseconds; the client waits for 1 to 4 times as long.
    :param after: seconds that it waits in addition, because it would be refused before that.
    """
    return _close("busy", round(busy_for(retry, after)), bare=bare)


def busy_for(retry: int, after: int = 0) -> float:
    """Return the milliseconds for which a client that cannot be served is to wait, see `busy`."""
    return random.uniform(1, 4) * retry + after * 1000


def _end_comment(entry: Entry) -> bytes:
    return b": end %b\n" % entry.event.data.encode()


def _close(reason: CloseReason, retry: int, *, bare: bool) -> bytes:
    # `retry` is in the data too, because an EventSource does not show the `retry:` field to the page.
    data = {"reason": reason, "retry": retry}
    return encode_comment("close", data) if bare else encode_control("sse.close", data, retry=retry)
