"""The values that are published and sent: an event, its position in a channel, and a client's last event id.

An event's data and type are checked when it is made. Channels and keys are checked by functions. No I/O is done here.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Final, Literal, NamedTuple, cast, get_args

from sse.errors import InvalidEvent

DEFAULT_TYPE: Final = "message"
"""The type of an event that names none (WHATWG HTML 9.2.6, dispatch step 5)."""

RESERVED_PREFIX: Final = "sse."
"""Types and channels that start with this are the service's own."""

Encode = Callable[[object], object]
"""Writes a value as JSON, as an app's JSON provider does: a str, or bytes in UTF-8."""

ResetReason = Literal["trimmed", "unknown", "diverged", "invalid", "missing"]
"""Why a position cannot be continued."""

EndReason = Literal["done", "stopped", "failed", "lost", "interrupted"]
"""Why a channel has ended: its run came to its end, was stopped, failed, died, or was cut short by a drain."""

END_REASONS: Final[frozenset[str]] = frozenset(get_args(EndReason))

PIECE_TYPE: Final = "text"
"""The type of every piece."""

END_TYPE: Final = "sse.end"
"""The type of the last entry of a channel that has ended."""

_CHANNEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@-]{0,127}")
_ODD_SEGMENT = re.compile(r"/\.{0,2}(?:/|\Z)")  # a first segment has a letter, digit or _ to begin with
_POSITION = re.compile(r"(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})")
_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}")
_SPACE_OR_STRING = re.compile(
    r'[ \t\n\r]+|"[^"\\]*+(?:\\.[^"\\]*+)*+"'
)  # white space or a string in JSON (RFC 8259, 2 and 7)
_MAX_OFFSET = 2**53 - 1  # the largest integer that Lua and JavaScript count exactly
_MAX_TAG = 2**52
_MAX_SHOWN: Final = 60  # characters of a value in an error
_MAX_REASON: Final = 200  # characters of an encoder's error, which may quote all the data


def plain_str(text: str) -> str:
    """Return the characters of a string as a plain str.

    A subclass may behave differently: `f"{member}"` of a (str, Enum) gives its name, and Markup escapes its neighbours.
    """
    if type(text) is str:
        return text
    # A proxy, such as werkzeug's LocalProxy, passes isinstance() but is not a str.
    return str.__str__(text if issubclass(type(text), str) else str(text))


def plain_int(number: int) -> int:
    """Return the value of an int as a plain int; of a bool, 0 or 1."""
    return int.__int__(number if issubclass(type(number), int) else int(number))


def _plain_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """Return the bytes in a buffer as plain bytes, whatever methods a subclass overrides."""
    buffer = data if issubclass(type(data), bytes | bytearray | memoryview) else bytes(data)
    return memoryview(buffer).tobytes()


def check_channel(name: object) -> str:
    """Return a channel's name as a plain str, if it is valid.

    A channel is 1 to 128 of `A-Z a-z 0-9 _ . : / @ -`, starts with a letter, a digit or `_`, has no empty, `.` or
    `..` segment between slashes, and does not start with `sse.`.

    :raises InvalidEvent: for anything else.
    """
    hint = "use 1 to 128 of A-Z a-z 0-9 _ . : / @ -, first a letter, a digit or _"
    if not isinstance(name, str):
        raise InvalidEvent(f"channel is {_shown(name)}, not a string", hint, code="invalid_channel")
    name = plain_str(name)
    if not _CHANNEL.fullmatch(name):
        if "*" in name:
            hint = "name each channel: only SSE_PUBLIC, tokens and publishing keys take patterns such as news/*"
            raise InvalidEvent(f"channel {_shown(name)} has a *", hint, code="invalid_channel")
        raise InvalidEvent(f"channel {_shown(name)} is not a channel name", hint, code="invalid_channel")
    if _ODD_SEGMENT.search(name):
        raise InvalidEvent(
            f"channel {_shown(name)} has an empty, '.' or '..' segment",
            "give each segment between slashes a name",
            code="invalid_channel",
        )
    if name.startswith(RESERVED_PREFIX):
        raise InvalidEvent(
            f"channel {_shown(name)} starts with '{RESERVED_PREFIX}', which is reserved",
            "use another first segment",
            code="invalid_channel",
        )
    return name


def check_type(value: object) -> str:
    """Return an event type as a plain str, if it is valid: 1 to 64 visible characters, not `open`, `error` or `sse.…`.

    Events of the types `open` and `error` would fire an EventSource's own handlers.

    :raises InvalidEvent: for anything else.
    """
    if not isinstance(value, str):
        raise InvalidEvent(
            f"type is {_shown(value)}, not a string", "give a name such as 'created'", code="invalid_type"
        )
    value = plain_str(value)
    if value == DEFAULT_TYPE:
        return value
    if not 1 <= len(value) <= 64 or not value.isprintable() or " " in value:  # no other white space is printable
        raise InvalidEvent(
            f"type {_shown(value)} is not 1 to 64 visible characters",
            "give a name such as 'created'",
            code="invalid_type",
        )
    if value in ("open", "error") or value.startswith(RESERVED_PREFIX):
        raise InvalidEvent(f"type {_shown(value)} is reserved", "use another name", code="invalid_type")
    return value


