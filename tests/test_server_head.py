"""Parsing a request head as it arrives: when it is complete by gunicorn's own rules, and how much that costs."""

from __future__ import annotations

import time
from typing import Any

import pytest
from gunicorn.config import Config  # type: ignore[import-untyped]
from gunicorn.http.errors import NoMoreData, ParseException  # type: ignore[import-untyped]
from gunicorn.http.message import Request  # type: ignore[import-untyped]
from gunicorn.http.unreader import IterUnreader  # type: ignore[import-untyped]

from sse.server.head import Head

LINE = 60
PLAIN = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /sse/poll HTTP/1.1\r\nHost: a\r\nX: b\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"\r\nGET / HTTP/1.0\r\nHost: a\r\n\r\nbody",
    b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"\n",
    b"GET / HTTP/1.1\n\n",
    b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n \r\n\r\n",
    b"GET / HTTP/1.1\r\n\n\r\n\r\n",
    b"GET /" + b"x" * (LINE - len("GET / HTTP/1.1")) + b" HTTP/1.1\r\n\r\n",
    b"GET /" + b"x" * 2 * LINE,
    b"\r\nGET /" + b"x" * 2 * LINE,
]
# gunicorn would refuse these for their first line alone; here they are refused when the head has ended.
BAD_LINES = [
    b"\rGET / HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"X\r\n\r\n",
    b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nX: y\r\n\r\n",
]
V2 = b"\r\n\r\n\0\r\nQUIT\n"
PROXIED = [
    b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nmore",
    b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n\nGET / HTTP/1.1\r\n\r\n",
    V2 + b"\x21\x11\0\x0c\n\0\0\x01\n\0\0\x02\0\x01\0\x02GET / HTTP/1.1\r\nHost: a\r\n\r\nmore",
    V2 + b"\x20\x00\0\0GET / HTTP/1.1\r\nHost: a\r\n\r\nmore",
    V2 + b"\x20\x00\0\x04\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nmore",
]


def asks_for_more(data: bytes, proxy: str) -> bool:
    """Return whether gunicorn's parser would wait for more than this."""
    config = Config()
    config.set("limit_request_line", LINE)
    config.set("proxy_protocol", proxy)
    config.set("http_parser", "python")
    try:
        Request(config, IterUnreader([data]), ("127.0.0.1", 1), 1)
    except NoMoreData:
        return True
    except ParseException:
        return False
    return False


def in_pieces(data: bytes, size: int, **options: Any) -> int:
    """Return after how many bytes the head is complete, or one more than there are."""
    head = Head(131_072, **options)
    for start in range(0, len(data), size):
        if head.add(data[start : start + size]):
            assert head.data == data[: start + size]
            return min(start + size, len(data))
    return len(data) + 1


@pytest.mark.parametrize(
    ("data", "proxy"),
    [
        *((data, "off") for data in PLAIN),
        *((data, proxy) for data in PLAIN for proxy in ("auto", "v1", "v2")),
        *((data, proxy) for data in PROXIED for proxy in ("auto", "v1" if data.startswith(b"PROXY") else "v2")),
    ],
)
def test_it_is_enough_as_soon_as_gunicorn_would_not_ask_for_more(data: bytes, proxy: str) -> None:
    needed = next((size for size in range(1, len(data) + 1) if not asks_for_more(data[:size], proxy)), len(data) + 1)
    for size in range(1, len(data) + 1):
        enough = in_pieces(data, size, line=LINE, proxy=proxy)
        assert enough == (min(-(-needed // size) * size, len(data)) if needed <= len(data) else needed), size


@pytest.mark.parametrize("data", BAD_LINES)
def test_a_bad_first_line_is_refused_when_the_head_has_ended(data: bytes) -> None:
    end = data.index(b"\r\n\r\n") + 4
    assert in_pieces(data, 1, line=LINE) == end
    assert not asks_for_more(data[:end], "off")


def test_one_empty_line_before_it_does_not_begin_it() -> None:
    head = Head(1000)
    begun = []
    for byte in b"\r\nGE":
        head.add(bytes([byte]))
        begun.append(head.has_begun)
    assert begun == [False, False, True, True]


def test_the_header_of_the_proxy_protocol_does_not_begin_it() -> None:
    head = Head(1000, proxy="auto")
    head.add(PROXIED[0].partition(b"\r\n")[0] + b"\r\n")
    assert not head.has_begun
    head.add(b"G")
    assert head.has_begun


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("before", [b"", PROXIED[3].partition(b"GET")[0]])
def test_its_bytes_are_bounded_and_what_follows_it_is_not_counted(size: int, before: bytes) -> None:
    start = before + b"GET / HTTP/1.1\r\nX: "
    for length, is_too_large in ((500, False), (501, True)):
        data = start + b"x" * (length - len(start) - 4) + b"\r\n\r\n" + b"x" * 1000
        head = Head(500, proxy="auto")
        at = 0
        while not head.add(data[at : at + size]):
            at += size
        assert head.is_too_large == is_too_large
        assert at <= 501


def test_a_proxy_header_without_an_end_is_too_large() -> None:
    head = Head(500, proxy="v1")
    assert not head.add(b"PROXY " + b"x" * 494)
    assert head.add(b"x")
    assert head.is_too_large


@pytest.mark.parametrize("filler", [b"x", b"\r", b"\r\n"], ids=["x", "CR", "CRLF"])
def test_each_byte_is_searched_once_however_slowly_it_comes(filler: bytes) -> None:
    def cost(size: int) -> float:
        head = Head(1 << 20)
        head.add(b"GET / HTTP/1.1\r\nX: ")
        pieces = [b"x", filler, b"x"] * (size // 3)
        began = time.process_time()
        for piece in pieces:
            assert not head.add(piece)
        return time.process_time() - began

    few, many = (min(cost(size) for _ in range(3)) for size in (15_000, 120_000))
    assert many < 24 * few  # 8 times as many; each time all of them would make it 64
