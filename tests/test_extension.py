"""SSE in an app: what it registers, publishing from code, and several apps in one process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

import sse as package
from sse import SSE, ConfigError, Event, IdempotencyConflict, InvalidEvent, SSEError, StoreUnavailable
from sse.errors import TooLarge, Unavailable
from sse.extension import get_service
from sse.service import Service
from tests.conftest import MakeApp
from tests.publishing import post
from tests.servers import RedisServer
from tests.subclasses import KINDS, numbers, strings
from tests.tokens import KEY, SECRET, claims, signed


def test_the_public_names() -> None:
    assert all(hasattr(package, name) for name in package.__all__)
    assert all(
        issubclass(error, SSEError) for error in (ConfigError, InvalidEvent, IdempotencyConflict, StoreUnavailable)
    )


def test_only_the_public_names_are_listed() -> None:
    assert package.Event is Event  # used, so it is a global by now
    assert dir(package) == sorted([*package.__all__, "__version__"])


def test_an_error_says_what_and_what_to_do() -> None:
    error = TooLarge("it is too large", "send less")
    assert (str(error), error.code, error.status) == ("it is too large: send less", "too_large", 413)
    assert str(SSEError("alone")) == "alone"


def test_nothing_is_registered_outside_the_prefix(make_app: MakeApp) -> None:
    before = {str(rule) for rule in Flask("tests").url_map.iter_rules()}
    app = make_app(SSE_PREFIX="/push/v1")
    routes = {str(rule) for rule in app.url_map.iter_rules()} - before
    assert routes
    assert all(f"{route}/".startswith("/push/v1/") for route in routes)
    assert app.test_client().get("/push/v1/poll?timeout=0&channel=a").status_code == 200
    assert app.test_client().get("/sse/poll?timeout=0&channel=a").status_code == 404


def test_an_app_may_come_at_once_or_later() -> None:
    now, later = Flask("now"), Flask("later")
    SSE(now)
    sse = SSE()
    sse.init_app(later)
    for app in (now, later):
        assert isinstance(app.extensions["sse"], Service)


def test_settings_come_from_the_environment_and_the_app_wins(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSE_RING", "7")
    monkeypatch.setenv("SSE_RETRY", "8")
    config = make_app(SSE_RING=9).extensions["sse"].config
    assert (config.ring, config.retry) == (9, 8)


def test_bad_settings_stop_the_start() -> None:
    app = Flask("tests")
    app.config["SSE_RNG"] = 5
    with pytest.raises(ConfigError, match="did you mean SSE_RING"):
        SSE(app)
    assert "sse" not in app.extensions


def test_another_program_s_settings_in_the_environment_stop_nothing_and_are_told_once_without_their_values(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SSE_KMS_KEY_ID", "hush")
    monkeypatch.setenv("SSE_ALGORITHM", "hush")
    with caplog.at_level(logging.WARNING, "sse"):
        poll(make_app())
        make_app()
    (message,) = caplog.messages
    assert message.startswith("SSE_ALGORITHM, SSE_KMS_KEY_ID in the environment: not settings of Throughline")
    monkeypatch.setenv("SSE_HARTBEAT", "5")
    with pytest.raises(ConfigError, match="did you mean SSE_HEARTBEAT") as refusal:
        make_app()
    assert "KMS" not in str(refusal.value)


class Late:
    SSE_PUBLIC = "*"
    SSE_SECRET = SECRET


def add(app: Flask) -> None:
    app.config["SSE_PUBLIC"] = "*"


def replace_all(app: Flask) -> None:
    app.config.update(SSE_PUBLIC="*", SSE_SECRET=SECRET, REDIS_URL="redis://:hush@127.0.0.1:1")


def from_the_environment(app: Flask) -> None:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("FLASK_SSE_PUBLIC", "*")
        environ.setenv("FLASK_SSE_HARTBEAT", "5")
        app.config.from_prefixed_env()


def from_an_object(app: Flask) -> None:
    app.config.from_object(Late)


def remove(app: Flask) -> None:
    del app.config["SSE_RETRY"]


def poll(app: Flask) -> None:
    app.test_client().get("/sse/poll?timeout=0&channel=news/a")


def be_refused(app: Flask) -> None:
    assert app.test_client().get("/sse/stream?channel=orders").status_code == 403


def publish_once(app: Flask) -> None:
    with app.app_context():
        SSE().publish("news/a", "x")


@pytest.mark.parametrize("use", [poll, be_refused, publish_once])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (add, ["SSE_PUBLIC"]),
        (replace_all, ["REDIS_URL", "SSE_PUBLIC", "SSE_SECRET"]),
        (from_the_environment, ["SSE_HARTBEAT (not a setting: did you mean SSE_HEARTBEAT?)", "SSE_PUBLIC"]),
        (from_an_object, ["SSE_PUBLIC", "SSE_SECRET"]),
        (remove, ["SSE_RETRY"]),
    ],
)
def test_settings_that_come_too_late_are_told_once_at_the_first_use(
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Flask], None],
    told: list[str],
    use: Callable[[Flask], None],
) -> None:
    app = make_app(SSE_PUBLIC="news/*", SSE_RETRY=9)
    change(app)
    with caplog.at_level(logging.WARNING, "sse"):
        use(app)
        use(app)
    (message,) = [message for message in caplog.messages if "app.config" in message]
    assert f"does not count for {', '.join(told)}: make these settings before SSE(app)" in message
    assert "init_app(app)" in message
    assert SECRET not in message and "hush" not in message


def test_settings_in_time_and_those_of_others_are_not_told(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSE_PUBLISH_KEYS", KEY)
    app = make_app(SSE_RETRY=9)
    monkeypatch.delenv("SSE_PUBLISH_KEYS")  # as an app may do with secrets that were read
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    with caplog.at_level(logging.WARNING, "sse"):
        poll(app)
    assert not caplog.messages


def test_making_an_app_starts_and_connects_nothing(make_app: MakeApp, tmp_path: Path) -> None:
    threads = threading.active_count()
    app = make_app(SSE_REDIS_URL=RedisServer(tmp_path).url)
    assert threading.active_count() == threads
    assert app.test_client().get("/sse/poll").status_code == 400


def test_publishing_gives_the_id_and_a_poll_finds_the_event(make_app: MakeApp, store_url: str | None) -> None:
    sse = SSE()
    app = make_app(sse, SSE_REDIS_URL=store_url)
    with app.app_context():
        ids = [
            sse.publish("a", {"n": 1}),
            sse.publish("a", "text", type="created"),
            sse.publish("a", b"\x89PNG"),
            sse.publish("a", None, "done"),
        ]
    answer = app.test_client().get("/sse/poll?channel=a&replay=10&timeout=0").get_json()
    assert answer["events"] == [
        {"channel": "a", "id": ids[0], "type": "message", "data": '{"n":1}'},
        {"channel": "a", "id": ids[1], "type": "created", "data": "text"},
        {"channel": "a", "id": ids[2], "type": "message", "data": "data:application/octet-stream;base64,iVBORw=="},
        {"channel": "a", "id": ids[3], "type": "done", "data": "null"},
    ]
    assert answer["last_event_id"] == ids[3]


def test_an_idempotency_key_stores_once_and_tells_a_conflict(make_app: MakeApp, store_url: str | None) -> None:
    sse = SSE()
    with make_app(sse, SSE_REDIS_URL=store_url).app_context():
        first = sse.publish("a", "x", idempotency_key="order:7")
        assert sse.publish("a", "x", idempotency_key="order:7") == first
        assert sse.publish("b", "x", idempotency_key="order:7") != first
        with pytest.raises(IdempotencyConflict, match="channel a"):
            sse.publish("a", "y", idempotency_key="order:7")
        assert sse.publish("a", "y") != sse.publish("a", "y")


@pytest.mark.parametrize("kind", KINDS)
def test_both_stores_take_subclasses_of_str_for_the_texts_that_they_hold(
    make_app: MakeApp, store_url: str | None, kind: str
) -> None:
    sse, as_given = SSE(), KINDS.index(kind)
    app = make_app(sse, SSE_REDIS_URL=store_url)
    channel, type, data, key = (strings(text)[as_given] for text in ("orders", "paid", "<a>\n&", "order:7"))
    with app.app_context():
        id = sse.publish(channel, data, type, idempotency_key=key)
        assert sse.publish("orders", "<a>\n&", "paid", idempotency_key="order:7") == id
    assert id.startswith("orders=1-")
    answer = app.test_client().get("/sse/poll?channel=orders&replay=9&timeout=0").get_json()
    assert answer["events"] == [{"channel": "orders", "id": id, "type": "paid", "data": "<a>\n&"}]
    with app.test_client().get("/sse/stream?channel=orders&replay=9") as stream:
        body = iter(stream.response)
        blocks = b""
        while b"<a>" not in blocks:
            blocks += next(body)
    assert b"event: paid\ndata: <a>\ndata: &\n\n" in blocks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("revoked", [("sub", "ann"), ("channel", "a"), ("token", "id")])
def test_what_is_revoked_is_the_text_that_a_subclass_of_str_holds(
    make_app: MakeApp, store_url: str | None, revoked: tuple[str, str], kind: str
) -> None:
    sse, (name, text) = SSE(), revoked
    app = make_app(sse, SSE_PUBLIC="", SSE_SECRET=SECRET, SSE_REDIS_URL=store_url)
    headers = {"Authorization": f"Bearer {signed(claims(jti='id'))}"}
    with app.app_context():
        sse.revoke(**{name: strings(text)[KINDS.index(kind)]})
    assert app.test_client().get("/sse/poll?timeout=0&channel=a", headers=headers).status_code in (401, 403)


@pytest.mark.parametrize("kind", KINDS)
def test_a_ticket_is_for_the_texts_and_numbers_that_subclasses_hold(make_app: MakeApp, kind: str) -> None:
    sse, as_given = SSE(), KINDS.index(kind)
    app = make_app(sse, SSE_PUBLIC="", SSE_SECRET=SECRET)
    with app.app_context():
        for lifetime in numbers(600):
            ticket = sse.ticket([strings("a")[as_given]], strings("ann")[as_given], lifetime=lifetime)
            grant = get_service().tokens.verify(ticket)
            assert (grant.sub, grant.subscribe) == ("ann", ("a",))
            assert 599 < grant.ends_at - time.time() <= 600
        with pytest.raises(InvalidEvent, match="lifetime is nan"):
            sse.ticket(["a"], lifetime=float("nan"))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_both_stores_take_subclasses_in_the_settings_for_what_they_hold(
    make_app: MakeApp, store_url: str | None, kind: str
) -> None:
    def text(held: str) -> Any:
        return strings(held)[KINDS.index(kind)]

    def number(held: int) -> Any:
        return numbers(held)[KINDS.index(kind) % 3]

    sse = SSE()
    app = make_app(
        sse,
        SSE_REDIS_URL=store_url and text(store_url),
        SSE_PUBLIC=[text("news/*"), text("a")],
        SSE_NAMESPACE=text("mine"),
        SSE_PREFIX=text("/push"),
        SSE_PUBLISH_KEYS=[text(KEY)],
        SSE_RING=number(2),
        SSE_RING_TTL=number(600),
        SSE_RETRY=number(1234),
    )
    with app.app_context():
        ids = [sse.publish("news/today", text) for text in "123"]
        if store_url:
            store = get_service().store
            assert store.announcements("a").startswith("mine:")  # type: ignore[attr-defined]
    client = app.test_client()
    answer = client.get("/push/poll?channel=news/today&replay=9&timeout=0").get_json()
    assert [event["id"] for event in answer["events"]] == ids[1:]
    with client.get("/push/stream?channel=a") as stream:
        assert next(iter(stream.response)).startswith(b"retry: 1234\n")
    headers = {"Authorization": f"Bearer {KEY}"}
    assert client.post("/push/publish/a", data="x", headers=headers).status_code == 201


@pytest.mark.parametrize("key", ["", "\ud800", "ä", "order 7", "a\n", "k" * 129])
def test_a_key_that_is_none_is_refused(make_app: MakeApp, store_url: str | None, key: str) -> None:
    sse = SSE()
    app = make_app(sse, SSE_REDIS_URL=store_url)
    with app.app_context(), pytest.raises(InvalidEvent, match="idempotency key") as refusal:
        sse.publish("a", "x", idempotency_key=key)
    assert refusal.value.code == "invalid_idempotency_key"
    assert app.extensions["sse"].store.newest(["a"]) == [None]


def test_a_server_of_several_processes_over_the_memory_store_is_refused_in_code_too(
    make_app: MakeApp, store_url: str | None
) -> None:
    sse = SSE()
    app = make_app(sse, SSE_REDIS_URL=store_url)
    for several in (False, True):
        with app.test_request_context(multiprocess=several):
            if several and store_url is None:
                with pytest.raises(Unavailable, match="several: set SSE_REDIS_URL") as refusal:
                    sse.publish("a", "x")
                assert refusal.value.code == "memory_store"
            else:
                sse.publish("a", "x")
    assert app.extensions["sse"].store.newest(["a"])[0].offset == (2 if store_url else 1)


def test_a_conflict_at_one_place_of_a_batch_over_http_stores_nothing(make_app: MakeApp, store_url: str | None) -> None:
    app = make_app(SSE_REDIS_URL=store_url, SSE_PUBLISH_KEYS=KEY)
    client = app.test_client()

    def publish_batch(*data: str) -> tuple[int, list[str]]:
        events = [{"channel": channel, "data": text} for channel, text in zip("abc", data, strict=False)]
        answer = post(client, events, headers={"Idempotency-Key": "batch"})
        stored = client.get("/sse/poll?channel=a&channel=b&channel=c&replay=9&timeout=0").get_json()["events"]
        return answer.status_code, sorted(event["data"] for event in stored)

    assert publish_batch("1", "2") == (201, ["1", "2"])
    assert publish_batch("1", "other", "3") == (422, ["1", "2"])
    assert publish_batch("1", "2", "3") == (201, ["1", "2", "3"])


def test_what_can_never_be_published_is_refused_in_code_too(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse, SSE_MAX_EVENT_BYTES=10)
    with app.app_context():
        for channel, data, type in (("a b", "x", "t"), ("a", "x", "open"), ("a", "\ud800", "t"), ("a", {1, 2}, "t")):
            with pytest.raises(InvalidEvent):
                sse.publish(channel, data, type)
        with pytest.raises(TooLarge, match="12 bytes, SSE_MAX_EVENT_BYTES is 10"):
            sse.publish("a", "äääääa\n")
        sse.publish("b", "ääääää"[:5])
        sse.publish("b", "x" * 8 + "\r\n\r\n")  # ten bytes once the line ends are LF
    assert app.extensions["sse"].store.newest(["a"]) == [None]


def test_a_store_that_is_away_is_told_and_mended_by_itself(make_app: MakeApp, tmp_path: Path) -> None:
    server, sse = RedisServer(tmp_path), SSE()
    with make_app(sse, SSE_REDIS_URL=server.url).app_context():
        with pytest.raises(StoreUnavailable):
            sse.publish("a", "x")
        with server:
            assert sse.publish("a", "x").startswith("a=1-")


def test_two_apps_in_one_process_share_nothing(make_app: MakeApp) -> None:
    sse = SSE()
    one, two = make_app(sse), make_app(sse, SSE_PREFIX="/push", SSE_RING=2)
    with one.app_context():
        sse.publish("a", "one")
    with two.app_context():
        sse.publish("a", "two")
    for app, path, text in ((one, "/sse", "one"), (two, "/push", "two")):
        events = app.test_client().get(f"{path}/poll?channel=a&replay=9&timeout=0").get_json()["events"]
        assert [event["data"] for event in events] == [text]


def test_two_apps_over_one_redis_share_everything(make_app: MakeApp, redis_url: str) -> None:
    sse = SSE()
    one, two = make_app(sse, SSE_REDIS_URL=redis_url), make_app(sse, SSE_REDIS_URL=redis_url)
    with one.app_context():
        published = sse.publish("a", "x")
    answer = two.test_client().get("/sse/poll?channel=a&replay=9&timeout=0").get_json()
    assert [event["id"] for event in answer["events"]] == [published]


def test_outside_of_an_app_and_without_sse_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="app"):
        SSE().publish("a", "x")
    with Flask("bare").app_context(), pytest.raises(RuntimeError, match="call SSE"):
        get_service()


def test_closing_ends_all_and_the_next_use_begins_anew(make_app: MakeApp, redis_url: str, no_leaked_fds: None) -> None:
    app = make_app(SSE_REDIS_URL=redis_url)
    service: Service = app.extensions["sse"]
    service.close()
    for _ in range(3):
        assert app.test_client().get("/sse/poll?channel=a&timeout=1&replay=1").status_code == 200
        hub = service.hub
        service.close()
        assert service.hub is not hub
    service.close()
    assert service.check(Event("x")) == Event("x")


def in_a_fork(check: Callable[[], bool]) -> bool:
    """Return the result of a check in a child of this process."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os._exit(0 if check() else 1)
        os._exit(2)
    return os.waitpid(child, 0)[1] == 0