def check_idempotency_key(key: object) -> str:
    """Return an idempotency key as a plain str, if it is valid: 1 to 128 of `A-Z a-z 0-9 _ . : -`.

    :raises InvalidEvent: for anything else.
    """
    hint = "give 1 to 128 of A-Z a-z 0-9 _ . : -"
    if not isinstance(key, str):
        raise InvalidEvent(f"idempotency key is {_shown(key)}, not a string", hint, code="invalid_idempotency_key")
    key = plain_str(key)
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidEvent(f"idempotency key {_shown(key)} is not valid", hint, code="invalid_idempotency_key")
    return key


def data_url(body: bytes, media_type: str = "application/octet-stream") -> str:
    """Return bytes as a `data:` URL (RFC 2397), which a page can `fetch()` or show.

    :raises InvalidEvent: if `media_type` is not `type/subtype`.
    """
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise InvalidEvent(
            f"media type {_shown(media_type)} is not type/subtype",
            "give one such as image/png",
            code="invalid_media_type",
        )
    return f"data:{media_type};base64,{base64.b64encode(body).decode('ascii')}"


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not a finite number")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):  # such as 1e400, which every reader would read as Infinity
        _constant(number[:_MAX_SHOWN])
    return value


_dumps: Final = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_read_string: Final = json.JSONDecoder().decode
_check_json: Final = json.JSONDecoder(parse_float=_finite, parse_int=str, parse_constant=_constant).decode


def _json(data: object, encode: Encode | None) -> str:
    """Return a value as compact JSON: as `json.dumps` writes it, or as `encode` does if `json.dumps` refuses a type.

    :raises InvalidEvent: if the value has no JSON form.
    """
    if isinstance(data, Event):  # some encoders would accept it, because it is a dataclass
        raise InvalidEvent("data is an Event", "give its data and its type", code="invalid_data")
    hint = "give a string, bytes, or a JSON value with finite numbers"
    try:
        try:
            return _dumps(data)
        except TypeError:
            if encode is None:
                raise
        hint = "give what jsonify takes: finite numbers, keys that are strings, and types that app.json knows"
        # This refuses a NaN beside the unknown type, which some encoders would write as null. A NaN inside the unknown
        # type is left to the encoder, which may leave that part out.
        _dumps(data, default=lambda _: None, skipkeys=True)
        return _compact(encode(data))
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)[:_MAX_REASON] or type(error).__name__
        raise InvalidEvent(
            f"data, of type {type(data).__name__}, has no JSON form: {reason}", hint, code="invalid_data"
        ) from error


def _compact(written: object) -> str:
    """Return JSON without white space between its parts, and its strings as `_dumps` writes them.

    Numbers stay as they are written. Reading and writing them again would change some, such as 1.10 or a number of 30
    digits.

    :raises TypeError: if the argument is not text.
    :raises ValueError: if the text is not JSON, or has a number that is not finite.
    """
    if isinstance(written, bytes | bytearray):
        written = _plain_bytes(written).decode()
    if not isinstance(written, str):
        raise TypeError(f"the JSON provider's dumps() returned {_shown(written)}, not a string")
    text = plain_str(written)
    try:
        _check_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the JSON provider's dumps() returned {_shown(text)}, which is no JSON: {error}") from error
    return _SPACE_OR_STRING.sub(_rewritten, text)


def _rewritten(part: re.Match[str]) -> str:
    """Return nothing for white space, and a string as `_dumps` writes it."""
    text = part[0]
    if text[0] != '"':
        return ""
    return _dumps(_read_string(text)) if "\\" in text else text


def _text(data: object, encode: Encode | None) -> str:
    """Return the text that a stream sends for the data given to an event."""
    if isinstance(data, bytes | bytearray | memoryview):
        return data_url(_plain_bytes(data))
    data = plain_str(data) if isinstance(data, str) else _json(data, encode)
    if "\r" in data:
        # In a stream, CR, LF and CRLF all end a line (WHATWG HTML 9.2.5), so a client cannot tell them apart.
        data = data.replace("\r\n", "\n").replace("\r", "\n")
    try:
        data.encode()
    except UnicodeEncodeError as error:
        raise InvalidEvent(
            f"data has a lone surrogate at character {error.start}, which UTF-8 cannot carry",
            "send whole characters",
            code="invalid_data",
        ) from None
    return data


@dataclass(frozen=True, slots=True, init=False)
class Event:
    """An event to publish: its `data`, as the text that a stream sends, and its `type`.

    A string is kept as its text, with CRLF and CR made LF; bytes become a `data:` URL; any other JSON value becomes
    compact JSON. If `json.dumps` refuses a type in the value, `encode` writes it instead.

    :raises InvalidEvent: for a type that is reserved or not 1 to 64 visible characters, and for data with a lone
        surrogate, a number that is not finite, or no JSON form.
    """

    data: str
    type: str = DEFAULT_TYPE

    def __init__(self, data: object, type: str = DEFAULT_TYPE, encode: Encode | None = None) -> None:
        object.__setattr__(self, "data", _text(data, encode))
        object.__setattr__(self, "type", check_type(type))

    def __eq__(self, other: object) -> bool:
        """Return True if the other is an event with the same data and type, even if one is of a subclass."""
        if not isinstance(other, Event):
            return NotImplemented
        return (self.data, self.type) == (other.data, other.type)


