"""Presence over HTTP and in an app: who counts, who is named, who may ask, and whom the app is told of."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, abort, current_app, request, session
from flask.testing import FlaskClient

from sse import SSE, InvalidEvent, NotFound
from tests.conftest import MakeApp
from tests.servers import wait_until
from tests.tokens import KEY, SECRET, claims, signed

ROOM = "room/7"


@pytest.fixture
def sse() -> SSE:
    return SSE()


@pytest.fixture
def app(make_app: MakeApp, sse: SSE, store_url: str | None) -> Flask:
    return make_app(
        sse,
        SSE_PRESENCE="room/*",
        SSE_REDIS_URL=store_url,
        SSE_SECRET=SECRET,
        SSE_PUBLISH_KEYS=KEY,
        SECRET_KEY="of the sessions of the tests",
    )


def token_of(**changes: Any) -> str:
    return signed(claims(**changes))


class Streams:
    """Streams of a test client that have been opened."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client
        self.open: list[Any] = []

    def __call__(self, query: str = "", channel: str = ROOM, **headers: str) -> Any:
        response = self.client.get(f"/sse/stream?channel={channel}{query}", headers=headers)
        assert b"sse.open" in next(iter(response.response))
        self.open.append(response)
        return response


@pytest.fixture
def stream(app: Flask) -> Iterator[Streams]:
    streams = Streams(app.test_client())
    yield streams
    for response in streams.open:
        response.close()


def ticket(app: Flask, sse: SSE, sub: str) -> str:
    with app.app_context():
        return sse.ticket([ROOM], sub=sub)


def present(app: Flask, sse: SSE, channel: str = ROOM) -> tuple[int, dict[str, int]]:
    with app.app_context():
        return sse.count(channel), {member["sub"]: member["connections"] for member in sse.members(channel)}


# Who counts


def test_streams_count_while_they_are_open(app: Flask, sse: SSE, stream: Streams) -> None:
    assert present(app, sse) == (0, {})
    first, second = stream(), stream()
    assert present(app, sse) == (2, {})
    first.close()
    assert present(app, sse) == (1, {})
    second.close()
    assert present(app, sse) == (0, {})


def test_a_stream_counts_on_its_channels_that_match_and_on_no_other(app: Flask, sse: SSE, stream: Streams) -> None:
    stream("&channel=news&channel=room/8")
    assert present(app, sse) == present(app, sse, "room/8") == (1, {})
    with app.app_context(), pytest.raises(NotFound, match="no presence is kept for channel news") as caught:
        sse.count("news")
    assert caught.value.code == "no_presence"
    with app.app_context(), pytest.raises(InvalidEvent):
        sse.members("not a channel")


