"""The parser in tests/client.py, against the examples of WHATWG HTML 9.2.6 and cases that parsers often get wrong."""

from __future__ import annotations

import pytest

from tests.client import Parser

CASES: list[tuple[bytes, list[tuple[str, str | None, str]], str]] = [
    # body, (type, data, id) of each block, the last event id that a browser would hold
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10", "")], ""),
    (
        b": c\n\ndata: 1\nid: 1\n\ndata:2\nid\n\ndata:  3\n\n",
        [("message", "1", "1"), ("message", "2", ""), ("message", " 3", "")],
        "",
    ),
    (b"data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "\n", "")], ""),
    (b"data:test\n\ndata: test\n\n", [("message", "test", ""), ("message", "test", "")], ""),
    (b"data: a\rdata: b\r\ndata: c\n\r\nid: 7\r\r", [("message", "a\nb\nc", ""), ("message", None, "7")], "7"),
    (b"\xef\xbb\xbfdata: 1\n\n", [("message", "1", "")], ""),
    (b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\ndata: 2\n\n", [("message", None, ""), ("message", "2", "")], ""),
    (b"id: 1\ndata: a\n\nid: 2\ndata: b\n", [("message", "a", "1")], "1"),
    (b"id: 1\n\nid: 2\x00\ndata: a\0b\n\n", [("message", None, "1"), ("message", "a\0b", "1")], "1"),
    (
        b"event: x\ndata: 1\n\nevent:\ndata: 2\n\nEvent: y\nDATA: 3\n\n",
        [("x", "1", ""), ("message", "2", ""), ("message", None, "")],
        "",
    ),
    (b": " + b"x" * 2048 + b"\ndata: \xe2\x82\xac \xff\n\n", [("message", "\u20ac \ufffd", "")], ""),
    (
        b"id: a\x0bb\x0c\xc2\x85\xe2\x80\xa8\ndata: 1\n\n",
        [("message", "1", "a\x0bb\x0c\x85\u2028")],
        "a\x0bb\x0c\x85\u2028",
    ),
]


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize(("body", "blocks", "last_event_id"), CASES)
def test_a_stream_is_read_as_the_standard_says(
    body: bytes, blocks: list[tuple[str, str | None, str]], last_event_id: str, size: int
) -> None:
    parser = Parser()
    events = [event for at in range(0, len(body), size) for event in parser.feed(body[at : at + size])]
    assert [(event.event, event.data, event.id) for event in events] == blocks
    assert parser.last_event_id == last_event_id


def test_a_retry_of_digits_alone_counts_and_at_once() -> None:
    parser = Parser()
    for line, expected in (
        (b"retry: 5\n", 5),
        (b"retry: 1x\n", 5),
        (b"retry:\n", 5),
        (b"retry: -1\n", 5),
        (b"retry:07\n", 7),
    ):
        assert parser.feed(line) == []
        assert parser.retry == expected
    [event] = parser.feed(b"data: 1\n\n")
    assert event.retry == 7


def test_an_id_from_before_is_held_until_another_block_is_complete() -> None:
    parser = Parser("before")
    assert parser.feed(b"data: 1\n\nid: after\n")[0].id == "before"
    assert parser.last_event_id == "before"
    parser.feed(b"\n")
    assert parser.last_event_id == "after"
