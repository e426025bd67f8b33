"""Answers as values, and the headers that all answers have, without an app."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask_cors import cross_origin
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, MethodNotAllowed, TooManyRequests

from sse.config import Config
from sse.errors import Forbidden, Unauthorized
from sse.event import Position
from sse.hub.subscriber import Reset
from sse.web.answers import CommonHeaders, embed_script, gone, http_refusal, refusal
from sse.web.request import Request
from tests.conftest import MakeApp

ORIGIN = "https://a.example"
VARY = "Origin, Cookie, Authorization, Last-Event-ID"
OURS = [
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "private, no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("Vary", VARY),
]


def finished(origins: str, headers: list[tuple[str, str]], **environ: str) -> list[tuple[str, str]]:
    told = Headers(headers)
    CommonHeaders(Config.load({"SSE_ORIGINS": origins}))(told, {"REQUEST_METHOD": "GET", **environ})
    return list(told)


def test_every_answer_ends_with_the_same_headers_in_the_same_order() -> None:
    assert finished("", [("A", "b")], HTTP_ORIGIN=ORIGIN) == [("A", "b"), *OURS]
    assert finished(ORIGIN, [("A", "b")]) == [("A", "b"), *OURS]


def test_cors_stands_before_them_for_an_origin_that_may_read() -> None:
    allowed = [
        ("Access-Control-Allow-Origin", ORIGIN),
        ("Access-Control-Expose-Headers", "Retry-After"),
        ("Access-Control-Allow-Credentials", "true"),
    ]
    for _ in range(2):  # the second time, they are known
        assert finished(ORIGIN, [], HTTP_ORIGIN=ORIGIN) == [*allowed, *OURS]
    assert finished(ORIGIN, [], HTTP_ORIGIN=f"{ORIGIN}.evil") == OURS
    assert finished("*", [], HTTP_ORIGIN=ORIGIN) == [("Access-Control-Allow-Origin", "*"), allowed[1], *OURS]


@pytest.mark.parametrize("origins", ["", "*", ORIGIN, f"{ORIGIN} https://b.example"])
@pytest.mark.parametrize(
    "origin", [None, "", ORIGIN, "https://b.example", ORIGIN.upper(), f"{ORIGIN}.evil", "*", "null"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_complete_gives_the_same_headers_each_time(origins: str, origin: str | None, method: str) -> None:
    common = CommonHeaders(Config.load({"SSE_ORIGINS": origins}))
    environ = {"REQUEST_METHOD": method, "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "POST"}
    if origin is not None:
        environ["HTTP_ORIGIN"] = origin
    for own in ((("A", "b"),), (("Content-Type", "text/plain"), ("Cache-Control", "no-store"))):
        expected = Headers([*own])
        common(expected, environ)
        found = [common.complete(own, environ) for _ in range(2)]
        assert found == [tuple(expected)] * 2
        if method != "OPTIONS" and origin in (None, ORIGIN):
            assert found[0] is found[1]


def test_each_preflight_is_answered_by_what_it_asks() -> None:
    finish = CommonHeaders(Config.load({"SSE_ORIGINS": ORIGIN}))
    environ = {"REQUEST_METHOD": "OPTIONS", "HTTP_ORIGIN": ORIGIN, "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "POST"}
    for asked, allowed in (("authorization, x-evil", "authorization"), ("hx-request", "hx-request")):
        told = Headers()
        finish(told, environ | {"HTTP_ACCESS_CONTROL_REQUEST_HEADERS": asked})
        assert told["Access-Control-Allow-Headers"] == allowed
        assert told["Access-Control-Max-Age"] == "600"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("Cache-Control", "public, max-age=9"), [("X-Content-Type-Options", "nosniff")]),
        (("Vary", "Accept, cookie"), [*OURS[:3]]),
        (("Access-Control-Allow-Origin", "*"), OURS),
    ],
)
def test_headers_that_are_there_already_stay(given: tuple[str, str], kept: list[tuple[str, str]]) -> None:
    name, text = given
    told = finished(ORIGIN, [given], HTTP_ORIGIN=ORIGIN if name.startswith("Access") else "")
    assert told == [(name, f"{VARY}, Accept" if name == "Vary" else text), *kept]


def test_an_error_is_json_and_has_its_own_headers() -> None:
    answer = refusal(Unauthorized("no", "yes", retry_after=3))
    assert (answer.status, answer.headers) == (401, [("WWW-Authenticate", "Bearer"), ("Retry-After", "3")])
    assert json.loads(answer.body) == {"error": {"code": "unauthorized", "message": "no", "hint": "yes"}}
    assert json.loads(refusal(Forbidden("no", channels=("a",))).body)["error"]["channels"] == ["a"]


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"),
    [
        (TooManyRequests("slowly", retry_after=9), 429, "too_many_requests", [("Retry-After", "9")]),
        (MethodNotAllowed(["GET"]), 405, "method_not_allowed", [("Allow", "GET")]),
        (HTTPException("odd"), 400, "unknown_error", []),
    ],
)
def test_an_error_of_http_is_told_in_the_same_form(
    error: HTTPException, status: int, code: str, headers: list[tuple[str, str]]
) -> None:
    answer = http_refusal(error)
    assert (answer.status, list(answer.headers)) == (status, headers)
    assert json.loads(answer.body)["error"]["code"] == code


def test_a_bare_stream_that_cannot_be_continued_is_told_where_to_go_on() -> None:
    answer = gone([Reset("a", "trimmed", 3, Position(4, 5))], "a=4-5")
    told = json.loads(answer.body)
    assert (answer.status, told["error"]["code"], told["last_event_id"]) == (410, "gone", "a=4-5")
    assert told["resets"] == [{"channel": "a", "reason": "trimmed", "missed": 3}]


def test_the_embed_script_is_gzipped_and_known_by_its_etag() -> None:
    def asked(**environ: str) -> Any:
        return embed_script(Request(environ, "GET", b""), "js", "public")

    plain, zipped = asked(), asked(HTTP_ACCEPT_ENCODING="gzip")
    assert (plain.status, "Content-Encoding" in plain.headers) == (200, False)
    assert (zipped.status, zipped.headers["Content-Encoding"]) == (200, "gzip")
    assert len(zipped.body) < len(plain.body)
    known = asked(HTTP_IF_NONE_MATCH=f"W/{plain.headers['ETag']}")
    assert (known.status, known.body, known.headers["ETag"]) == (304, b"", plain.headers["ETag"])


@pytest.mark.parametrize(("origin", "allowed"), [("https://own.example", "https://own.example"), (ORIGIN, None)])
def test_a_decorator_of_flask_cors_around_a_view_decides_its_preflights(
    origin: str, allowed: str | None, make_app: MakeApp
) -> None:
    app = make_app(SSE_ORIGINS=[ORIGIN])
    view = app.view_functions["sse.stream"]
    app.view_functions["sse.stream"] = cross_origin(origins=["https://own.example"])(view)
    answer = app.test_client().options("/sse/stream", headers={"Origin": origin})
    assert answer.headers.get("Access-Control-Allow-Origin") == allowed
