"""Writes and reads events: as blocks of `text/event-stream` (WHATWG HTML 9.2), and as JSON.

The store keeps an event as JSON, and a publish request brings events as JSON. Nothing here does I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sse.errors import InvalidEvent, RequestError
from sse.event import DEFAULT_TYPE, END_TYPE, End, Event, Piece, check_channel

MAX_BATCH: Final = 100
"""Most events of one publish request. An event on several channels counts once for each."""

MAX_PAYLOAD: Final = 6 * 1_048_576 + 1024
"""Bytes of the largest event in the store: SSE_MAX_EVENT_BYTES is 1 MiB at most, and JSON may need 6 bytes for one."""

HEARTBEAT = b"event: sse.heartbeat\ndata:\n\n"
"""A named event with one empty data line. Without a data line, no browser dispatches it (WHATWG HTML 9.2.6)."""

BARE_HEARTBEAT = b": heartbeat\n"
"""The same for `form=bare`, in which everything that the service says itself is a comment."""

_FREE: Final = (
    65_536  # bytes of a payload up to which any JSON is decoded; a larger one with deep nesting could take a second
)
_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT: Final = re.compile(rb"\{(?:%s:(?:%s|[^][{}\",]{1,32}+),?){1,64}+\}" % (_STRING, _STRING), re.DOTALL)

_EVENT: Final = b"event: "
_SHORT: Final = b'"\\\b\t\n\f\r'  # the bytes that JSON escapes in two characters
_PLAIN: Final = bytes(byte for byte in range(256) if byte >= 32 and byte not in _SHORT)
_LINE_END = re.compile(rb"\r\n|\r|\n")

_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_make_encoder: Final = getattr(json.encoder, "c_make_encoder", None)


def _encode_function() -> Callable[[object], str]:
    """Return the encoder's `encode`, but made of one encoder in C, of which `encode` itself makes one in each call."""
    if _make_encoder is None:
        return _encoder.encode
    text = json.encoder.encode_basestring
    parts = _make_encoder(None, _encoder.default, text, None, ":", ",", False, False, True)
    return lambda value: "".join(parts(value, 0))


encode_json: Final = _encode_function()
"""Returns compact JSON."""


def encode_body(event: Event) -> bytes:
    """Return the event's block without its id line: the bytes that all subscribers share."""
    head = "" if event.type == DEFAULT_TYPE else f"event: {event.type}\n"
    return f"{head}data: {event.data.replace(chr(10), chr(10) + 'data: ')}\n\n".encode()


def type_in_data(body: bytes) -> bytes:
    """Return the same block as an `sse.event` whose first line of data is the event's own type.

    This is for readers that get only the named events whose names they know, such as those behind an EventSource.
    """
    if not body.startswith(_EVENT):
        body = b"%s%s\n%s" % (_EVENT, DEFAULT_TYPE.encode(), body)
    return b"event: sse.event\ndata: " + body.removeprefix(_EVENT)


def with_id(last_event_id: str, body: bytes, *, last: bool = False) -> bytes:
    """Return a complete block: a body and its id line, which is its first or its last line."""
    head, tail = around_id(last_event_id, body, last)
    return head + tail


def around_id(id: str, body: bytes, last: bool) -> tuple[bytes, bytes]:
    """Return a block in two parts; a longer id continues between them. The id's line is the first or the last one."""
    line = f"id: {id}".encode()
    return (body[:-1] + line, b"\n\n") if last else (line, b"\n" + body)


def with_retry(retry: int, blocks: bytes) -> bytes:
    """Return the same blocks, the first with a line that sets `retry`, in milliseconds."""
    return b"retry: %d\n%b" % (retry, blocks)


def encode_control(
    type: str,
    data: Mapping[str, object],
    *,
    last_event_id: str | None = None,
    retry: int | None = None,
    id_last: bool = False,
) -> bytes:
    """Return a complete block of the service's own; `retry` is in milliseconds."""
    block = f"event: {type}\ndata: {encode_json(data)}\n\n".encode()
    if last_event_id is not None:
        block = with_id(last_event_id, block, last=id_last)
    return block if retry is None else with_retry(retry, block)


def encode_comment(name: str, data: Mapping[str, object]) -> bytes:
    """Return a comment of one line, for a stream in which only events are blocks.

    No blank line follows it, because some readers take a blank line for the end of an event.
    """
    return f": {name} {encode_json(data)}\n".encode()


@dataclass(frozen=True, slots=True)
class Block:
    """The event that one block dispatches. `last_event_id` is that of an earlier block if this one has none."""

    type: str
    data: str
    last_event_id: str


