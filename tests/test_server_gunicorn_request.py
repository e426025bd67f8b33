"""Requests as the worker reads them.

The size and time of a head and the pace of a body are bounded, and the rest of an unread body is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gunicorn.config import Config
from gunicorn.http.errors import LimitRequestHeaders, NoMoreData
from gunicorn.http.unreader import Unreader

from sse.server import gunicorn_request
from sse.server.gunicorn_request import Body, Request, is_read, skip_body
from tests.gevent_hubs import in_a_hub

HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\n"


class Pieces(Unreader):
    """A client that sends these pieces, and waits at each number for so many seconds."""

    def __init__(self, *pieces: bytes | float) -> None:
        super().__init__()
        self._pieces: Iterator[bytes | float] = iter(pieces)

    def chunk(self, size_hint: int | None = None) -> bytes:
        for piece in self._pieces:
            if isinstance(piece, bytes):
                return piece
            gevent.sleep(piece)
        return b""


def request(*pieces: bytes | float) -> Any:
    return Request(Config(), Pieces(*pieces), ("127.0.0.1", 1), 1)


def seen(read: Callable[[], object]) -> Any:
    """Return what `read` returns in a thread with gevent's hub."""
    found: list[object] = []
    in_a_hub(lambda: found.append(read()))
    return found[0]


def test_a_head_comes_in_whatever_pieces_and_its_body_follows() -> None:
    def read() -> tuple[str, str, bool, bytes, bool]:
        asked = request(
            b"\r\n", b"POST /x HT", b"TP/1.1\r\nHost: a\r", b"\nContent-Length: 5\r\n\r\nhe", b"llo", b"GET"
        )
        before = is_read(asked)
        return asked.method, asked.path, before, asked.body.read(), is_read(asked)

    assert seen(read) == ("POST", "/x", False, b"hello", True)


def test_a_request_without_a_body_is_read_with_its_head() -> None:
    def read() -> tuple[bool, bool, bool]:
        asked = request(HEAD + b"\r\n")
        return is_read(asked), isinstance(asked.body, Body), skip_body(asked)

    assert seen(read) == (True, False, True)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [((), StopIteration), ((HEAD,), NoMoreData), ((HEAD + b"X: " + b"x" * 140_000,), LimitRequestHeaders)],
)
def test_a_head_that_does_not_come_or_is_too_large(pieces: tuple[bytes, ...], error: type[Exception]) -> None:
    def read() -> None:
        with pytest.raises(error):
            request(*pieces)

    in_a_hub(read)


def test_headers_that_gunicorn_drops_are_counted_too() -> None:
    def read() -> None:
        with pytest.raises(LimitRequestHeaders):
            request(HEAD + b"".join(b"A_%d: x\r\n" % number for number in range(101)) + b"\r\n")

    in_a_hub(read)


def test_a_head_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gunicorn_request, "HEAD_SECONDS", 0.05)

    def read() -> None:
        with pytest.raises(StopIteration, match=r"has not come within 0\.05 s"):
            request(HEAD, *[0.02, b"X: 1\r\n"] * 10, b"\r\n")

    in_a_hub(read)


def test_a_head_has_its_time_from_its_first_byte_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gunicorn_request, "HEAD_SECONDS", 0.05)
    assert seen(lambda: request(0.1, b"\r\n", 0.1, HEAD, b"\r\n").path) == "/x"


def test_a_body_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gunicorn_request, "_BODY_SECONDS", 0.05)
    monkeypatch.setattr(gunicorn_request, "_BODY_RATE", 1e6)

    def read() -> bool:
        asked = request(HEAD + b"Content-Length: 100\r\n\r\n", b"x", 0.2, b"y" * 99)
        with pytest.raises(TimeoutError, match="too slowly"):
            asked.body.read()
        return asked.body.failed or not skip_body(asked)

    assert seen(read)


def test_a_body_earns_patience_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gunicorn_request, "_BODY_SECONDS", 0.1)
    monkeypatch.setattr(gunicorn_request, "_BODY_RATE", 1000.0)

    def read() -> int:
        asked = request(HEAD + b"Content-Length: 400\r\n\r\n", *[0.06, b"x" * 100] * 4)
        return sum(len(asked.body.read(100)) for _ in range(4))

    assert seen(read) == 400


def test_the_rest_of_a_body_is_skipped_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def skip(*pieces: bytes | float, size: int) -> bool:
        return skip_body(request(HEAD + b"Content-Length: %d\r\n\r\n" % size, *pieces))

    assert seen(lambda: skip(b"x" * 100, size=100))
    assert not seen(lambda: skip(*[b"x" * 65_536] * 40, size=40 * 65_536)), "more than may be published at once"
    monkeypatch.setattr(gunicorn_request, "_SKIP_SECONDS", 0.05)
    assert not seen(lambda: skip(b"x", 0.3, b"x" * 99, size=100))


def test_a_chunked_body_is_read_when_its_last_chunk_is() -> None:
    def read() -> tuple[bool, bytes, bool]:
        asked = request(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n")
        before = is_read(asked)
        return before, asked.body.read(), is_read(asked)

    assert seen(read) == (False, b"hello", True)
