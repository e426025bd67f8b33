"""Reading and publishing are refused until a setting, a rule or a credential allows them."""

from __future__ import annotations

import contextlib
import gc
import logging
import operator
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Response, abort, redirect, request, session
from werkzeug.local import LocalProxy
from werkzeug.test import TestResponse, create_environ, run_wsgi_app

from sse import SSE, InvalidEvent
from sse.access.decision import Access, Credentials, cookie_counts
from sse.access.keys import PublishKeys
from sse.access.revocations import Revocations
from sse.access.token import Tokens
from sse.config import Config
from sse.errors import Forbidden, NotFound, Unauthorized
from sse.event import Event
from sse.stores import MemoryStore, Publication
from sse.transports.poll import Poll
from tests.conftest import MakeApp
from tests.publishing import post
from tests.servers import wait_until
from tests.tokens import CREDENTIALS, SECRET, claims, jwk_set, signed

KEYS = ("k" * 22, "another-key-of-length-28-abc")


def poll(make_app: MakeApp, channels: str, sse: SSE | None = None, **config: object) -> TestResponse:
    client = make_app(sse, **config).test_client()
    query = "&".join(f"channel={channel}" for channel in channels.split())
    return client.get(f"/sse/poll?timeout=0&{query}")


def head(make_app: MakeApp, channels: str, sse: SSE | None = None, **config: object) -> TestResponse:
    client = make_app(sse, **config).test_client()
    return client.head("/sse/stream?" + "&".join(f"channel={channel}" for channel in channels.split()))


def test_nothing_can_be_read_until_it_is_opened(make_app: MakeApp) -> None:
    answer = poll(make_app, "a b", SSE_PUBLIC="")
    assert answer.status_code == 403
    assert answer.json == {
        "error": {
            "code": "forbidden",
            "message": "not allowed to read: a, b",
            "hint": "SSE_PUBLIC or @sse.authorize has to allow them, and none does",
            "channels": ["a", "b"],
        }
    }
    assert head(make_app, "a b", SSE_PUBLIC="").status_code == 403


def test_public_patterns_open_what_they_match_and_the_refusal_names_the_rest(make_app: MakeApp) -> None:
    public = "news/* status"
    assert poll(make_app, "news/a news/b/c status", SSE_PUBLIC=public).status_code == 200
    answer = poll(make_app, "news news/a statuses private", SSE_PUBLIC=public)
    assert answer.status_code == 403
    assert answer.get_json()["error"]["channels"] == ["news", "statuses", "private"]


def test_a_refusal_never_says_what_exists(make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLIC="open", SSE_PUBLISH_KEYS=KEYS)
    client = app.test_client()
    client.post("/sse/publish/secret", data="x", headers={"Authorization": f"Bearer {KEYS[0]}"})
    known = client.get("/sse/poll?timeout=0&channel=secret").text
    assert client.get("/sse/poll?timeout=0&channel=xsecre").text == known.replace("secret", "xsecre")


def test_a_refused_channel_is_never_created(make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLIC="")
    assert app.test_client().get("/sse/poll?channel=a").status_code == 403
    assert app.test_client().get("/sse/stream?channel=a").status_code == 403
    assert app.extensions["sse"].store.newest(["a"]) == [None]


def test_the_app_s_own_rule_is_asked_for_what_is_not_public(make_app: MakeApp) -> None:
    sse, asked = SSE(), list[str]()

    @sse.authorize
    def rule(channel: str) -> bool:
        asked.append(channel)
        return channel == f"user/{request.headers.get('X-User')}"

    client = make_app(sse, SSE_PUBLIC="open/*").test_client()
    me = {"X-User": "me"}
    assert client.get("/sse/poll?timeout=0&channel=open/a&channel=user/me", headers=me).status_code == 200
    assert asked == ["user/me"]
    answer = client.get("/sse/poll?timeout=0&channel=user/me&channel=user/you", headers=me)
    assert answer.status_code == 403
    assert answer.get_json()["error"]["channels"] == ["user/you"]
    assert "@sse.authorize" in answer.get_json()["error"]["hint"]
    assert client.head("/sse/stream?channel=user/me", headers=me).status_code == 200
    assert client.get("/sse/stream?channel=user/me").status_code == 403


async def an_async_answer() -> bool:
    return True


def a_generator() -> Iterator[bool]:
    yield True


class User:
    """A user as Flask-Login's current_user."""

    is_authenticated = True