class Parser:
    """Reads `text/event-stream` from bytes as they come (WHATWG HTML 9.2.6).

    `retry` is the newest reconnection time in milliseconds, and `last_event_id` the newest id that was dispatched. A
    block that the stream leaves unfinished is never returned, and its id has no effect.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.retry: int | None = None
        self.last_event_id = last_event_id
        self._pending = b""
        self._started = False
        self._id, self._type, self._data = last_event_id, "", list[str]()

    def feed(self, chunk: bytes) -> Iterator[Block]:
        """Yield the blocks that `chunk` completes."""
        self._pending += chunk
        if not self._started:
            if b"\xef\xbb\xbf".startswith(self._pending[:3]) and len(self._pending) < 3:
                return
            self._pending = self._pending.removeprefix(b"\xef\xbb\xbf")
            self._started = True
        # A CR at the end of the bytes may be the first half of a CRLF.
        held_back = b"\r" if self._pending.endswith(b"\r") else b""
        lines = _LINE_END.split(self._pending[: len(self._pending) - len(held_back)])
        self._pending = lines.pop() + held_back
        for line in lines:
            block = self._line(line.decode(errors="replace"))
            if block:
                yield block

    def _line(self, line: str) -> Block | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and re.fullmatch(r"[0-9]{1,15}", value):
            self.retry = int(value)
        return None

    def _dispatch(self) -> Block | None:
        self.last_event_id = self._id
        block = Block(self._type or DEFAULT_TYPE, "\n".join(self._data), self._id) if self._data else None
        self._type, self._data = "", []
        return block


def encode_payload(event: Event) -> bytes:
    """Return the event as the store keeps it: compact JSON `{"type", "data"}`, and `"piece": true` for a piece."""
    members: dict[str, object] = {"type": event.type, "data": event.data}
    if isinstance(event, Piece):
        members["piece"] = True
    return encode_json(members).encode()


def stored_size(event: Event) -> int:
    """Return the bytes that the event's data takes in the store: UTF-8, with JSON's escapes (RFC 8259, 7).

    A quote, backslash, tab, line end, backspace or form feed takes two bytes, any other control character six.
    """
    data = event.data.encode()
    escaped = data.translate(None, _PLAIN)  # this takes a fifth of the time of encoding the data as JSON
    return len(data) + len(escaped) + 4 * len(escaped.translate(None, _SHORT))


def decode_payload(payload: bytes) -> Event:
    """Return the event that `encode_payload` wrote. Unknown members are ignored.

    :raises ValueError: if the payload is not such JSON, is larger than MAX_PAYLOAD, or is nested too deeply. A payload
        over 64 KiB may not be nested at all: `encode_payload` never nests.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a ring's entry has {len(payload)} bytes, but an event has {MAX_PAYLOAD} at most")
    if len(payload) > _FREE and not _FLAT.fullmatch(payload):
        raise ValueError(f"a ring's entry of {len(payload)} bytes is not a flat JSON object")
    try:
        members = json.loads(payload)
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"a ring's entry cannot be read: {type(error).__name__}") from None
    if not isinstance(members, dict) or "data" not in members:
        raise ValueError("a ring's entry is not a JSON object with data")
    data, kind = members["data"], members.get("type", DEFAULT_TYPE)
    if members.get("piece") is True and isinstance(data, str):
        return Piece(data)
    if kind == END_TYPE and isinstance(data, str):
        return End.of(data)
    return Event(data, kind)


def _constant(name: str) -> None:
    raise RequestError(f"{name} is not JSON", "send null, or a string", code="bad_json")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise RequestError("an object has the same name twice", "send each name once", code="bad_json")
    return members


_decode: Final = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=_members).decode


def parse_json(body: bytes) -> Any:
    """Return the JSON value (RFC 8259) in `body`, which is UTF-8.

    :raises RequestError: if it is not JSON, or has NaN or Infinity, a name twice in one object, nesting that is too
        deep, or a whole number of over 4,300 digits.
    """
    try:
        return _decode(body.decode())
    except RecursionError:
        raise RequestError("the body is nested too deeply", "send flatter JSON", code="bad_json") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError(f"the body is not JSON in UTF-8: {error}", "see RFC 8259", code="bad_json") from None
    except ValueError:  # Python's own bound, because converting many digits takes long
        raise RequestError("a number has over 4,300 digits", "send it as a string", code="bad_json") from None


def parse_publish(body: bytes) -> list[tuple[str, Event]]:
    """Return the events of a publish request, each with its channel, in order. One bad event refuses them all.

    The body is `{"channel": "a" or ["a", "b"], "type"?, "data"}` or a list of up to 100 of these.

    :raises RequestError: if the body is not JSON.
    :raises InvalidEvent: naming the first value that cannot be published.
    """
    items = parse_json(body)
    items = items if isinstance(items, list) else [items]
    published: list[tuple[str, Event]] = []
    for number, item in enumerate(items):
        if not isinstance(item, dict) or not item.keys() >= {"channel", "data"}:
            raise InvalidEvent(f"event {number} has no channel or no data", 'send {"channel": "a", "data": …}')
        unknown = item.keys() - {"channel", "type", "data"}
        if unknown:
            raise InvalidEvent(f"event {number} has {min(unknown)[:60]!a}", "an event has channel, type and data only")
        channels = item["channel"] if isinstance(item["channel"], list) else [item["channel"]]
        if not channels:
            raise InvalidEvent(f"event {number} names no channel", "give one or more channels", code="invalid_channel")
        event = Event(item["data"], DEFAULT_TYPE if item.get("type") is None else item["type"])
        published += [(check_channel(channel), event) for channel in channels]
    if not 1 <= len(published) <= MAX_BATCH:
        raise InvalidEvent(f"{len(published)} events in one request", f"send 1 to {MAX_BATCH}", code="bad_batch")
    return published
