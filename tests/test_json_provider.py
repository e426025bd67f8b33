"""Data is serialized by the app's JSON provider, which accepts more types than json.dumps."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from flask import Flask, jsonify
from flask.json.provider import DefaultJSONProvider, JSONProvider
from hypothesis import given
from hypothesis import strategies as st

from sse import SSE, Event, InvalidEvent
from sse.errors import TooLarge
from sse.event import Event as StoredEvent
from tests.conftest import MakeApp
from tests.subclasses import strings

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
AT_TEXT = "Fri, 02 Jan 2026 03:04:05 GMT"


class Colour(Enum):
    RED = 1


class Html:
    def __html__(self) -> str:
        return "<b>ä</b>"


@dataclasses.dataclass
class Line:
    price: Any
    of: Any = None


def own_circle() -> Line:
    line = Line(1)
    line.of = line
    return line


def circle_beside() -> list[Any]:
    circle: list[Any] = [AT]
    circle.append(circle)
    return circle


def deep(value: Any) -> Any:
    for _ in range(100_000):
        value = [value]
    return value


TAKEN: list[tuple[Any, str]] = [
    (AT, f'"{AT_TEXT}"'),
    (date(2026, 1, 2), '"Fri, 02 Jan 2026 00:00:00 GMT"'),
    (Decimal("1.10"), '"1.10"'),
    ([Decimal("NaN"), Decimal("Infinity")], '["NaN","Infinity"]'),
    (UUID(int=7), '"00000000-0000-0000-0000-000000000007"'),
    (Html(), '"<b>ä</b>"'),
    (Line(Decimal(2), [Line(AT)]), f'{{"of":[{{"of":null,"price":"{AT_TEXT}"}}],"price":"2"}}'),
    ({"b": AT, "a": ["ä\r\n\u2028 :", 1.50, True, None]}, f'{{"a":["ä\\r\\n\u2028 :",1.5,true,null],"b":"{AT_TEXT}"}}'),
    ({2: AT, 10: "x"}, f'{{"2":"{AT_TEXT}","10":"x"}}'),
    ([AT, *strings("é")[:4], "\U0001f600"], f'["{AT_TEXT}","é","é","é","é","\U0001f600"]'),
]
REFUSED: list[tuple[Any, str]] = [
    ({1, 2}, "data, of type set, has no JSON form: Object of type set"),
    ([AT, {1}], "data, of type list, has no JSON form: Object of type set"),
    ({"a": b"x"}, "Object of type bytes"),
    ([AT, Colour.RED], "Object of type Colour"),
    (time(1), "Object of type time"),
    (timedelta(1), "Object of type timedelta"),
    (Line, "asdict"),
    ({AT: 1}, "keys must be"),
    ({1: AT, "a": 2}, "keys that are strings"),
    ([AT, math.nan], "finite"),
    ([math.inf, AT], "finite"),
    ({math.nan: AT}, "finite"),
    (Line(math.nan), "NaN is not a finite number"),
    ([Line(-math.inf), AT], "-Infinity is not a finite number"),
    ([AT, "\ud800"], "lone surrogate"),
    ({"\udfff": AT}, "lone surrogate"),
    (circle_beside(), "Circular reference"),
    (own_circle(), "recursion"),
    (deep(AT), "recursion"),
    ([AT, 10**5000], "4300 digits"),
    (Event("x", "y"), "give its data and its type"),
]


@pytest.mark.parametrize(("value", "text"), TAKEN, ids=lambda item: type(item).__name__)
def test_what_jsonify_takes_is_published_compactly_and_to_the_same_bytes_each_time(
    make_app: MakeApp, store_url: str | None, value: Any, text: str
) -> None:
    sse = SSE()
    app = make_app(sse, SSE_REDIS_URL=store_url)
    with app.app_context():
        id = sse.publish("a", value, idempotency_key="once")
        assert sse.publish("a", value, idempotency_key="once") == id
        assert Event(value) == Event(text)
        assert json.loads(text) == jsonify(value).get_json()
    [event] = app.test_client().get("/sse/poll?channel=a&replay=9&timeout=0").get_json()["events"]
    assert event["data"] == text


@pytest.mark.parametrize(("value", "text"), TAKEN, ids=lambda item: type(item).__name__)
def test_outside_of_an_app_flask_s_default_rules_hold(value: Any, text: str) -> None:
    assert Event(value, "paid") == Event(text, "paid")
    assert Event(value).data == text


@pytest.mark.parametrize(("value", "told"), REFUSED, ids=lambda item: type(item).__name__)
def test_what_jsonify_refuses_and_what_is_no_json_is_refused(make_app: MakeApp, value: Any, told: str) -> None:
    sse = SSE()
    app = make_app(sse)
    with pytest.raises(InvalidEvent) as outside:
        Event(value)
    with app.app_context(), pytest.raises(InvalidEvent) as refusal:
        sse.publish("a", value)
    for error in (outside.value, refusal.value):
        assert told in str(error)
        assert (error.code, error.status) == ("invalid_data", 422)
        assert error.hint
        assert len(str(error)) < 500
    assert app.extensions["sse"].store.newest(["a"]) == [None]


def test_an_event_is_equal_to_another_of_the_same_data_and_type_whichever_class_made_it() -> None:
    ours, stored = Event({"a": 1}, "paid"), StoredEvent('{"a":1}', "paid")
    assert ours == stored
    assert stored == ours
    assert len({ours, stored}) == 1
    assert ours not in (StoredEvent("x", "paid"), StoredEvent('{"a":1}'), '{"a":1}', None)


def test_without_a_way_to_write_them_the_ground_floor_refuses_other_types() -> None:
    with pytest.raises(InvalidEvent, match="Object of type datetime"):
        StoredEvent(AT)


class Provider(JSONProvider):
    """A JSON provider of the app, which takes no arguments but the value."""

    def __init__(self, app: Flask, dumps: Callable[[Any], Any]) -> None:
        super().__init__(app)
        self._dumps = dumps

    def dumps(self, obj: Any) -> Any:  # type: ignore[override]
        return self._dumps(obj)

    def loads(self, s: str | bytes, **_: Any) -> Any:
        return json.loads(s)


def published(make_app: MakeApp, dumps: Callable[[Any], Any], value: Any) -> str:
    sse = SSE()
    app = make_app(sse)
    app.json = Provider(app, dumps)
    with app.app_context():
        sse.publish("a", value)
        assert Event(value) == Event(Event(value).data)
    with app.test_client().get("/sse/stream?channel=a&replay=1") as answer:
        body, text = iter(answer.response), b""
        while b"\ndata: " not in text.partition(b"id: a=1-")[2]:
            text += next(body)
    return text.partition(b"id: a=1-")[2].partition(b"data: ")[2].removesuffix(b"\n\n").decode()


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('{"b" : 1.10,\n  "a":\t[1.0e+300, -0, 1E5, 123456789012345678901234567890.10]\r\n}\n', None),
        (b'\n["\xc3\xa4", 1]', '["ä",1]'),
        (bytearray(b" [ ] "), "[]"),
        (r'"\u00e4\/\ud83d\ude00 \u003cb\u003e \\u00e4 \" \n\u0000"', '"ä/\U0001f600 <b> \\\\u00e4 \\" \\n\\u0000"'),
        (r'{" a : [ 1 , 2 ] \\": " x\\\" , " }', r'{" a : [ 1 , 2 ] \\":" x\\\" , "}'),
        ("null", "null"),
        ('""', '""'),
        (strings('[ "a" ]')[3], '["a"]'),
    ],
)
def test_what_a_provider_of_the_app_s_own_writes_is_made_compact_and_its_numbers_stay(
    make_app: MakeApp, written: Any, text: str | None
) -> None:
    expected = text or '{"b":1.10,"a":[1.0e+300,-0,1E5,123456789012345678901234567890.10]}'
    assert published(make_app, lambda _: written, AT) == expected


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 0, 2, " \t\r\n"]), st.sampled_from([(",", ":"), (" , ", "\n:\r")]))
def test_whatever_white_space_and_escapes_a_provider_writes_the_text_is_as_json_dumps_has_it(
    value: Any, ascii_only: bool, indent: Any, separators: tuple[str, str]
) -> None:
    def dumps(_: Any) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent, separators=separators)

    assert StoredEvent(AT, encode=dumps).data == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(
    "written",
    [
        *(
            None,
            5,
            {"a": 1},
            b"\xff",
            "",
            " ",
            "NaN",
            "[-Infinity]",
            '{"a": Infinity}',
            "{",
            "[1] x",
            "'a'",
            "[01]",
            "1e400",
            "[-1E999]",
        ),
        *('"a\nb"', '["\\ud800"]', '["\ud800"]', '"\\udfff\\ud800"', "[" * 100_000, "\ufeff[]", "x" * 100_000),
    ],
)
def test_what_is_no_json_is_refused_whatever_wrote_it(make_app: MakeApp, written: Any) -> None:
    with pytest.raises(InvalidEvent) as refusal:
        published(make_app, lambda _: written, AT)
    assert refusal.value.code == "invalid_data"
    assert len(str(refusal.value)) < 600


def test_a_provider_s_errors_are_told_and_those_that_say_nothing_of_the_value_pass(make_app: MakeApp) -> None:
    def failing(error: Exception) -> Callable[[Any], Any]:
        def dumps(_: Any) -> Any:
            raise error

        return dumps

    for error in (TypeError("it is no good"), ValueError("it is no good"), RecursionError("it is no good")):
        with pytest.raises(InvalidEvent, match="it is no good") as refusal:
            published(make_app, failing(error), AT)
        assert refusal.value.__cause__ is error
    with pytest.raises(InvalidEvent, match="TypeError"):
        published(make_app, failing(TypeError()), AT)
    with pytest.raises(LookupError, match="the session is gone"):
        published(make_app, failing(LookupError("the session is gone")), AT)


def test_nan_is_refused_whatever_a_provider_makes_of_it(make_app: MakeApp) -> None:
    for value in ([AT, math.nan], [math.nan, AT], {"at": AT, "n": {"m": math.inf}}):
        with pytest.raises(InvalidEvent, match="finite"):
            published(make_app, lambda _: "[null]", value)


@pytest.mark.parametrize(
    "value",
    [
        {"b": 1.0, "a": [None, True, "ä\r\u2028\U0001f600/<"], 3: 10**30, "c": strings("x")[0], None: (1, 2)},
        [1e300, -0.0, 0.1 + 0.2, {}, []],
        "text",
        b"bytes",
        strings("<b>&</b>")[2],
    ],
)
def test_what_was_taken_before_keeps_its_bytes_and_no_provider_is_asked(make_app: MakeApp, value: Any) -> None:
    text = published(make_app, lambda _: pytest.fail("it was asked"), value)
    assert text == StoredEvent(value).data
    if isinstance(value, dict | list):
        assert text == json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def test_each_app_writes_as_its_own_provider_does(make_app: MakeApp) -> None:
    class Iso(DefaultJSONProvider):
        sort_keys = False

        @staticmethod
        def default(value: Any) -> Any:
            if isinstance(value, datetime):
                return value.isoformat()
            return sorted(value) if isinstance(value, set) else DefaultJSONProvider.default(value)

    sse = SSE()
    one, two = make_app(sse), make_app(sse)
    two.json = Iso(two)
    for app, text in ((one, f'{{"a":1,"b":"{AT_TEXT}"}}'), (two, '{"b":"2026-01-02T03:04:05+00:00","a":1}')):
        with app.app_context():
            id = sse.publish("a", {"b": AT, "a": 1})
        [event] = app.test_client().get("/sse/poll?channel=a&replay=9&timeout=0").get_json()["events"]
        assert (event["id"], event["data"]) == (id, text)
    with two.app_context():
        assert Event([{2, 1}]).data == "[[1,2]]"


def test_the_limit_is_for_what_the_provider_wrote_once_it_is_compact(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse, SSE_MAX_EVENT_BYTES=33)
    with app.app_context():
        assert sse.publish("a", [AT])
        with pytest.raises(TooLarge, match="35 bytes, SSE_MAX_EVENT_BYTES is 33"):
            sse.publish("a", [AT, 1])
    app.json = Provider(app, lambda _: "[" + " " * 100_000 + '"\\u00e4"]')
    with app.app_context():
        assert sse.publish("a", AT)