def test_other_channels_cost_nothing(make_app: MakeApp, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a call nor another class of stream or poll."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("presence was used")

    monkeypatch.setattr("sse.work.presence.Presence.enter", fail)
    monkeypatch.setattr("sse.web.presence.PresentStream.__init__", fail)
    monkeypatch.setattr("sse.web.presence.PresentPoll.__init__", fail)
    for one in (app, make_app()):
        client = one.test_client()
        assert client.get("/sse/poll?channel=news&timeout=1").status_code == 200
        response = client.get("/sse/stream?channel=news&client=page-of-ann")
        assert b"sse.open" in next(iter(response.response))
        response.close()


def test_a_response_that_is_never_sent_never_counts(app: Flask, sse: SSE) -> None:
    @app.after_request
    def replace(response: Any) -> Any:
        return current_app.response_class("replaced") if request.path == "/sse/stream" else response

    client = app.test_client()
    assert client.get(f"/sse/stream?channel={ROOM}").data == b"replaced"
    assert client.head(f"/sse/stream?channel={ROOM}").status_code == 200
    assert present(app, sse) == (0, {})


def test_a_stream_that_is_refused_or_busy_does_not_count(make_app: MakeApp, sse: SSE) -> None:
    app = make_app(sse, SSE_PRESENCE="*", SSE_PUBLIC="room/*", SSE_MAX_SUBSCRIBERS=1)
    streams = Streams(app.test_client())
    streams()
    assert b"busy" in app.test_client().get(f"/sse/stream?channel={ROOM}").data
    assert app.test_client().get("/sse/stream?channel=secret").status_code == 403
    assert app.test_client().get(f"/sse/poll?channel={ROOM}&timeout=1").status_code == 503
    assert present(app, sse) == (1, {})
    assert present(app, sse, "secret") == (0, {})
    streams.open[0].close()


def test_a_bare_stream_counts(app: Flask, sse: SSE) -> None:
    response = app.test_client().get(f"/sse/stream?channel={ROOM}&form=bare")
    assert b": open" in next(iter(response.response))
    assert present(app, sse) == (1, {})
    response.close()
    assert present(app, sse) == (0, {})


# Clients and polls


def test_the_connections_of_a_client_of_one_subject_count_once(app: Flask, sse: SSE, stream: Streams) -> None:
    ann, bob = ticket(app, sse, "ann"), ticket(app, sse, "bob")
    streams = [stream(f"&client=one-page&token={token}") for token in (ann, ann, bob, bob)]
    stream("&client=one-page")
    assert present(app, sse) == (3, {"ann": 1, "bob": 1})
    streams[0].close()
    assert present(app, sse) == (3, {"ann": 1, "bob": 1})
    streams[1].close()
    assert present(app, sse) == (2, {"bob": 1})


def test_a_poll_counts_while_it_waits(app: Flask, sse: SSE) -> None:
    seen: list[Any] = []
    client = app.test_client()
    position = client.get(f"/sse/poll?channel={ROOM}&timeout=1").json["last_event_id"]

    thread = threading.Thread(
        target=lambda: seen.append(
            app.test_client().get(f"/sse/poll?last_event_id={position}&channel={ROOM}&timeout=2")
        )
    )
    thread.start()
    wait_until(lambda: present(app, sse) == (1, {}), 2)
    thread.join()
    assert seen[0].json["events"] == []
    assert present(app, sse) == (0, {})


def test_a_poll_with_a_client_counts_until_ten_seconds_after_its_answer(
    app: Flask, sse: SSE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse.work.presence.LINGER", 1.0)
    client = app.test_client()
    client.get(f"/sse/poll?channel={ROOM}&timeout=1")
    assert present(app, sse) == (0, {})
    token = ticket(app, sse, "ann")
    for _ in range(3):
        client.get(f"/sse/poll?channel={ROOM}&timeout=1&client=one-page&token={token}")
        assert present(app, sse) == (1, {"ann": 1})
    assert 0.7 < wait_for_nobody(lambda: present(app, sse)) < 3


def wait_for_nobody(look: Callable[[], tuple[int, dict[str, int]]]) -> float:
    began = time.monotonic()
    wait_until(lambda: look() == (0, {}), 5)
    return time.monotonic() - began


def test_a_poll_that_does_not_wait_by_its_own_wish_counts_for_nothing(app: Flask, sse: SSE) -> None:
    app.test_client().get(f"/sse/poll?channel={ROOM}&timeout=0&client=one-page")
    assert present(app, sse) == (0, {})


@pytest.mark.parametrize("path", ["stream", "poll"])
@pytest.mark.parametrize("client", ["", "short", "x" * 65, "with%20space", "ümläut99", "a.b.c.d.e", "12345678%0A"])
def test_a_malformed_client_is_a_bad_request(app: Flask, path: str, client: str) -> None:
    answer = app.test_client().get(f"/sse/{path}?channel=news&client={client}")
    assert answer.status_code == 400
    assert "client is" in answer.json["error"]["message"]
    assert "8 to 64 of A-Z a-z 0-9 _ -" in answer.json["error"]["hint"]


def test_a_client_that_is_given_twice_is_a_bad_request(app: Flask) -> None:
    answer = app.test_client().get("/sse/poll?channel=news&client=12345678&client=12345678")
    assert (answer.status_code, answer.json["error"]["message"]) == (400, "client is given more than once")


# Who is named


def test_the_subject_is_that_of_the_token_even_where_all_is_public(app: Flask, sse: SSE, stream: Streams) -> None:
    token = token_of(sub="ann", subscribe=["other"])
    stream(Authorization=f"Bearer {token}")
    stream(f"&token={ticket(app, sse, 'bob')}")
    assert present(app, sse) == (2, {"ann": 1, "bob": 1})


def test_identify_names_those_whom_no_token_names(app: Flask, sse: SSE, stream: Streams) -> None:
    asked = []

    @sse.identify
    def name() -> str | None:
        asked.append(request.args["channel"])
        return session.get("user")

    with stream.client.session_transaction() as login:
        login["user"] = "eve"
    stream()
    stream(f"&token={ticket(app, sse, 'bob')}")
    stream(channel="news")
    Streams(app.test_client())(channel="room/8").close()
    assert asked == [ROOM, "room/8"]
    assert present(app, sse) == (2, {"eve": 1, "bob": 1})


def test_a_view_of_the_app_names_its_reader_by_sub(app: Flask, sse: SSE) -> None:
    @app.get("/inbox")
    def inbox() -> Any:
        return sse.subscribe(ROOM, "news", sub="zoe")

    sse.identify(lambda: "somebody else")
    response = app.test_client().get("/inbox?client=one-page")
    assert b"sse.open" in next(iter(response.response))
    assert present(app, sse) == (1, {"zoe": 1})
    response.close()
    assert present(app, sse) == (0, {})
    poll = app.test_client().get("/inbox?client=one-page&timeout=1", headers={"Accept": "application/json"})
    assert poll.json["events"] == []
    assert present(app, sse) == (1, {"zoe": 1})


def test_a_view_of_the_app_may_have_tokens_of_its_own(app: Flask, sse: SSE) -> None:
    app.get("/lobby")(lambda: sse.subscribe(ROOM))
    sse.identify(lambda: request.headers["Authorization"].removeprefix("Bearer token.of."))
    response = app.test_client().get("/lobby", headers={"Authorization": "Bearer token.of.kim"})
    assert b"sse.open" in next(iter(response.response))
    assert present(app, sse) == (1, {"kim": 1})
    response.close()


class Name(str):
    pass


@pytest.mark.parametrize(("answer", "members"), [(None, {}), ("", {}), (Name("ann"), {"ann": 1}), ("x" * 300, {})])
def test_nobody_has_to_be_named(
    app: Flask, sse: SSE, stream: Streams, answer: str | None, members: dict[str, int]
) -> None:
    sse.identify(lambda: answer)
    stream()
    assert present(app, sse) == (1, members)


@pytest.mark.parametrize("answer", [7, True, b"ann", ["ann"]])
def test_any_other_answer_is_logged_and_anonymous(
    app: Flask, sse: SSE, stream: Streams, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sse.identify(lambda: answer)
    stream()
    assert present(app, sse) == (1, {})
    assert f"@sse.identify returned {type(answer).__name__}, so the connection is anonymous" in caplog.text


def test_an_error_in_identify_opens_nothing(app: Flask, sse: SSE, caplog: pytest.LogCaptureFixture) -> None:
    @sse.identify
    def name() -> str:
        raise RuntimeError("no database")

    client = app.test_client()
    assert b'"reason":"busy"' in client.get(f"/sse/stream?channel={ROOM}").data
    answer = client.get(f"/sse/poll?channel={ROOM}")
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "identify")
    assert "no database" in caplog.text
    assert present(app, sse) == (0, {})
    assert client.get("/sse/poll?channel=news&timeout=0").status_code == 200


def test_identify_may_abort(app: Flask, sse: SSE) -> None:
    sse.identify(lambda: abort(403))
    for path in ("stream", "poll"):
        assert app.test_client().get(f"/sse/{path}?channel={ROOM}").status_code == 403


async def coroutine() -> str:
    return "ann"


def generator() -> Iterator[str]:
    yield "ann"


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        ("ann", "'ann', which cannot be called"),
        (coroutine, "coroutine is async"),
        (generator, "generator has a yield"),
        (lambda channel: "ann", "is called with no argument"),
    ],
)
def test_a_function_that_can_name_nobody_is_refused(sse: SSE, function: Any, fault: str) -> None:
    with pytest.raises(TypeError, match=f"@sse.identify.*{fault}"):
        sse.identify(function)