def test_requests_do_not_ask_for_the_process_each_time(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    service: Service = make_app().extensions["sse"]
    store, hub, revocations = service.store, service.hub, service.revocations
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pytest.fail("a system call"))
        assert (service.store, service.hub, service.revocations) == (store, hub, revocations)


def test_a_forked_process_makes_its_own(make_app: MakeApp) -> None:
    service: Service = make_app().extensions["sse"]
    store = service.store
    assert service.store is store
    assert in_a_fork(lambda: service.store is not store and service.hub is service.hub)
    assert service.store is store


def test_threads_that_come_first_together_share_one_store(make_app: MakeApp) -> None:
    service = make_app().extensions["sse"]
    together = threading.Barrier(8)

    def first(_: int) -> object:
        together.wait(5)
        return service.store

    with ThreadPoolExecutor(8) as threads:
        for _ in range(50):
            service.close()
            assert len(set(threads.map(first, range(8)))) == 1


def test_a_ticket_of_the_app_opens_its_channels_for_reading(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse, SSE_PUBLIC="", SSE_SECRET=SECRET)
    client = app.test_client()
    with app.app_context():
        ticket = sse.ticket(["a", "b"], "ann")
        with pytest.raises(InvalidEvent):
            sse.ticket(["a*"])
        with pytest.raises(InvalidEvent, match="give a list"):
            sse.ticket("news")
        with pytest.raises(InvalidEvent, match="sub is 7"):
            sse.ticket(["a"], 7)  # type: ignore[arg-type]
    for channels, status in (("channel=a", 200), ("channel=a&channel=b", 200), ("channel=a&channel=c", 403)):
        assert client.get(f"/sse/poll?timeout=0&token={ticket}&{channels}").status_code == status
    assert client.get("/sse/poll?timeout=0&channel=a").status_code == 401
    headers = {"Authorization": f"Bearer {ticket}"}
    assert client.post("/sse/publish/a", data="x", headers=headers).status_code == 401