ANSWERS: dict[str, tuple[Callable[[], object], str]] = {
    # The result of a rule, by its name, and the type that the log names, if it names one.
    "None": (lambda: None, ""),
    "False": (lambda: False, ""),
    "zero": (lambda: 0, "int"),
    "one": (lambda: 1, "int"),
    "nothing": (lambda: "", "str"),
    "a text": (lambda: "no", "str"),
    "a redirection": (lambda: redirect("/login"), "flask.wrappers.Response"),
    "a response": (lambda: Response("no", 403), "flask.wrappers.Response"),
    "a body and a status": (lambda: ("no", 403), "tuple"),
    "json and a status": (lambda: ({"error": "log in"}, 401), "tuple"),
    "a user": (User, "tests.test_access_decision.User"),
    "a proxy": (lambda: LocalProxy(User), "werkzeug.local.LocalProxy"),
    "a proxy of True": (lambda: LocalProxy(lambda: True), "werkzeug.local.LocalProxy"),
    "a coroutine": (an_async_answer, "coroutine"),
    "a generator": (a_generator, "generator"),
    "an error": (lambda: Forbidden("no"), "sse.errors.Forbidden"),
    "a class": (lambda: User, "type"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_only_true_opens_a_channel_whatever_is_asked(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    answer, told = ANSWERS[name]
    sse = SSE()

    @sse.authorize
    def may_read(channel: str) -> bool:
        return answer()  # type: ignore[return-value]

    app = make_app(sse, SSE_PUBLIC="", SSE_SECRET=SECRET)
    app.extensions["sse"].publish([Publication("secret", Event("secret news"))])
    client = app.test_client()
    headers = {"Authorization": f"Bearer {signed(claims())}"}
    for method, path in (
        ("GET", "stream?"),
        ("HEAD", "stream?"),
        ("GET", "stream?replay=1&"),
        ("GET", "poll?timeout=0&"),
        ("GET", "poll?timeout=0&replay=1&"),
        ("GET", "poll?timeout=0&last_event_id=secret%3D1-1&"),
        ("POST", "ticket?"),
    ):
        with client.open(f"/sse/{path}channel=secret", method=method, headers=headers) as refused:
            assert refused.status_code == 403
            assert method == "HEAD" or refused.get_json()["error"]["channels"] == ["secret"]
            assert "news" not in refused.text
    with client.get("/sse/poll?timeout=0&channel=secret") as refused:
        assert (refused.status_code, refused.get_json()["error"]["code"]) == (401, "unauthorized")
    gc.collect()  # a coroutine that was left alone would be told of here, and warnings are errors
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == bool(told), "it is told once"
    for error in errors:
        rule = "tests.test_access_decision.test_only_true_opens_a_channel_whatever_is_asked.<locals>.may_read"
        assert error.startswith(f"@sse.authorize: the rule {rule} returned {told}, ")
        assert "return True to open" in error


def test_the_log_tells_of_each_rule_and_type_once(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    sse, answers = SSE(), iter([1, 1, "yes", 1, "yes", *(type(f"T{number}", (), {})() for number in range(200))])
    sse.authorize(lambda channel: next(answers))  # type: ignore[arg-type,return-value]
    client = make_app(sse, SSE_PUBLIC="").test_client()
    for told in (1, 1, 2, 2, 2):
        assert client.head("/sse/stream?channel=a").status_code == 403
        assert [record.levelname for record in caplog.records] == ["ERROR"] * told
    for _ in range(200):
        assert client.head("/sse/stream?channel=a").status_code == 403
    assert len(caplog.records) == 100, "what is told of is bounded"


class AsyncRule:
    async def __call__(self, channel: str) -> bool:
        return True

    async def may_read(self, channel: str) -> bool:
        return True


class GeneratorRule:
    def __call__(self, channel: str) -> Iterator[bool]:
        yield True


async def async_rule(channel: str) -> bool:
    return True


async def async_generator_rule(channel: str) -> AsyncIterator[bool]:
    yield True


def generator_rule(channel: str) -> Iterator[bool]:
    yield True


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (async_rule, "the rule tests.test_access_decision.async_rule is async"),
        (async_generator_rule, "is async"),
        (AsyncRule(), "the rule tests.test_access_decision.AsyncRule is async"),
        (AsyncRule().may_read, "the rule tests.test_access_decision.AsyncRule.may_read is async"),
        (partial(async_rule), "the rule tests.test_access_decision.async_rule is async"),
        (partial(partial(AsyncRule())), "is async"),
        (generator_rule, "has a yield"),
        (partial(GeneratorRule()), "has a yield"),
        (True, "which is no function"),
    ],
    ids=range(9),
)
def test_a_rule_that_can_never_answer_true_is_refused_when_it_is_registered(rule: Any, fault: str) -> None:
    with pytest.raises(TypeError, match=fault):
        SSE().authorize(rule)


class Rule:
    def __call__(self, channel: str) -> bool:
        return channel == "a"

    def may_read(self, channel: str) -> bool:
        return channel == "a"


@pytest.mark.parametrize(
    "rule", [Rule(), Rule().may_read, partial(operator.eq, "a"), "a".__eq__], ids=["object", "method", "partial", "C"]
)
def test_a_rule_may_be_anything_that_can_be_called(make_app: MakeApp, rule: Callable[[str], bool]) -> None:
    sse = SSE()
    assert sse.authorize(rule) is rule
    assert poll(make_app, "a", sse, SSE_PUBLIC="").status_code == 200
    assert poll(make_app, "b", sse, SSE_PUBLIC="").status_code == 403


def test_what_cannot_be_closed_opens_nothing(make_app: MakeApp) -> None:
    class Stubborn(Coroutine[None, None, bool]):
        def send(self, value: None) -> None: ...
        def throw(self, *error: Any) -> None: ...
        def __await__(self) -> Any: ...
        def close(self) -> None:
            raise RuntimeError("not now")

    sse = SSE()
    sse.authorize(lambda channel: Stubborn())  # type: ignore[arg-type,return-value]
    assert poll(make_app, "a", sse, SSE_PUBLIC="").status_code == 503


def test_a_login_s_streams_end_at_logout_and_its_polls_are_refused_then(make_app: MakeApp) -> None:
    sse = SSE()

    @sse.authorize
    def may_read(channel: str) -> bool:
        return "user" in session and channel == f"user/{session['user']}"

    app = make_app(sse, SSE_PUBLIC="", SECRET_KEY="a-key-of-the-tests")

    @app.post("/login/<user>")
    def login(user: str) -> str:
        session["user"] = user
        return "welcome"

    @app.post("/logout")
    def logout() -> str:
        sse.revoke(channel=f"user/{session.pop('user')}")
        return "good-bye"

    ann, bob = app.test_client(), app.test_client()
    ann.post("/login/ann")
    bob.post("/login/bob")
    assert bob.head("/sse/stream?channel=user/ann").status_code == 403
    with ann.get("/sse/stream?channel=user/ann") as answer, bob.get("/sse/stream?channel=user/bob") as other:
        streams = iter(answer.response), iter(other.response)
        assert all(b"sse.open" in next(stream) for stream in streams)
        assert ann.post("/logout").text == "good-bye"
        assert b'"reason":"expired"' in next(streams[0])
        with app.app_context():
            sse.publish("user/bob", "still here")
        assert b"still here" in next(streams[1])
    assert ann.get("/sse/poll?channel=user/ann&timeout=0").status_code == 403


def test_a_rule_that_fails_opens_nothing_and_ends_no_eventsource(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    sse = SSE()

    @sse.authorize
    def rule(channel: str) -> bool:
        raise LookupError("the database is away")

    client = make_app(sse, SSE_PUBLIC="").test_client()
    with caplog.at_level(logging.ERROR, "sse"):
        answer = client.get("/sse/poll?channel=a")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert "database" not in answer.text
    assert "the database is away" in caplog.text
    answer = client.get("/sse/stream?channel=a")
    assert (answer.status_code, answer.mimetype) == (200, "text/event-stream")
    assert '{"reason":"busy",' in answer.text
    assert client.application.extensions["sse"].store.newest(["a"]) == [None]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_rule_may_answer_for_itself(make_app: MakeApp, status: int) -> None:
    sse = SSE()
    sse.authorize(lambda channel: abort(status, "log in first"))
    answer = poll(make_app, "a", sse, SSE_PUBLIC="")
    assert (answer.status_code, answer.get_json()["error"]["message"]) == (status, "log in first")
    assert head(make_app, "a", sse, SSE_PUBLIC="").status_code == status


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_rule_cannot_end_an_eventsource_by_a_passing_trouble(make_app: MakeApp, status: int) -> None:
    sse = SSE()
    sse.authorize(lambda channel: abort(status))
    client = make_app(sse, SSE_PUBLIC="").test_client()
    answer = client.get("/sse/stream?channel=a")
    assert (answer.status_code, answer.mimetype) == (200, "text/event-stream")
    assert '{"reason":"busy",' in answer.text
    answer = client.get("/sse/poll?channel=a")
    assert answer.status_code in (429, 503)
    assert answer.headers["Retry-After"]


def test_a_rule_may_answer_with_a_response_of_its_own(make_app: MakeApp) -> None:
    sse = SSE()
    sse.authorize(lambda channel: abort(Response("own", 402)))
    answer = poll(make_app, "a", sse, SSE_PUBLIC="")
    assert (answer.status_code, answer.text) == (402, "own")


def test_a_rule_may_raise_the_service_s_own_errors(make_app: MakeApp) -> None:
    sse = SSE()

    @sse.authorize
    def rule(channel: str) -> bool:
        raise InvalidEvent("no such thing", "try another")

    assert poll(make_app, "a", sse, SSE_PUBLIC="").status_code == 422


@pytest.mark.parametrize("path", ["stream", "poll"])
def test_a_token_is_for_the_app_s_rule_and_refused_where_there_is_none(make_app: MakeApp, path: str) -> None:
    sse = SSE()
    sse.authorize(lambda channel: request.args.get("token") == f"for-{channel}")
    for app, public, statuses in ((sse, "b", (200, 403)), (sse, "*", (200, 200)), (SSE(), "*", (400, 400))):
        client = make_app(app, SSE_PUBLIC=public).test_client()
        for token, status in zip(("for-a", "for-c"), statuses, strict=True):
            answer = client.head(f"/sse/{path}?channel=a&channel=b&token={token}")
            assert answer.status_code == status
    assert client.get(f"/sse/{path}?channel=a&token=").status_code == 400


def make_access(config: Config, revoked: str = "") -> Access:
    revocations = Revocations(MemoryStore(ring=1, ring_ttl=60), 60)
    revocations.close()  # no thread
    if revoked:
        revocations.revoke("channel", revoked)
    return Access(config, Tokens(config), PublishKeys(config), lambda: revocations)


def test_a_revoked_channel_that_is_read_otherwise_ends_no_reader_with_a_token() -> None:
    token = Credentials(f"Bearer {signed(claims())}")
    access = make_access(Config(public=("open",), secret=(SECRET,)), revoked="open")
    by_rule = make_access(Config(secret=(SECRET,)), revoked="ruled")
    for permit in (
        access.read(["a", "open"], token),
        by_rule.read(["a", "ruled"], token, lambda name: name == "ruled"),
    ):
        assert permit
        permit.begin(lambda: None)
        assert not permit.is_over
        permit.end()
    refusing = make_access(Config(secret=(SECRET,)), revoked="a")
    with pytest.raises(Unauthorized, match="revoked") as refusal:
        refusing.read(["a"], token)
    assert refusal.value.headers["Retry-After"] == "11"
    with pytest.raises(Forbidden):
        refusing.read(["a", "b"], token)


@pytest.mark.parametrize("text", [signed(claims(exp=1, iat=0)), signed(claims(), "x" * 40), "a.b.c"])
@pytest.mark.parametrize("channel", ["open", "closed"])
def test_a_cookie_that_is_passed_over_leaves_nothing_behind(text: str, channel: str) -> None:
    access = make_access(Config(public=("open",), secret=(SECRET,)))
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(Unauthorized):
            access.read([channel], Credentials(cookie=text))
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize(("host", "status"), [("push.example", 200), ("xn--bcher-kva.example", 200), ("xn--zzzz", 401)])
def test_a_cookie_counts_for_the_service_s_own_origin_as_it_is_written(
    make_app: MakeApp, host: str, status: int
) -> None:
    app = make_app(SSE_PUBLIC="", SSE_SECRET=SECRET)
    page = host if status == 200 else "push.example"
    headers = {"Host": host, "Origin": f"http://{page}", "Cookie": f"sse_token={signed(claims())}"}
    environ = create_environ("/sse/poll?channel=a&timeout=0", headers=headers)
    answer = run_wsgi_app(app.wsgi_app, environ)  # Flask's client looks into the name itself
    assert answer[1].startswith(f"{status} ")


@pytest.mark.parametrize("timeout", [0, 5])
def test_a_poll_that_is_revoked_while_it_is_opened_is_told_nothing(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, timeout: int
) -> None:
    app = make_app(SSE_PUBLIC="", SSE_SECRET=SECRET)
    service = app.extensions["sse"]
    service.publish([Publication("a", Event("secret news"))])
    open_it = Poll.open

    def revoked_meanwhile(self: Poll) -> bytes | None:
        service.revocations.revoke("sub", "ann")
        return open_it(self)

    headers = {"Authorization": f"Bearer {signed(claims())}"}
    query = f"/sse/poll?channel=a&replay=1&timeout={timeout}"
    assert "secret news" in app.test_client().get(query, headers=headers).text
    monkeypatch.setattr(Poll, "open", revoked_meanwhile)
    answer = app.test_client().get(query, headers=headers)
    assert (answer.status_code, "secret news" in answer.text) == (503, False)
    assert app.test_client().get(query, headers=headers).get_json()["error"]["code"] == "token_revoked"


def test_reading_by_the_function_itself() -> None:
    access = make_access(Config(public=("a/*",)))
    assert access.read(["a/b"], Credentials()) is None
    assert access.read(["a/b", "c"], Credentials(), lambda channel: True)
    with pytest.raises(Forbidden) as refusal:
        access.read(["a/b", "c", "d"], Credentials(), lambda channel: channel == "c")
    assert refusal.value.channels == ("d",)


@pytest.mark.parametrize(
    ("origin", "site", "counts"),
    [
        (None, None, True),
        (None, "same-origin", True),
        (None, "same-site", True),
        (None, "none", True),
        (None, "cross-site", False),
        ("https://push.example", None, True),
        ("https://push.example", "same-origin", True),
        ("http://push.example", None, False),
        ("https://push.example:8443", None, False),
        ("https://a.example", None, True),
        ("https://a.example", "cross-site", True),
        ("https://a.example.evil.net", "cross-site", False),
        ("https://evil.net", None, False),
        ("https://evil.net", "cross-site", False),
        ("https://www.push.example", "same-site", True),
        ("null", None, False),
        ("null", "cross-site", False),
        ("null", "same-origin", False),
        ("", None, False),
        ("*", "cross-site", False),
    ],
)
def test_a_cookie_counts_for_this_site_and_for_listed_origins(
    origin: str | None, site: str | None, counts: bool
) -> None:
    assert cookie_counts(origin, site, "https://push.example", ["https://a.example"]) is counts


@pytest.mark.parametrize("origin", ["https://a.example", "null"])
def test_where_any_page_may_read_no_cookie_of_another_site_counts(origin: str) -> None:
    assert not cookie_counts(origin, "cross-site", "https://push.example", ["*"])
    assert not cookie_counts(origin, None, "https://push.example", ["*"])


def test_without_a_publishing_key_there_is_no_publishing() -> None:
    for header in (None, "Bearer ", f"Bearer {KEYS[0]}"):
        with pytest.raises(NotFound):
            make_access(Config()).publisher(header or "")


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER  {} "])
def test_each_key_publishes_under_a_scope_of_its_own(form: str) -> None:
    access = make_access(Config(publish_keys=KEYS))
    scopes = [access.publisher(form.format(key)).scope for key in KEYS]
    assert len(set(scopes)) == 2
    assert scopes == [access.publisher(form.format(key)).scope for key in KEYS]
    assert not any(key in scope for key in KEYS for scope in scopes)


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "Bearer", "Bearer ", KEYS[0], f"Basic {KEYS[0]}", f"Bearer{KEYS[0]}", f"Bearer {KEYS[0]}x"),
        *(
            f"Bearer {KEYS[0][:-1]}",
            f"Bearer {KEYS[0].upper()}",
            f"Bearer {','.join(KEYS)}",
            "Bearer \xff\xfe",
            "Bearer ä",
        ),
    ],
)
def test_whoever_has_no_key_is_told_to_bring_one(header: str | None) -> None:
    with pytest.raises(Unauthorized) as refusal:
        make_access(Config(publish_keys=KEYS)).publisher(header or "")
    assert "Authorization: Bearer KEY" in refusal.value.hint
    assert KEYS[0] not in str(refusal.value)