# Whom the app is told of


def test_the_app_is_told_who_has_joined_and_left(
    app: Flask, sse: SSE, stream: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("memory_presence", "redis_presence"):
        monkeypatch.setattr(f"sse.stores.{module}.ABSENCE_SECONDS", 1.0)
    monkeypatch.setattr("sse.stores.redis_presence._TIMES", (20_000, 1000, 120, 250))
    monkeypatch.setattr("sse.work.presence.RENEW_SECONDS", 0.5)
    told: list[Any] = []

    @sse.joined("room/<int:number>")
    def joined(number: int, sub: str) -> None:
        told.append(("joined", number, sub, current_app.name))

    @sse.left("room/<name>")
    def left(name: str, sub: str) -> None:
        told.append(("left", name, sub, current_app.name))

    @sse.joined("room/<name>")
    def joined_another(name: str, sub: str) -> None:
        told.append(("joined", name, sub, current_app.name))

    first = stream(f"&token={ticket(app, sse, 'ann')}")
    stream(f"&token={ticket(app, sse, 'ann')}")
    stream()
    wait_until(lambda: told == [("joined", 7, "ann", "tests")])
    first.close()
    stream.open[1].close()
    wait_until(lambda: told[1:] == [("left", "7", "ann", "tests")])
    stream(channel="room/lobby", Authorization=f"Bearer {token_of(sub='bob')}")
    wait_until(lambda: told[2:] == [("joined", "lobby", "bob", "tests")])


def test_an_app_without_such_functions_has_no_thread_for_them(app: Flask, sse: SSE, stream: Streams) -> None:
    stream(Authorization=f"Bearer {token_of(sub='bob')}")
    assert present(app, sse) == (1, {"bob": 1})
    names = {thread.name for thread in threading.enumerate()}
    assert "sse-presence" in names
    assert "sse-presence-hooks" not in names


def test_no_thread_begins_before_the_first_connection(app: Flask, sse: SSE) -> None:
    app.test_client().get("/sse/poll?channel=news&timeout=1")
    assert present(app, sse) == (0, {})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sse-presence")]


@pytest.mark.parametrize(
    ("rule", "function", "error", "fault"),
    [
        ("room/<sub>", lambda sub: None, ValueError, "has a variable sub"),
        ("/room", lambda sub: None, ValueError, "no valid channel"),
        (7, lambda sub: None, ValueError, "give a string"),
        ("room/<id>", lambda sub: None, TypeError, "is called with id, sub"),
        ("room/<id>", coroutine, TypeError, "is async"),
        ("room/<id>", generator, TypeError, "has a yield"),
        ("room/<id>", 7, TypeError, "cannot be called"),
    ],
)
def test_a_rule_or_function_that_could_never_work_is_refused(
    sse: SSE, rule: Any, function: Any, error: type[Exception], fault: str
) -> None:
    for decorate in (sse.joined, sse.left):
        with pytest.raises(error, match=fault):
            decorate(rule)(function)


def test_a_decorator_without_its_rule_is_refused(sse: SSE) -> None:
    """Else the function would be replaced by a decorator, and never called."""
    for decorator in (sse.joined, sse.left, sse.source):
        decorate: Any = decorator
        with pytest.raises(ValueError, match="give a string such as"):

            @decorate
            def tell(sub: str) -> None: ...


def test_equal_rules_are_refused(sse: SSE) -> None:
    sse.joined("room/<id>")(lambda id, sub: None)
    sse.left("room/<id>")(lambda id, sub: None)
    with pytest.raises(ValueError, match="matches the same channels"):
        sse.joined("room/<name>")(lambda name, sub: None)


# The route


def ask(app: Flask, credential: str = KEY, channel: str = ROOM) -> Any:
    return app.test_client().get(f"/sse/presence/{channel}", headers={"Authorization": f"Bearer {credential}"})


def test_a_key_that_may_publish_there_is_told_who_listens(app: Flask, sse: SSE, stream: Streams) -> None:
    for sub in ("bob", "ann", "ann"):
        stream(f"&token={ticket(app, sse, sub)}")
    stream()
    answer = ask(app)
    members = [{"sub": "ann", "connections": 2}, {"sub": "bob", "connections": 1}]
    assert (answer.status_code, answer.json) == (200, {"count": 4, "members": members, "more": False})
    assert answer.headers["Cache-Control"] == "private, no-store"
    head = app.test_client().head(f"/sse/presence/{ROOM}", headers={"Authorization": f"Bearer {KEY}"})
    assert (head.status_code, head.data) == (200, b"")


@pytest.mark.parametrize(
    ("presence", "status"), [(["*"], 200), (["room/*"], 200), ([ROOM], 200), (["room/8", "news"], 403), (None, 403)]
)
def test_a_token_needs_the_channel_in_its_claim_presence(app: Flask, presence: list[str] | None, status: int) -> None:
    rights = {} if presence is None else {"presence": presence}
    answer = ask(app, token_of(sub="ann", subscribe=["*"], publish=["*"], **rights))
    assert answer.status_code == status
    if status == 403:
        assert answer.json["error"]["channels"] == [ROOM]
        assert "claim presence" in answer.json["error"]["hint"]


def test_others_are_refused(app: Flask, sse: SSE) -> None:
    assert app.test_client().get(f"/sse/presence/{ROOM}").status_code == 401
    assert ask(app, "not-a-key-of-22-characters").status_code == 401
    assert ask(app, ticket(app, sse, "ann")).status_code == 401
    token = token_of(sub="ann", presence=["*"], jti="one")
    assert app.test_client().get(f"/sse/presence/{ROOM}?token={token}").status_code == 401
    assert ask(app, token_of(sub="ann", presence="room/*")).json["error"]["code"] == "token_claims"
    assert ask(app, token).status_code == 200
    with app.app_context():
        sse.revoke(channel=ROOM)
    assert ask(app, token).json["error"]["code"] == "token_revoked"


def test_what_is_not_there(app: Flask, make_app: MakeApp) -> None:
    assert ask(app, channel="not+a+channel").status_code == 400
    answer = ask(app, channel="news")
    assert (answer.status_code, answer.json["error"]["code"]) == (404, "no_presence")
    assert ask(app, "not-a-key-of-22-characters", "news").status_code == 401
    answer = app.test_client().post(f"/sse/presence/{ROOM}")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    without = make_app(SSE_PUBLISH_KEYS=KEY)
    assert ask(without).status_code == 404
    assert ask(make_app(SSE_PRESENCE="room/*")).status_code == 404


def test_the_answer_names_the_first_thousand(make_app: MakeApp, sse: SSE) -> None:
    app = make_app(sse, SSE_PRESENCE="room/*", SSE_PUBLISH_KEYS=KEY)
    presence = app.extensions["sse"].presence
    for number in range(1500):
        presence.enter([ROOM], f"user-{number:04}")
    answer = ask(app).json
    assert (answer["count"], len(answer["members"]), answer["more"]) == (1500, 1000, True)
    assert answer["members"][-1] == {"sub": "user-0999", "connections": 1}
    assert len(ask(app).data) < 60_000
    with app.app_context():
        assert len(sse.members(ROOM)) == 1500


def test_asking_counts_against_the_limit_of_an_address(make_app: MakeApp) -> None:
    app = make_app(SSE_PRESENCE="room/*", SSE_PUBLISH_KEYS=KEY, SSE_LIMIT_SUBSCRIBE="3/minute", SSE_PROXIES=1)
    client = app.test_client()
    headers = {"Authorization": f"Bearer {KEY}", "X-Forwarded-For": "192.0.2.7"}
    found = [client.get(f"/sse/presence/{ROOM}", headers=headers).status_code for _ in range(5)]
    assert found == [200, 200, 200, 429, 429]


def test_several_processes_with_the_memory_store_are_refused(make_app: MakeApp, sse: SSE) -> None:
    app = make_app(sse, SSE_PRESENCE="room/*", SSE_PUBLISH_KEYS=KEY)
    answer = app.test_client().get(
        f"/sse/presence/{ROOM}",
        headers={"Authorization": f"Bearer {KEY}"},
        environ_overrides={"wsgi.multiprocess": True},
    )
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "memory_store")


def test_a_store_that_is_away_is_a_503(make_app: MakeApp, sse: SSE, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(
        sse, SSE_PRESENCE="*", SSE_PUBLISH_KEYS=KEY, SSE_REDIS_URL="redis://127.0.0.1:1", SSE_REDIS_TIMEOUT=1
    )
    answer = ask(app)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert "127.0.0.1" not in answer.text
    assert [record for record in caplog.records if record.levelno == logging.WARNING]


def test_close_ends_presence_and_its_threads(app: Flask, sse: SSE, stream: Streams) -> None:
    stream()
    assert present(app, sse) == (1, {})
    sse.close()
    assert present(app, sse) == (0, {})
    stream.open[0].close()
    stream()
    assert present(app, sse) == (1, {})
