"""The shape of what a client of the doctor has measured, as JSON.

Every member may be missing, or null, if it was not measured. Unknown members are left out. Times are in seconds.

| member | |
|---|---|
| `client`, `url`, `origin` | `command` or `page`; the service's prefix; the origin of the pages that read it |
| `unreachable` | a sentence that says why nothing answers; then nothing else was measured |
| `closed` | `status` and `code` of the service's refusal, if its probes are closed |
| `not_ours` | `status`, `location`, `type` and `title` of the answer of something else |
| `echo`, `echo_headers` | the newest echo; the headers of its answer, each a list of values |
| `error_headers`, `error_page` | the headers of a proxy's own answer; its `status`, `headers` and first `body` |
| `proxy` | the name of a proxy that the user has given, as in `sse.doctor.proxies` |
| `http`, `tls` | `2` if the server offers HTTP/2, else `1.1`; whether the address begins with https |
| `same_nonce` | whether two echoes, asked for with one address, were the same |
| `sent` | what was sent: `last_event_id` |
| `skew`, `rtt` | the service's clock minus ours, at the fastest echo; the time that this echo took |
| `client_gap` | the longest time for which the client itself stood still |
| `cors` | header values as they arrived: `allow_origin`, `allow_credentials`, `preflight_status`, |
| | `preflight_allow_headers`; `blocked` if the browser got an answer that the page may not see |
| `statuses`, `retry_after` | each status that was asked for, and the one that came; whether Retry-After came with it |
| `replaced` | the statuses that came without the service's own body |
| `streams` | `fast` (2 KB every 0.1 s), `small` (every 1 s), `silent` and `active` (every 1 s, for the whole wait) |
| `stream_headers` | the request headers of a stream, as the service saw them |
| `shared` | whether two streams that were open at once had the same nonce |
| `while_streaming` | whether an echo was `answered` while streams were open, and `after` which time |
| `left` | whether the service `noticed` that the client of a stream went, and `after` which time |
| `poll` | the seconds `asked` for, `status`, `answered_at` (missing: no answer), `refused`, `headers` |
| `ticks` | the `quiet` time, the `longest_gap` between two ticks in it, `same_worker`, and `lost`, the part of |
| | the quiet time for which the server's clock did not run |
| `skipped`, `wait` | sentences about what was not measured; the longest time for which streams were watched |

A stream has `status`, `headers`, `started_at` (after the first stream), `first_byte`, `blocks` (as in
`sse.doctor.arrivals`), `bytes`, `ended_at` (missing: still open), `clean` (the end of the body was proper), `finished`
(`doctor.end` came), `refused` (the code of the service's refusal, or why it ended early), `asked` (how long it should
have been open) and `seen_headers`. All of its times count from its own request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

Check = Callable[[str, object], Any]

_LONGEST: Final = 4_096  # characters of one string
_LARGEST: Final = 1e12
_BLOCKS: Final = 400


class BadMeasure(ValueError):
    """A member of the measurements has the wrong type or is too large. The message names it."""


def _number(name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return float(value)  # a NaN is not less than anything
    raise BadMeasure(f"{name} is {_shown(value)}: give a finite number")


def _bool(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise BadMeasure(f"{name} is {_shown(value)}: give true or false")


def _text(name: str, value: object) -> str:
    if isinstance(value, str) and len(value) <= _LONGEST:
        return str(value)
    raise BadMeasure(f"{name} is {_shown(value)}: give a string of at most {_LONGEST} characters")


def _status(name: str, value: object) -> int:
    number = _number(name, value)
    if 0 <= number <= 999 and number == int(number):
        return int(number)
    raise BadMeasure(f"{name} is {_shown(value)}: give an HTTP status")


def _list(check: Check, most: int) -> Check:
    def checked(name: str, value: object) -> list[Any]:
        if isinstance(value, list | tuple) and len(value) <= most:
            return [check(f"{name}[{number}]", item) for number, item in enumerate(value)]
        raise BadMeasure(f"{name} is {_shown(value)}: give a list of at most {most} items")

    return checked


def _map(check: Check, most: int) -> Check:
    def checked(name: str, value: object) -> dict[str, Any]:
        if isinstance(value, Mapping) and len(value) <= most:
            items = ((_text(f"a name in {name}", key), item) for key, item in value.items())
            return {key: check(f"{name}.{key[:40]}", item) for key, item in items if item is not None}
        raise BadMeasure(f"{name} is {_shown(value)}: give an object of at most {most} members")

    return checked


def _object(members: Mapping[str, Check]) -> Check:
    def checked(name: str, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise BadMeasure(f"{name} is {_shown(value)}: give an object")
        given = ((key, value[key]) for key in members if key in value)
        return {key: members[key](f"{name}.{key}", item) for key, item in given if item is not None}

    return checked


def _block(name: str, value: object) -> list[float]:
    if isinstance(value, list | tuple) and len(value) == 4:
        return [_number(name, item) for item in value]
    raise BadMeasure(f"{name} is {_shown(value)}: give [n, the server's clock, seconds of arrival, bytes]")


def _header(name: str, value: object) -> list[str]:
    return [_text(name, value)] if isinstance(value, str) else _strings(name, value)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    return ascii(value)[:60]


_strings = _list(_text, 100)
_headers = _map(_header, 100)
_STREAM: Final = _object(
    {
        "status": _status,
        "headers": _headers,
        "refused": _text,
        "started_at": _number,
        "first_byte": _number,
        "blocks": _list(_block, _BLOCKS),
        "ended_at": _number,
        "clean": _bool,
        "finished": _bool,
        "asked": _number,
        "bytes": _number,
        "seen_headers": _map(_text, 100),
    }
)
_POLL: Final = _object(
    {"asked": _number, "status": _status, "answered_at": _number, "refused": _text, "headers": _headers}
)
_ECHO: Final = _object(
    {
        "version": _text,
        "worker": _text,
        "now": _number,
        "http": _text,
        "scheme": _text,
        "client": _text,
        "holds": _text,
        "store": _text,
        "headers": _map(_text, 100),
        "cors": _headers,
        "settings": _map(_number, 20),
    }
)
_MEASURED: Final = _object(
    {
        "client": _text,
        "url": _text,
        "origin": _text,
        "unreachable": _text,
        "closed": _object({"status": _status, "code": _text}),
        "not_ours": _object({"status": _status, "location": _text, "type": _text, "title": _text}),
        "echo": _ECHO,
        "echo_headers": _headers,
        "error_headers": _headers,
        "error_page": _object({"status": _status, "headers": _headers, "body": _text}),
        "proxy": _text,
        "http": _text,
        "tls": _bool,
        "same_nonce": _bool,
        "sent": _object({"last_event_id": _text}),
        "skew": _number,
        "rtt": _number,
        "client_gap": _number,
        "cors": _object(
            {
                "allow_origin": _header,
                "allow_credentials": _header,
                "preflight_status": _status,
                "preflight_allow_headers": _header,
                "blocked": _bool,
            }
        ),
        "statuses": _map(_status, 30),
        "retry_after": _map(_bool, 30),
        "replaced": _strings,
        "streams": _object(dict.fromkeys(("fast", "small", "silent", "active"), _STREAM)),
        "stream_headers": _map(_text, 100),
        "shared": _bool,
        "while_streaming": _object({"answered": _bool, "after": _number}),
        "left": _object({"noticed": _bool, "after": _number}),
        "poll": _POLL,
        "ticks": _object({"quiet": _number, "longest_gap": _number, "same_worker": _bool, "lost": _number}),
        "skipped": _strings,
        "wait": _number,
    }
)


def checked(measured: object) -> dict[str, Any]:
    """Return the measurements with known members only, without null, and with plain values.

    :raises BadMeasure: if they are not an object, or a member has a wrong type or is out of bounds.
    """
    return dict(_MEASURED("measured", measured))