def test_a_named_key_publishes_on_its_channels_only(make_app: MakeApp, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"billing {KEYS[0]} invoices/* orders\n")
    app = make_app(SSE_PUBLISH_KEYS_FILE=str(tmp_path / "keys"))
    client = app.test_client()
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    assert client.post("/sse/publish/orders", data="x", headers=headers).status_code == 201
    events = [{"channel": ["invoices/1", "orders"], "data": 1}, {"channel": ["news", "invoices"], "data": 2}]
    answer = client.post("/sse/publish", json=events, headers=headers)
    assert (answer.status_code, answer.get_json()["error"]["channels"]) == (403, ["news", "invoices"])
    assert app.extensions["sse"].store.newest(["invoices/1", "news"]) == [None, None], "nothing of it is stored"


def test_a_key_is_rotated_without_a_restart_and_its_repeats_are_known_after_that(
    make_app: MakeApp, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"billing {KEYS[0]} *\n")
    client = make_app(SSE_PUBLISH_KEYS_FILE=str(file)).test_client()

    def publish(key: str) -> tuple[int, str]:
        answer = post(client, "x", "/sse/publish/a", key, content_type=None, headers={"Idempotency-Key": "once"})
        return answer.status_code, answer.text

    first = publish(KEYS[0])
    assert (first[0], publish(KEYS[1])[0]) == (201, 401)
    file.write_text(f"billing {KEYS[0]} *\nbilling {KEYS[1]} *\n")
    wait_until(lambda: publish(KEYS[1])[0] == 201, 3)
    assert publish(KEYS[0]) == publish(KEYS[1]) == first
    file.write_text(f"billing {KEYS[1]} *\n")
    wait_until(lambda: publish(KEYS[0])[0] == 401, 3)
    assert publish(KEYS[1]) == first


