"""Recognises plain requests: those that every HTTP parser reads alike, so that ours and gunicorn's cannot disagree.

Nearly all requests for streams, polls and publishes are plain. All others are gunicorn's, with all of their bytes, also
the malformed ones: nothing is refused or answered here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple

from gunicorn.http import message  # type: ignore[import-untyped]
from gunicorn.http.wsgi import base_environ  # type: ignore[import-untyped]

from sse.server.head import MAX_HEAD, Head

MAX_BODY: Final = 65_536
"""Bytes of a plain request's body."""

_END: Final = b"\r\n\r\n"
_VISIBLE: Final = bytes(range(0x20, 0x7F))  # and the space
_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,256}")  # gunicorn takes more. An underscore would be read as a hyphen
_HOST: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_MAX_HOST: Final = 261  # characters of a host with its port (RFC 1035, 2.3.4)
_LENGTH: Final = re.compile(r"[0-9]{1,6}")
# These tell how a message is framed, or what is to become of its connection.
_NOT_PLAIN: Final = frozenset(
    {"EXPECT", "HTTP2-SETTINGS", "PROXY-CONNECTION", "TE", "TRAILER", "TRANSFER-ENCODING", "UPGRADE"}
)
_COMMON: Final = """
Accept Accept-Charset Accept-Encoding Accept-Language Authorization Cache-Control CF-Connecting-IP CF-IPCountry CF-Ray
CF-Visitor Connection Content-Encoding Content-Length Content-Type Cookie DNT Forwarded Host Idempotency-Key
If-None-Match Keep-Alive Last-Event-ID Origin Pragma Priority Referer Save-Data Sec-CH-UA Sec-CH-UA-Mobile
Sec-CH-UA-Platform Sec-Fetch-Dest Sec-Fetch-Mode Sec-Fetch-Site Sec-Fetch-Storage-Access Sec-GPC Traceparent Tracestate
User-Agent Via X-Amzn-Trace-Id X-Forwarded-For X-Forwarded-Host X-Forwarded-Port X-Forwarded-Proto X-Forwarded-Protocol
X-Forwarded-Server X-Forwarded-Ssl X-Real-IP X-Request-ID X-Requested-With
"""


class Plain(NamedTuple):
    """A plain request."""

    route: Any
    """The route to which its method and path lead."""
    environ: dict[str, Any]
    """gunicorn's environ without what needs the socket: `gunicorn.socket`, SERVER_NAME, SERVER_PORT, early hints.

    RAW_URI is left out too. `wsgi.input` is there only if the request has a body.
    """
    end: int
    """Its bytes. Those behind them belong to the next request."""
    closes: bool
    """True if the client asks to close the connection after the answer."""


class Incomplete(NamedTuple):
    """A request that may become plain once more bytes have come."""

    end: int
    """Its bytes, body included; 0 as long as its head is not complete."""


