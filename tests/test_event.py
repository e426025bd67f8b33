"""Events, positions and last event ids: valid values, refused values, and round trips."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.errors import InvalidEvent
from sse.event import (
    UNBORN,
    Event,
    LastEventId,
    Position,
    check_channel,
    check_idempotency_key,
    check_type,
    data_url,
    format_last_event_id,
    id_size,
    plain_int,
)
from tests.subclasses import KINDS, LyingBytearray, LyingBytes, numbers, strings

POSITIONS = st.builds(Position, st.integers(0, 2**53 - 1), st.integers(1, 2**52))
CHANNELS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,40}(/[a-z]{1,5}){0,3}", fullmatch=True).filter(
    lambda name: not name.startswith("sse.")
)


@pytest.mark.parametrize(
    "name",
    ["a", "A9_.:@-", "_", "9", "a/b/c", "a.b", "a..b", "a" * 128, "sse", "sse/x", "x.sse.", "...a"[3:], "a/...b"],
)
def test_a_channel_s_name(name: str) -> None:
    assert check_channel(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            "a b",
            "a\n",
            "\na",
            "a\r",
            "a\0",
            "ä",
            "a*",
            "*",
            "a=b",
            "a~b",
            "a,b",
            "a%20",
            "{a}",
            "a'b",
            "\ud800",
        ),
        *(
            "/",
            "/a",
            "a/",
            "a//b",
            "a/./b",
            "a/../b",
            "a/..",
            ".",
            "..",
            ".a",
            "-a",
            ":a",
            "@a",
            "a" * 129,
            "sse.x",
            "sse.",
        ),
        *(None, 5, b"a", ["a"], {"a": 1}, True, 1.5),
    ],
)
def test_what_is_no_channel_is_refused(name: object) -> None:
    with pytest.raises(InvalidEvent) as refusal:
        check_channel(name)
    assert refusal.value.code == "invalid_channel"
    assert refusal.value.hint
    assert isinstance(refusal.value, ValueError)


@pytest.mark.parametrize(
    "value", ["message", "a", "x" * 64, "Open", "errors", "sse", "ä", "€:;,", "日本", "sse-x", "-", "0"]
)
def test_an_event_s_type(value: str) -> None:
    assert check_type(value) == value


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "x" * 65,
            "a b",
            "a\n",
            "a\rdata: x",
            "a\0",
            "\t",
            "a\u2028",
            "a\u00a0b",
            "\u200b",
            "\ud800",
            "\x7f",
            "\x85",
        ),
        *("open", "error", "sse.", "sse.open", "sse.x", None, 5, b"a", ["a"]),
    ],
)
def test_what_is_no_type_is_refused(value: Any) -> None:
    with pytest.raises(InvalidEvent) as refusal:
        Event("x", value)
    assert refusal.value.code == "invalid_type"
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("data", "text"),
    [
        *(("", ""), ("x", "x"), ("a\r\nb\rc\n\r", "a\nb\nc\n\n"), ("\0", "\0"), ("\ufeff", "\ufeff"), ("😀", "😀")),
        *(
            (None, "null"),
            (True, "true"),
            (0, "0"),
            (1.5, "1.5"),
            ([1, "ä"], '[1,"ä"]'),
            ({"a": {"b": None}}, '{"a":{"b":null}}'),
        ),
        *((["\r\n"], '["\\r\\n"]'), ((1, 2), "[1,2]"), ({}, "{}")),
        *(
            (b"\0\xff", "data:application/octet-stream;base64,AP8="),
            (bytearray(b""), "data:application/octet-stream;base64,"),
        ),
        (memoryview(b"a"), "data:application/octet-stream;base64,YQ=="),
    ],
)
def test_data_becomes_the_text_that_a_stream_shows(data: object, text: str) -> None:
    assert Event(data) == Event(text)
    assert (Event(data).data, Event(data).type) == (text, "message")


@pytest.mark.parametrize("check", [check_channel, check_type, check_idempotency_key])
@pytest.mark.parametrize("kind", KINDS)
def test_a_subclass_of_str_is_taken_for_the_text_that_it_holds(check: Callable[[Any], str], kind: str) -> None:
    checked = check(strings("orders")[KINDS.index(kind)])
    assert (checked, type(checked)) == ("orders", str)


@pytest.mark.parametrize("check", [check_channel, check_type, check_idempotency_key])
@pytest.mark.parametrize("kind", KINDS)
def test_a_subclass_of_str_is_judged_by_the_text_that_it_holds(check: Callable[[Any], str], kind: str) -> None:
    with pytest.raises(InvalidEvent):
        check(strings("no\nname")[KINDS.index(kind)])


@pytest.mark.parametrize("kind", KINDS)
def test_data_of_a_subclass_of_str_is_the_text_that_it_holds(kind: str) -> None:
    event = Event(*(strings(text)[KINDS.index(kind)] for text in ("<b>1</b>\r\n&amp; {x}%s\r", "paid")))
    assert (event.data, event.type) == ("<b>1</b>\n&amp; {x}%s\n", "paid")
    assert {type(event.data), type(event.type)} == {str}


@pytest.mark.parametrize("data", [LyingBytes(b"\0\xff"), LyingBytearray(b"\0\xff"), memoryview(b"\0.\xff.")[::2]])
def test_data_of_a_subclass_of_bytes_is_the_bytes_that_it_holds(data: object) -> None:
    assert Event(data).data == "data:application/octet-stream;base64,AP8="


@pytest.mark.parametrize("index", range(3))
def test_a_subclass_of_int_is_the_number_that_it_holds(index: int) -> None:
    number = numbers(5)[index]
    assert (plain_int(number), type(plain_int(number))) == (5, int)
    assert Event({"n": [number], number: 1}).data == '{"n":[5],"5":1}'


def test_keys_and_values_in_json_are_the_text_and_the_numbers_that_they_hold() -> None:
    for text in strings("a\u00e4")[:4]:
        assert Event({text: [text]}).data == '{"aä":["aä"]}'
    assert Event({True: 1, None: 2, 1.5: 3}).data == '{"true":1,"null":2,"1.5":3}'


@pytest.mark.parametrize("key", [7, b"k", uuid.UUID(int=7), None, ["k"]])
def test_an_idempotency_key_that_is_no_string_is_refused(key: object) -> None:
    with pytest.raises(InvalidEvent, match="not a string") as refusal:
        check_idempotency_key(key)
    assert refusal.value.code == "invalid_idempotency_key"


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def in_itself() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize(
    "data",
    [
        *("\ud800", "a\udfffb", ["\ud800"], {"\ud800": 1}),
        *(math.nan, math.inf, -math.inf, [math.nan], {math.nan: 1}, 1e400),
        *(object(), {1, 2}, {"a": b"x"}, {(1, 2): 3}, nested(100_000), in_itself(), 10**5000),
    ],
    ids=lambda data: str(type(data)),
)
def test_data_without_a_text_is_refused(data: object) -> None:
    with pytest.raises(InvalidEvent) as refusal:
        Event(data)
    assert refusal.value.code == "invalid_data"
    assert refusal.value.hint
    str(refusal.value).encode()


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Event("x").data = "y"  # type: ignore[misc]


@given(st.binary(max_size=200))
def test_a_data_url_is_its_bytes(body: bytes) -> None:
    head, _, encoded = data_url(body, "image/svg+xml").partition(",")
    assert head == "data:image/svg+xml;base64"
    assert base64.b64decode(encoded, validate=True) == body


@pytest.mark.parametrize(
    "media_type", ["", "text", "a/b/c", "a/b;c", "a/b\n", "a b/c", "a/", "/b", "ä/b", "a/" + "b" * 65]
)
def test_a_data_url_takes_no_parameters_and_no_nonsense(media_type: str) -> None:
    with pytest.raises(InvalidEvent, match="media type"):
        data_url(b"", media_type)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_is_read_back_by_the_page(value: Any) -> None:
    try:
        event = Event(value)
    except InvalidEvent as error:
        assert "surrogate" in error.message
        return
    if not isinstance(value, str):
        assert json.loads(event.data) == value


@given(POSITIONS)
def test_a_position_is_read_back(position: Position) -> None:
    assert Position.parse(str(position)) == position


def test_where_no_ring_is() -> None:
    assert str(UNBORN) == "0-0"
    assert Position.parse("0-0") == UNBORN


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "-",
            "1",
            "1-",
            "-1",
            "1-2-3",
            " 1-2",
            "1-2 ",
            "1-2\n",
            "01-2",
            "1-02",
            "+1-2",
            "1--2",
            "a-b",
            "١-٢",
            "1_0-2",
        ),
        *("5-0", f"{2**53}-1", f"1-{2**52 + 1}", "9" * 5000 + "-1", "1-" + "9" * 5000, "0x1-2", "1.0-2", "1-2\0"),
    ],
)
def test_what_is_no_position(text: str) -> None:
    assert Position.parse(text) is None


@given(st.dictionaries(CHANNELS, POSITIONS, max_size=6), st.data())
def test_a_last_event_id_is_read_back_and_stays_within_its_size(
    positions: dict[str, Position], data: st.DataObject
) -> None:
    first = data.draw(st.sampled_from(sorted(positions))) if positions and data.draw(st.booleans()) else None
    text = format_last_event_id(positions, first)
    assert LastEventId.parse(text) == LastEventId(positions)
    assert text.isascii()
    assert text.isprintable()
    assert not positions or len(text) <= id_size(positions)
    assert first is None or text.startswith(f"{first}=")


def test_without_any_position_an_id_is_still_not_empty() -> None:
    assert format_last_event_id({}) == "~"
    assert LastEventId.parse("~") == LastEventId.parse("") == LastEventId()


def test_an_entry_that_is_no_position_makes_its_channel_invalid_and_no_other() -> None:
    last = LastEventId.parse("a=5-1~b=x~c=~d=7-2")
    assert last.positions == {"a": Position(5, 1), "d": Position(7, 2)}
    assert [last.is_invalid(name) for name in "abcde"] == [False, True, True, False, False]


def test_two_positions_for_one_channel_are_none() -> None:
    assert LastEventId.parse("a=5-1~a=5-1").positions == {"a": Position(5, 1)}
    for text in ("a=5-1~a=6-1", "a=6-1~a=5-1~a=6-1", "a=5-1~a=x", "a=x~a=5-1"):
        last = LastEventId.parse(text)
        assert last.positions == {}
        assert last.is_invalid("a")
        assert not last.is_invalid("b")


@pytest.mark.parametrize("text", ["a=5-1~rubbish", "rubbish~a=5-1", "a=5-1~b c=1-1", "a=5-1~=1-1", "42~a=5-1"])
def test_a_part_that_names_no_channel_throws_doubt_on_those_without_an_entry(text: str) -> None:
    last = LastEventId.parse(text)
    assert last.damaged
    assert not last.is_invalid("a")
    assert last.is_invalid("b")


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    last = LastEventId.parse(text)
    assert not last.invalid & last.positions.keys()


@pytest.mark.parametrize("text", ["~" * 100_000, "a=" + "9" * 100_000, "a" * 100_000, "=" * 100_000])
def test_a_huge_last_event_id_is_read_quickly(text: str) -> None:
    assert LastEventId.parse(text).positions == {}


@pytest.mark.parametrize("name", ["*", "news/*", "news*", "a/*/b", "**"])
def test_a_pattern_in_the_place_of_a_channel_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InvalidEvent, match="name each channel: only SSE_PUBLIC, tokens and") as refusal:
        check_channel(name)
    assert refusal.value.code == "invalid_channel"
