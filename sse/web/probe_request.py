"""Reads a request to one of the doctor's probes into values: its parameters, and the headers that it may be shown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from sse.access.limits import parse_address
from sse.doctor import STATUSES
from sse.errors import RequestError, TooLarge
from sse.transports.probe import LONGEST, Plan
from sse.web.request import Query, Request, read_body, read_query
from sse.wire import parse_json

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

MAX_BYTES: Final = 524_288
"""Bytes that one probe may send beside its blocks' own."""

_SHORTEST: Final = 0.05  # seconds between two ticks
_MOST_TICKS: Final = 1000
_MOST_PAD: Final = 16_384  # bytes of one tick
_MAX_MEASURED: Final = 65_536  # bytes
_ID: Final = re.compile(r"[a-z0-9]{16,32}")
_NUMBER: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)
_ADDRESSES: Final = 10  # of a forwarding header that are looked at
_SHOWN: Final = 200  # characters of a header

# The headers that an answer shows as they came. None of them has a credential, or the address of a machine.
_PLAIN: Final = (
    "last-event-id", "accept", "accept-encoding", "origin", "connection", "cache-control", "te", "x-forwarded-proto",
)  # fmt: skip
# The name by which a proxy goes in a Via header (RFC 9110, 7.6.3). Another one may be the address of a machine.
_PSEUDONYM: Final = re.compile(r"[A-Za-z][A-Za-z_]{0,20}")
_VIA: Final = re.compile(r"\s*([A-Za-z0-9./-]{1,20})\s+([^\s,()]{1,80})\s*(\([^()]{0,60}\))?\s*")


def is_probe(request: Request) -> bool:
    """Return True if a request for a stream or poll asks for a probe. This costs nearly nothing for all others."""
    return b"probe=1" in request.query_string and read_query(request).get("probe") == ["1"]


def read_pass(request: Request) -> str:
    """Return the pass in the query, empty if there is none."""
    return read_query(request, "pass").get("pass", [""])[0]


def read_plan(request: Request) -> tuple[Plan, str]:
    """Return the blocks that a probe is to send, and the id by which its end is noted; empty if it has none.

    :raises RequestError: for a parameter that is out of its range. Nothing is rounded, because the client measures.
    """
    query = read_query(request, "every", "count", "size", "end", "id")
    every = _number(query, "every", 1, _SHORTEST, LONGEST)
    count, size = _whole(query, "count", 5, _MOST_TICKS), _whole(query, "size", 0, _MOST_PAD)
    if every * count > LONGEST:
        raise RequestError(f"{count} ticks take {every * count:g} s", f"ask for {LONGEST:g} s at most")
    if size * count > MAX_BYTES:
        raise RequestError(f"{count} ticks have {size * count} bytes", f"ask for {MAX_BYTES} at most")
    end = query.get("end", [""])[0]
    if end not in ("", "keep"):
        raise RequestError(f"end is {end[:60]!a}", "leave it out, or give end=keep")
    return Plan(every, count, size, end == "keep"), _id(query) if "id" in query else ""


def read_id(request: Request) -> str:
    """Return the id of the probe that is asked about."""
    return _id(read_query(request, "id"))


def read_wait(request: Request) -> float:
    """Return the seconds that a poll is to wait."""
    return _number(read_query(request, "wait"), "wait", 0, 0, LONGEST)


def read_status(code: str) -> int:
    """Return the status that is asked for.

    :raises RequestError: for any but those that the service's own answers have.
    """
    if code not in map(str, STATUSES):
        raise RequestError(f"the status is {code[:60]!a}", f"give one of {', '.join(map(str, STATUSES))}")
    return int(code)


def read_measured(request: Request) -> Mapping[str, Any]:
    """Return the measurements in the body, which are an object of JSON with finite numbers.

    :raises TooLarge: if they have over 64 KB.
    :raises RequestError: if they are anything else.
    """
    length = request.length()
    if length is not None and length > _MAX_MEASURED:
        raise TooLarge(f"the measurements have {length} bytes", f"send {_MAX_MEASURED} at most")
    body = read_body(request)
    if len(body) > _MAX_MEASURED:
        raise TooLarge(f"the measurements have over {_MAX_MEASURED} bytes", "send fewer blocks")
    measured = parse_json(body)
    if not isinstance(measured, dict):
        raise RequestError("the measurements are not an object", "send {…}", code="bad_json")
    try:  # 1e999 is read as infinity, and a lone surrogate is no text
        json.dumps(measured, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise RequestError(
            "the measurements have a number that is not finite, or a lone surrogate", "see RFC 8259", code="bad_json"
        ) from None
    return measured


def shown_headers(environ: WSGIEnvironment) -> dict[str, str]:
    """Return the headers that came, by their names in small letters.

    Only those are shown that tell what proxies have done to the request. Addresses of machines become words.
    """
    shown = {name: value[:_SHOWN] for name in _PLAIN if (value := _header(environ, name))}
    if forwarded := _header(environ, "x-forwarded-for"):
        shown["x-forwarded-for"] = ", ".join(map(kind_of_address, forwarded.split(",", _ADDRESSES)[:_ADDRESSES]))
    if via := _header(environ, "via"):
        shown["via"] = ", ".join(map(_shown_via, via.split(",", _ADDRESSES)[:_ADDRESSES]))
    for name in ("forwarded", "x-forwarded-host"):
        if _header(environ, name):
            shown[name] = "present"
    return shown


def kind_of_address(text: str) -> str:
    """Return `public`, `private` or `loopback` for the address of a machine, and `unknown` for any other text."""
    address = parse_address(text)
    if address is None:
        return "unknown"
    if address.is_loopback:
        return "loopback"
    return "public" if address.is_global else "private"


def _header(environ: WSGIEnvironment, name: str) -> str:
    value: str = environ.get("HTTP_" + name.upper().replace("-", "_"), "")
    return value


def _shown_via(hop: str) -> str:
    found = _VIA.fullmatch(hop)
    if not found:
        return "…"
    protocol, name, comment = found.groups()
    return " ".join(filter(None, (protocol, name if _PSEUDONYM.fullmatch(name) else "…", comment)))


def _number(query: Query, name: str, default: float, low: float, high: float) -> float:
    if name not in query:
        return default
    text = query[name][0]
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not low <= number <= high:
        raise RequestError(f"{name} is {text[:60]!a}", f"give seconds from {low:g} to {high:g}")
    return number


def _whole(query: Query, name: str, default: int, high: int) -> int:
    text = query.get(name, [str(default)])[0]
    if not re.fullmatch("[0-9]{1,6}", text, re.ASCII) or int(text) > high:
        raise RequestError(f"{name} is {text[:60]!a}", f"give a whole number from 0 to {high}")
    return int(text)


def _id(query: Query) -> str:
    id = query.get("id", [""])[0]
    if not _ID.fullmatch(id):
        raise RequestError(f"id is {id[:60]!a}", "give 16 to 32 of a-z 0-9, chosen at random")
    return id