def test_the_streams_of_a_ticket_live_as_long_as_the_app_says(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse, SSE_PUBLIC="", SSE_SECRET=SECRET)
    with app.app_context():
        ticket = sse.ticket(["a"], lifetime=1)
    began = time.monotonic()
    with app.test_client().get(f"/sse/stream?channel=a&token={ticket}") as answer:
        body = answer.get_data(as_text=True)
    assert body.count("event: sse.auth") == 1
    assert '"reason":"expired"' in body
    assert 0.5 < time.monotonic() - began < 2.5


def test_without_a_secret_there_are_no_tickets(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse)
    with app.app_context(), pytest.raises(SSEError, match="SSE_SECRET"):
        sse.ticket(["a"])
    assert app.test_client().post("/sse/ticket?channel=a").status_code == 404


@pytest.mark.parametrize("given", [{"sub": "ann"}, {"channel": "a"}, {"token": "id"}])
def test_what_is_revoked_is_refused(make_app: MakeApp, given: dict[str, str], store_url: str | None) -> None:
    sse = SSE()
    app = make_app(sse, SSE_PUBLIC="", SSE_SECRET=SECRET, SSE_REDIS_URL=store_url)
    headers = {"Authorization": f"Bearer {signed(claims(jti='id'))}"}
    client = app.test_client()
    assert client.get("/sse/poll?timeout=0&channel=a", headers=headers).status_code == 200
    assert client.post("/sse/publish/a", data="x", headers=headers).status_code == 201
    with app.app_context():
        sse.revoke(**given)
    assert client.get("/sse/poll?timeout=0&channel=a", headers=headers).status_code in (401, 403)
    assert client.post("/sse/publish/a", data="x", headers=headers).status_code in (401, 403)
    assert client.post("/sse/ticket?channel=a", headers=headers).status_code in (401, 403)