def test_nothing_is_published_by_cookie_or_query(make_app: MakeApp) -> None:
    client = make_app(SSE_PUBLISH_KEYS=KEYS, SSE_SECRET=SECRET, SSE_QUERY_TOKENS="1").test_client()
    token = signed(claims())
    client.set_cookie("sse_token", token)
    assert client.post(f"/sse/publish/a?token={token}", data="x").status_code == 401
    assert client.post(f"/sse/publish/a?token={KEYS[0]}", data="x").status_code == 401
    assert client.get(f"/sse/poll?channel=a&timeout=0&token={token}").status_code == 200


@pytest.mark.parametrize(
    ("name", "usually", "where_set"),
    [
        ("nothing", "unauthorized", "unauthorized"),
        ("token", "token_in_query", ""),
        ("token by ES256", "token_in_query", ""),
        ("token for publishing only", "token_in_query", "forbidden"),
        ("token for other channels", "token_in_query", "forbidden"),
        ("ticket", "", ""),
        ("ticket for another channel", "forbidden", "forbidden"),
        ("ticket after its time", "token_expired", "token_expired"),
        ("expired", "token_expired", "token_expired"),
        ("wrong audience", "token_audience", "token_audience"),
        ("wrong key", "token_invalid", "token_invalid"),
        ("alg none", "token_invalid", "token_invalid"),
        ("key confusion: PEM", "token_invalid", "token_invalid"),
        ("revoked token", "token_revoked", "token_revoked"),
    ],
)
def test_whole_tokens_are_taken_in_queries_only_where_that_is_set_and_for_reading(
    make_app: MakeApp, tmp_path: Path, name: str, usually: str, where_set: str
) -> None:
    (tmp_path / "jwks").write_text(jwk_set())
    for setting, expected in (("0", usually), ("1", where_set)):
        settings = {"SSE_PUBLIC": "", "SSE_SECRET": SECRET, "SSE_JWKS": str(tmp_path / "jwks")}
        app = make_app(**settings, SSE_QUERY_TOKENS=setting)
        app.extensions["sse"].revocations.revoke("token", "revoked")
        client, token = app.test_client(), CREDENTIALS[name]()
        for way in ("stream?", "stream?replay=1&", "poll?timeout=0&", "poll?timeout=0&last_event_id=a%3D0-0&"):
            with client.get(f"/sse/{way}channel=a&token={token}") as answer:
                assert (answer.status_code == 200) == (not expected)
                assert not expected or answer.get_json()["error"]["code"] == expected
        answer = client.post(f"/sse/publish/p?token={token}", data="x")
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (401, "unauthorized")


def test_a_token_and_the_app_s_rule_open_what_either_allows(make_app: MakeApp) -> None:
    sse = SSE()
    sse.authorize(lambda channel: channel == "ruled")
    client = make_app(sse, SSE_PUBLIC="open", SSE_SECRET=SECRET).test_client()
    headers = {"Authorization": f"Bearer {signed(claims())}"}
    query = "/sse/poll?timeout=0&channel=open&channel=ruled"
    assert client.get(query).status_code == 200
    assert client.get(f"{query}&channel=a").status_code == 401
    assert client.get(f"{query}&channel=a", headers=headers).status_code == 200
    answer = client.get(f"{query}&channel=b", headers=headers)
    assert (answer.status_code, answer.get_json()["error"]["channels"]) == (403, ["b"])