class Piece(Event):
    """A part of a text that is written bit by bit. Its type is `text`, and readers append its data to the text.

    :raises InvalidEvent: for a lone surrogate.
    """

    __slots__ = ()

    def __init__(self, text: str) -> None:
        super().__init__(text, PIECE_TYPE)


class End(Event):
    """The end of a channel, stored as the last entry of its ring. Its data is what `sse.end` tells a client.

    :raises InvalidEvent: for a reason that is none.
    """

    __slots__ = ()

    def __init__(self, channel: str, reason: EndReason) -> None:
        if reason not in END_REASONS:
            raise InvalidEvent(f"the end has the reason {_shown(reason)}", "give " + ", ".join(sorted(END_REASONS)))
        object.__setattr__(self, "data", _dumps({"channel": channel, "reason": reason}))
        object.__setattr__(self, "type", END_TYPE)

    @classmethod
    def of(cls, data: str) -> End:
        """Return the end that was stored with this data.

        :raises ValueError: if it is not the data of an end.
        """
        members = json.loads(data)
        if not isinstance(members, dict) or not isinstance(members.get("channel"), str):
            raise ValueError("the data of an end is no object with a channel")
        return cls(members["channel"], members.get("reason"))  # type: ignore[arg-type]

    @property
    def reason(self) -> EndReason:
        """The reason why the channel has ended."""
        return cast("EndReason", json.loads(self.data)["reason"])


class Position(NamedTuple):
    """An entry's position in one ring: its offset, counted from 1, and a tag, a hash of all entries before it."""

    offset: int
    tag: int

    def __str__(self) -> str:
        return f"{self.offset}-{self.tag}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Return the position in a text such as `58-2893764512345678`; None if the text is not a position."""
        match = _POSITION.fullmatch(text)
        if not match:
            return None
        offset, tag = int(match[1]), int(match[2])
        if offset > _MAX_OFFSET or tag > _MAX_TAG or (tag == 0 and offset != 0):
            return None
        return cls(offset, tag)


UNBORN: Final = Position(0, 0)
"""The position of a channel that has no ring yet. No entry has it, so no stream can continue from it."""


class Entry(NamedTuple):
    """An event in a ring. `body` is its block in a stream, without the id line; it is empty until a hub encodes it."""

    position: Position
    event: Event
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class LastEventId:
    """The positions of all channels of a subscription: `news=58-2893…~scores=12-7701…`.

    `invalid` has the channels whose entry is not exactly one position. `damaged` is True if some part of the text names
    no channel at all. In both cases a position may have been lost on the way, so the client has to be told.
    """

    positions: Mapping[str, Position] = field(default_factory=dict)
    invalid: frozenset[str] = frozenset()
    damaged: bool = False

    @classmethod
    @lru_cache(maxsize=256)  # very many clients come back from the same position at once
    def parse(cls, text: str) -> LastEventId:
        """Read what `format_last_event_id` wrote. This never raises: the result reports parts that cannot be read."""
        positions: dict[str, Position] = {}
        invalid: set[str] = set()
        damaged = False
        for part in text.split("~"):
            channel, equals, written = part.partition("=")
            if not equals or not _CHANNEL.fullmatch(channel):
                damaged = damaged or bool(part)
                continue
            position = Position.parse(written)
            if position is None or positions.get(channel, position) != position:
                invalid.add(channel)
            else:
                positions[channel] = position
        for channel in invalid:
            positions.pop(channel, None)
        return cls(positions, frozenset(invalid), damaged)

    def is_invalid(self, channel: str) -> bool:
        """Return True if the channel had, or may have had, an entry that cannot be read."""
        return channel in self.invalid or (self.damaged and channel not in self.positions)


def format_last_event_id(positions: Mapping[str, Position | None], first: str | None = None) -> str:
    """Return a last event id. The entry of the channel `first`, which the event is on, comes first.

    A channel whose position is None gets an empty entry, which is invalid. Without an entry, a client that comes back
    with the query parameter would be taken for a new client of the channel. If there is no channel at all, the id is
    `~`, because a browser does not send an empty one.
    """
    if first is not None:
        return f"{first}={positions[first] or ''}{rest_of_id(positions, first)}"
    return "~".join([f"{channel}={position or ''}" for channel, position in positions.items()]) or "~"


def rest_of_id(positions: Mapping[str, Position | None], first: str) -> str:
    """Return the part of a last event id after the entry of the channel `first`: the entries of all other channels."""
    return "".join([f"~{channel}={position or ''}" for channel, position in positions.items() if channel != first])


def id_size(channels: Iterable[str]) -> int:
    """Return an upper bound, in bytes, of every last event id of these channels."""
    return sum([len(channel) + 40 for channel in channels])


def _shown(value: object) -> str:
    """Return a value as a text that is short enough for an error message."""
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}…"