def test_exactly_one_thing_is_revoked(make_app: MakeApp) -> None:
    sse = SSE()
    with make_app(sse).app_context():
        for given in ({}, {"sub": "a", "channel": "b"}, {"token": ""}):
            with pytest.raises(ValueError, match="give one of sub, channel, token"):
                sse.revoke(**given)
        with pytest.raises(InvalidEvent):
            sse.revoke(channel="news/*")


@pytest.mark.parametrize(
    ("given", "settings", "trouble"),
    [
        ({"channel": "news/a"}, {"SSE_PUBLIC": "b news/*"}, "public, since SSE_PUBLIC has news/*"),
        ({"channel": "a"}, {"SSE_PUBLIC": "*", "SSE_SECRET": SECRET}, "public, since SSE_PUBLIC has *"),
        ({"token": "7f3a"}, {}, "no tokens are configured here"),
        ({"channel": "news"}, {"SSE_PUBLIC": "b news/*"}, ""),
        ({"sub": "ann"}, {}, ""),
        ({"sub": "news/a"}, {"SSE_PUBLIC": "news/*", "SSE_SECRET": SECRET}, ""),
    ],
)
def test_what_a_revocation_cannot_end_is_told_in_the_log(
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    given: dict[str, str],
    settings: dict[str, str],
    trouble: str,
) -> None:
    sse = SSE()
    app = make_app(sse, **{"SSE_PUBLIC": "", **settings})
    with app.app_context():
        sse.revoke(**given)
    assert bool(caplog.messages) is bool(trouble)
    assert trouble in caplog.text
    assert [json.loads(item.what) for item in app.extensions["sse"].store.revoked()] == [given]


def test_one_who_reads_by_the_app_s_rule_is_asked_again_when_the_channel_is_revoked(make_app: MakeApp) -> None:
    sse, allowed = SSE(), [True]
    sse.authorize(lambda channel: allowed[0])
    app = make_app(sse, SSE_PUBLIC="")
    with app.test_client().get("/sse/stream?channel=a") as answer:
        body = iter(answer.response)
        assert b"sse.open" in next(body)
        allowed[0] = False
        with app.app_context():
            sse.revoke(channel="a")
        assert b'"reason":"expired"' in next(body)
        assert list(body) == []
    assert app.test_client().get("/sse/stream?channel=a").status_code == 403
