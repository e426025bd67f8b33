"""Writing and parsing text/event-stream, and the JSON of both directions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.errors import InvalidEvent, RequestError
from sse.event import Event
from sse.wire import (
    HEARTBEAT,
    MAX_BATCH,
    Block,
    Parser,
    around_id,
    decode_payload,
    encode_body,
    encode_control,
    encode_json,
    encode_payload,
    parse_json,
    parse_publish,
    stored_size,
    type_in_data,
    with_id,
    with_retry,
)
from tests import client

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n\0:\ufeff "))
TYPES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=64).filter(
    lambda name: name not in ("open", "error") and not name.startswith("sse.")
)
EVENTS = st.builds(Event, TEXT, TYPES | st.just("message"))


def read(stream: bytes, size: int | None = None) -> list[Block]:
    parser = Parser()
    return [block for chunk in chunks(stream, size) for block in parser.feed(chunk)]


def chunks(stream: bytes, size: int | None) -> Iterable[bytes]:
    return [stream] if size is None else [stream[place : place + size] for place in range(0, len(stream), size)]


@pytest.mark.parametrize(
    ("event", "block"),
    [
        (Event("x"), b"data: x\n\n"),
        (Event(""), b"data: \n\n"),
        (Event("a\nb\n"), b"data: a\ndata: b\ndata: \n\n"),
        (Event(" x"), b"data:  x\n\n"),
        (Event("x", "created"), b"event: created\ndata: x\n\n"),
        (Event("id: 5\n\ndata: forged"), b"data: id: 5\ndata: \ndata: data: forged\n\n"),
        (Event("\u2028\x85\x0b"), "data: \u2028\x85\x0b\n\n".encode()),
    ],
)
def test_an_event_is_one_block(event: Event, block: bytes) -> None:
    assert encode_body(event) == block


@pytest.mark.parametrize(
    ("event", "block"),
    [
        (Event("x"), b"event: sse.event\ndata: message\ndata: x\n\n"),
        (Event("", "created"), b"event: sse.event\ndata: created\ndata: \n\n"),
        (Event("event: a\nevent: b"), b"event: sse.event\ndata: message\ndata: event: a\ndata: event: b\n\n"),
        (Event("x", "event:"), b"event: sse.event\ndata: event:\ndata: x\n\n"),
    ],
)
def test_a_type_is_told_in_the_data(event: Event, block: bytes) -> None:
    assert type_in_data(encode_body(event)) == block
    assert read(block) == [Block("sse.event", f"{event.type}\n{event.data}", "")]


def test_a_block_of_the_service_s_own() -> None:
    assert encode_control("sse.close", {"reason": "lifetime"}, retry=1200) == (
        b'retry: 1200\nevent: sse.close\ndata: {"reason":"lifetime"}\n\n'
    )
    assert encode_control("sse.reset", {"missed": None}, last_event_id="a=1-2") == (
        b'id: a=1-2\nevent: sse.reset\ndata: {"missed":null}\n\n'
    )
    assert read(HEARTBEAT) == [Block("sse.heartbeat", "", "")]


@given(EVENTS, st.sampled_from(["", "~b=2-2"]), st.booleans())
def test_an_id_goes_on_between_the_two_parts_of_a_block(event: Event, rest: str, last: bool) -> None:
    head, tail = around_id("a=1-1", encode_body(event), last)
    block = head + rest.encode() + tail
    assert block == with_id(f"a=1-1{rest}", encode_body(event), last=last)
    assert block.split(b"\n")[-3 if last else 0] == b"id: a=1-1" + rest.encode()
    assert read(block) == [Block(event.type, event.data, f"a=1-1{rest}")]


def test_the_first_of_several_blocks_tells_retry() -> None:
    parser = Parser()
    assert [block.data for block in parser.feed(with_retry(1200, b"data: x\n\ndata: y\n\n"))] == ["x", "y"]
    assert parser.retry == 1200


@given(st.lists(EVENTS, max_size=5), st.integers(1, 20))
def test_events_are_read_back_whole_and_in_pieces(events: list[Event], size: int) -> None:
    stream = b"".join(with_id(f"a={number}-1", encode_body(event)) for number, event in enumerate(events))
    wanted = [Block(event.type, event.data, f"a={number}-1") for number, event in enumerate(events)]
    for pieces in (None, 1, size):
        assert read(stream, pieces) == wanted


@given(st.lists(EVENTS, max_size=5), st.sampled_from([b"\n", b"\r", b"\r\n"]), st.integers(1, 20))
def test_line_ends_may_be_of_any_kind(events: list[Event], line_end: bytes, size: int) -> None:
    stream = b"".join(encode_body(event) for event in events).replace(b"\n", line_end)
    wanted = [(event.type, event.data) for event in events]
    # A CR at the very end may yet become a CRLF, so the last blank line counts only with what follows.
    for pieces in (None, 1, size):
        assert [(block.type, block.data) for block in read(stream + b":", pieces)] == wanted


@given(
    st.lists(
        st.sampled_from(
            [
                b"\r",
                b"\n",
                b"\r\n",
                b"data",
                b":",
                b" ",
                b"id",
                b"event",
                b"retry",
                b"x",
                b"1",
                b"\0",
                b"\xef\xbb\xbf",
                b"\xff",
            ]
        )
    )
)
def test_it_reads_any_bytes_as_an_independent_reader_does(parts: list[bytes]) -> None:
    stream = b"".join(parts)
    ours, other = Parser(), client.Parser()
    blocks = [block for byte in chunks(stream + b"\n", 1) for block in ours.feed(byte)]
    events = [event for event in other.feed(stream + b"\n") if event.data is not None]
    assert blocks == [Block(event.event, event.data or "", event.id) for event in events]
    assert ours.retry == other.retry
    assert blocks == read(stream + b"\n")


# As the web-platform-tests for EventSource have them.
VECTORS = {
    "several data lines": (b"data: a\ndata: b\n\n", [("message", "a\nb", "")]),
    "empty data": (b"data:\n\n", [("message", "", "")]),
    "two empty data lines": (b"data\ndata:\n\n", [("message", "\n", "")]),
    "data without a colon": (b"data\n\n", [("message", "", "")]),
    "mixed line ends": (b"data:a\r\ndata:b\rdata:c\n\r\n", [("message", "a\nb\nc", "")]),
    "CR alone": (b"data:a\r\rdata:b\r\r:", [("message", "a", ""), ("message", "b", "")]),
    "a long comment": (b":" + b"x" * 2048 + b"\ndata:a\n:\n\n", [("message", "a", "")]),
    "only comments": (b": hello\n\n:\n\n", []),
    "a BOM": (b"\xef\xbb\xbfdata:a\n\n", [("message", "a", "")]),
    "a second BOM": (b"\xef\xbb\xbf\xef\xbb\xbfdata:a\n\ndata:b\n\n", [("message", "b", "")]),
    "a BOM later": (b"data:a\n\n\xef\xbb\xbfdata:b\n\n", [("message", "a", "")]),
    "an unfinished last block": (b"data:a\n\nid:9\ndata:b\n", [("message", "a", "")]),
    "an unfinished last line": (b"data:a\n\ndata:b", [("message", "a", "")]),
    "an empty event name": (b"event:\ndata:a\n\n", [("message", "a", "")]),
    "an event name": (b"event: x\ndata:a\n\ndata:b\n\n", [("x", "a", ""), ("message", "b", "")]),
    "the last event name": (b"event:x\nevent:y\ndata:a\n\n", [("y", "a", "")]),
    "an event without data": (b"event:x\n\ndata:a\n\n", [("message", "a", "")]),
    "NUL in data": (b"data:\0\n\n", [("message", "\0", "")]),
    "NUL in an id": (b"id:1\0\ndata:a\n\n", [("message", "a", "")]),
    "an id that persists": (b"id:1\ndata:a\n\ndata:b\n\n", [("message", "a", "1"), ("message", "b", "1")]),
    "an id that changes": (b"id:1\ndata:a\n\nid:2\ndata:b\n\n", [("message", "a", "1"), ("message", "b", "2")]),
    "an id that is reset": (b"id:1\ndata:a\n\nid\ndata:b\n\n", [("message", "a", "1"), ("message", "b", "")]),
    "an id alone": (b"id:1\n\ndata:a\n\n", [("message", "a", "1")]),
    "an id of spaces": (b"id:  1 \ndata:a\n\n", [("message", "a", " 1 ")]),
    "case": (b"Data:x\nDATA:x\ndata:a\nID:1\n\n", [("message", "a", "")]),
    "unknown fields": (b"foo:x\ndata :x\n data:x\ndata:a\njunk\n\n", [("message", "a", "")]),
    "one leading space": (b"data:  a\n\ndata:\ta\n\n", [("message", " a", ""), ("message", "\ta", "")]),
    "invalid UTF-8": (b"data:\xff\n\n", [("message", "\ufffd", "")]),
    "a colon in data": (b"data:a:b\n\n", [("message", "a:b", "")]),
}


@pytest.mark.parametrize("size", [None, 1, 2, 3])
@pytest.mark.parametrize(("stream", "blocks"), VECTORS.values(), ids=VECTORS)
def test_a_vector(stream: bytes, blocks: list[tuple[str, str, str]], size: int | None) -> None:
    assert read(stream, size) == [Block(*block) for block in blocks]


@pytest.mark.parametrize(
    ("stream", "retry"),
    [(b"retry:5\n", 5), (b"retry: 1000x\n", None), (b"retry:\n", None), (b"retry:-1\n", None), (b"retry:1.5\n", None),
     ("retry:٣\n".encode(), None), (b"retry:5\nretry:x\n", 5), (b"retry:03\n", 3)],
)  # fmt: skip
def test_a_retry_counts_only_in_digits(stream: bytes, retry: int | None) -> None:
    parser = Parser()
    assert list(parser.feed(stream)) == []
    assert parser.retry == retry


def test_an_absurd_retry_is_not_taken_and_ends_nothing() -> None:
    parser = Parser()
    assert [block.data for block in parser.feed(b"retry:" + b"9" * 5000 + b"\ndata:a\n\n")] == ["a"]
    assert parser.retry is None


def test_an_id_counts_only_when_its_block_is_complete() -> None:
    parser = Parser("a=1-1")
    assert list(parser.feed(b"id: a=2-2\ndata: x\n")) == []
    assert parser.last_event_id == "a=1-1"
    assert list(parser.feed(b"\n")) == [Block("message", "x", "a=2-2")]
    assert parser.last_event_id == "a=2-2"


@given(EVENTS)
def test_what_a_store_keeps_is_read_back(event: Event) -> None:
    assert decode_payload(encode_payload(event)) == event


HOSTILE = [
    b"[" * 100_000,
    b'{"data":' + b"[" * 100_000,
    b'{"data":' + b"[" * 900 + b"]" * 900 + b',"type":' + b'{"a":' * 100_000,
    b'{"data":' + b"9" * 5000 + b"}",
    b'{"data":1e999}',
    b'{"data":NaN}',
    b'{"data":"\\ud800"}',
    b'{"data":"x","type":"\\ud800"}',
    b'{"data":"x","type":7}',
    b'{"data":"x","type":["a"]}',
    b'{"data":"x","type":null}',
    b'{"data":"\xff"}',
    b"\xff\xfe\x00",
    b'{"data":"' + b"x" * 7_000_000 + b'"}',
    b'{"data":[' + b"[]," * 2_000_000 + b"1]}",
    b'{"data":"x","y":{' + b",".join(b'"%d":1' % number for number in range(20_000)) + b"}}",
    b"{" + b'"a":"",' * 900_000,
    b'{"a' * 1_500_000,
    b'{"data":"' + b'\\"' * 3_000_000,
]


@pytest.mark.parametrize(
    "data",
    ["\x01" * 1_048_576, '\\"\n' * 349_525, "ä" * 524_288, "x" * 1_048_576],
    ids=["control characters", "escapes", "two bytes each", "plain"],
)
def test_the_largest_events_are_read_back(data: str) -> None:
    event = Event(data, "t" * 64)
    assert decode_payload(encode_payload(event)) == event


def test_a_large_payload_of_others_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse.wire.json.loads", None)
    for payload in HOSTILE:
        if len(payload) > 65_536:
            with pytest.raises(ValueError, match="entry"):
                decode_payload(payload)


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", b"[]", b"{}", b'{"type":"a"}', b'{"data":"x","type":"open"}', b"\xff", b"1", *HOSTILE],
    ids=lambda payload: repr(payload[:40]),
)
def test_a_payload_that_is_none_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError):  # of several kinds
        decode_payload(payload)


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"{",
            b"NaN",
            b"[Infinity]",
            b"-Infinity",
            b"{'a': 1}",
            b'{"a": 1,}',
            b"\xff",
            b'"\xed\xa0\x80"',
            b'{"a":1} x',
        ),
        *(b'{"a": 1, "a": 1}', b'{"x": [{"a": 1, "b": 2, "a": 3}]}', b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000),
        *(b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"), b'"\0"', b'"a\nb"'),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_json(body)
    assert refusal.value.code == "bad_json"
    assert refusal.value.hint
    str(refusal.value).encode()


def test_a_number_that_is_too_long_is_named_as_that() -> None:
    with pytest.raises(RequestError, match="4,300 digits: send it as a string"):
        parse_json(b"[" + b"9" * 5000 + b"]")


def test_one_event_several_channels_and_a_batch() -> None:
    assert parse_publish(b'{"channel": "a", "data": {"n": 1}}') == [("a", Event('{"n":1}'))]
    assert parse_publish(b'{"channel": ["a", "b"], "type": "t", "data": "x"}') == [
        ("a", Event("x", "t")),
        ("b", Event("x", "t")),
    ]
    assert parse_publish(b'[{"channel": "a", "data": null}, {"channel": ["b", "a"], "type": null, "data": 1}]') == [
        ("a", Event("null")), ("b", Event("1")), ("a", Event("1"))
    ]  # fmt: skip


def test_a_batch_is_a_hundred_events_counted_for_each_channel() -> None:
    item = b'{"channel": ["a", "b"], "data": 1}'
    assert len(parse_publish(b"[" + b",".join([item] * (MAX_BATCH // 2)) + b"]")) == MAX_BATCH
    for body in (b"[" + b",".join([item] * (MAX_BATCH // 2 + 1)) + b"]", b"[]"):
        with pytest.raises(InvalidEvent) as refusal:
            parse_publish(body)
        assert refusal.value.code == "bad_batch"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"null", "event 0"),
        (b"5", "event 0"),
        (b'"x"', "event 0"),
        (b"[[]]", "event 0"),
        (b"{}", "event 0"),
        (b'{"channel": "a"}', "event 0"),
        (b'{"data": "a"}', "event 0"),
        (b'[{"channel": "a", "data": 1}, {"channel": "a", "data": 1, "id": 5}]', "event 1 has 'id'"),
        (b'{"channel": [], "data": 1}', "names no channel"),
        (b'{"channel": null, "data": 1}', "None"),
        (b'{"channel": {"a": 1}, "data": 1}', "not a string"),
        (b'{"channel": ["a", 5], "data": 1}', "5"),
        (b'{"channel": ["a", ["b"]], "data": 1}', "not a string"),
        (b'{"channel": "a\\nb", "data": 1}', "not a channel name"),
        (b'{"channel": "\\ud800", "data": 1}', "not a channel name"),
        (b'{"channel": "a", "type": 5, "data": 1}', "type is 5"),
        (b'{"channel": "a", "type": "a\\nid: 5", "data": 1}', "visible"),
        (b'{"channel": "a", "type": "error", "data": 1}', "reserved"),
        (b'{"channel": "a", "data": "\\ud800"}', "surrogate"),
        (b'{"channel": "a", "data": 1e400}', "JSON"),
        (b'{"channel": "a", "data": 1, "\\ud800": 1}', "event 0"),
    ],
)
def test_what_can_never_be_published_is_named(body: bytes, named: str) -> None:
    with pytest.raises(InvalidEvent, match=re.escape(named)) as refusal:
        parse_publish(body)
    assert refusal.value.hint
    str(refusal.value).encode()


@given(TEXT | st.sampled_from([*map(chr, range(256)), "x" * 1000, "\u2028\ud7ff\ue000😀"]))
def test_what_an_event_s_data_takes_in_the_store(data: str) -> None:
    event = Event(data)
    assert stored_size(event) == len(encode_payload(event)) - len(encode_payload(Event("")))


def test_each_escape_takes_its_place_in_the_store() -> None:
    for data in map(chr, range(0x300)):
        assert stored_size(Event(data)) == len(encode_payload(Event(data))) - len(encode_payload(Event("")))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(TEXT, parts, max_size=4),
)


@given(JSON)
def test_json_is_written_as_json_dumps_does(value: object) -> None:
    assert encode_json(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        encode_json({"a": object()})