class Recogniser:
    """Recognises plain requests on the connections of one worker, none of which has TLS or the PROXY protocol.

    :param cfg: gunicorn's settings, whose limits hold here too.
    :param route: returns what a method and a path lead to, None if they are not ours. It has to compare byte for byte.
    """

    def __init__(self, cfg: Any, route: Callable[[str, str], Any]) -> None:
        self._cfg = cfg
        self._route = route
        self._max_line, self._max_fields, self._max_field = _limits(cfg)
        self._small = min(self._max_line, self._max_field)  # bytes of a head that has no line over a limit
        self._environ = {
            **base_environ(cfg),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SCRIPT_NAME": "",
            "wsgi.url_scheme": "http",
        }
        # gunicorn compares these names with the headers' names in capitals. No plain header has an underscore.
        names = [name for name in cfg.secure_scheme_headers if name == name.upper() and "_" not in name]
        self._schemes = {_key(name): cfg.secure_scheme_headers[name] for name in names}
        self._is_proxy = lru_cache(maxsize=1024)(self._find_proxy)

    def head(self) -> Head:
        """Return what gathers a head that does not come at once. `read` decides as soon as its bytes are enough."""
        return Head(MAX_HEAD, self._max_line)

    def read(self, data: bytes, peer: Any) -> Plain | Incomplete | None:
        """Return the first request in `data`. None means that it is gunicorn's, together with all of `data`.

        :param data: all bytes of the connection that do not belong to an earlier request.
        :param peer: the address of the other end, as `getpeername` returns it.
        """
        head_end = data.find(_END)
        if head_end < 0:
            return None if self.head().add(data) else Incomplete(0)
        head = data[:head_end]
        lines = head.decode("latin-1").split("\r\n")
        # Only the ends of the lines may be left: no other character, and no half of an end.
        if head.translate(None, _VISIBLE) != b"\r\n" * (len(lines) - 1):
            return None
        if len(lines) - 1 > self._max_fields or (head_end > self._small and self._is_over(lines, head_end)):
            return None
        method, _, rest = lines[0].partition(" ")
        target, _, version = rest.partition(" ")
        path, _, query = target.partition("?")
        # gunicorn cuts a fragment off, and decodes the path.
        if version != "HTTP/1.1" or "#" in target or "%" in path:
            return None
        route = self._route(method, path)
        if route is None:
            return None
        environ = self._environ.copy()
        environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"] = method, path, query
        others = len(environ)
        try:
            for line in islice(lines, 1, None):
                name, value = line.split(":", 1)
                environ[_KEYS[name]] = value.strip()
        except ValueError:
            return None  # there is no colon, or the name is not plain
        host = environ.get("HTTP_HOST", "")
        if len(environ) != others + len(lines) - 1 or len(host) > _MAX_HOST or not _is_host(host):
            return None  # a header is repeated, or it is not clear for which host the request is
        connection = environ.get("HTTP_CONNECTION", "keep-alive").lower()
        if connection != "keep-alive" and connection != "close":
            return None
        if isinstance(peer, tuple):
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = peer[0], str(peer[1])
        else:  # a unix socket
            environ["REMOTE_ADDR"] = peer if isinstance(peer, str) else peer.decode()
        for key in self._schemes:
            if key in environ and not self._set_scheme(environ, peer):
                return None
        end = head_end + len(_END)
        length = environ.get("CONTENT_LENGTH")
        if method == "GET":
            return Plain(route, environ, end, connection == "close") if length is None else None
        if length is None or not _LENGTH.fullmatch(length) or int(length) > MAX_BODY:
            return None
        body_at, end = end, end + int(length)
        if len(data) < end:
            return Incomplete(end)
        environ["wsgi.input"] = io.BytesIO(data[body_at:end])
        return Plain(route, environ, end, connection == "close")

    def _is_over(self, lines: list[str], size: int) -> bool:
        """Return whether a head of `size` bytes is over one of gunicorn's limits, or over ours."""
        longest = max(map(len, lines[1:]), default=0) + len("\r\n")
        return size + len(_END) > MAX_HEAD or len(lines[0]) > self._max_line or longest > self._max_field

    def _set_scheme(self, environ: dict[str, Any], peer: Any) -> bool:
        """Set the scheme that a proxy gives. Return False if the peer is no trusted proxy, or gives it twice."""
        given = [key for key in self._schemes if key in environ]
        if len(given) > 1 or (isinstance(peer, tuple) and not self._is_proxy(peer[0])):
            return False
        environ["wsgi.url_scheme"] = "https" if environ[given[0]] == self._schemes[given[0]] else "http"
        return True

    def _find_proxy(self, address: str) -> bool:
        cfg = self._cfg
        return bool(message._ip_in_allow_list(address, cfg.forwarded_allow_ips, cfg.forwarded_allow_networks()))


def _limits(cfg: Any) -> tuple[int, int, int]:
    """Return the most bytes of a request line, the most headers, and the most bytes of a header with its end.

    gunicorn's `Request` takes the same limits from its settings. A line that has no limit there has ours.
    """
    line, fields, field = cfg.limit_request_line, cfg.limit_request_fields, cfg.limit_request_field_size
    line = min(line, message.MAX_REQUEST_LINE) if line >= 0 else message.MAX_REQUEST_LINE
    fields = fields if 0 < fields <= message.MAX_HEADERS else message.MAX_HEADERS
    return line or MAX_HEAD, fields, field if field > 0 else message.DEFAULT_MAX_HEADERFIELD_SIZE


def _key(name: str) -> str:
    """Return a header's name in the environ."""
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


class _Keys(dict[str, str]):
    """The names of common headers in the environ, by the names as they are sent."""

    def __missing__(self, name: str) -> str:
        """Return the name of another header in the environ.

        :raises ValueError: if the header is not plain.
        """
        if not _NAME.fullmatch(name) or name.upper() in _NOT_PLAIN:
            raise ValueError(name)
        return _key(name)


_KEYS: Final = _Keys((way, _key(name)) for name in _COMMON.split() for way in (name, name.lower(), name.title()))


@lru_cache(maxsize=256)
def _is_host(value: str) -> bool:
    """Return whether this is a host, with a port or without, in which no parser finds anything else."""
    return bool(_HOST.fullmatch(value))
