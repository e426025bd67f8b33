"""Other Flask extensions, the real packages: docs/operating.md has the lines that exempt the routes from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_wtf.csrf import CSRFProtect

from sse import SSE
from tests import client as wire
from tests.conftest import MakeApp
from tests.tokens import KEY, SECRET, claims, signed

DOCS = (Path(__file__).parent.parent / "docs/operating.md").read_text()
PUBLISHING = {"Authorization": f"Bearer {KEY}"}


def line(start: str) -> str:
    """Return the only line of the docs that begins with this text."""
    [found] = re.findall(rf"^{re.escape(start)}.*$", DOCS, re.MULTILINE)
    return str(found)


@pytest.fixture(params=["before", "after"])
def make(request: pytest.FixtureRequest, make_app: MakeApp) -> Iterator[Callable[..., Flask]]:
    """Return a function that makes an app with another extension, initialised before or after SSE."""

    def make(init: Callable[[Flask], object], **config: object) -> Flask:
        sse = SSE()
        if request.param == "after":
            app = make_app(sse, SSE_PUBLISH_KEYS=[KEY], SSE_SECRET=SECRET, SSE_ORIGINS=["https://a.example"])
            app.config.from_mapping(config)
            init(app)
            return app

        class First(SSE):
            def init_app(self, app: Flask) -> None:
                app.config.from_mapping(config)
                init(app)
                super().init_app(app)

        return make_app(First(), SSE_PUBLISH_KEYS=[KEY], SSE_SECRET=SECRET, SSE_ORIGINS=["https://a.example"])

    return make


def make_limiter() -> Limiter:
    return Limiter(get_remote_address, default_limits=["2 per hour"], storage_uri="memory://", headers_enabled=True)


def kind_of(app: Flask) -> str:
    """Return the type of the first block of a new stream."""
    response = app.test_client().get("/sse/stream?channel=a", headers={"Origin": "https://a.example"})
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
    [event, *_] = wire.Parser().feed(next(response.iter_encoded()))
    response.close()
    return event.event


def test_over_the_limit_of_flask_limiter_a_stream_is_told_busy_and_a_poll_429(make: Callable[..., Flask]) -> None:
    app = make(make_limiter().init_app)
    assert [kind_of(app) for _ in range(3)] == ["sse.open", "sse.open", "sse.close"]
    answers = [app.test_client().get("/sse/poll?channel=a&timeout=0") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]


def test_flask_limiter_s_time_is_the_client_s_where_it_comes_after_sse(make_app: MakeApp) -> None:
    app = make_app()
    make_limiter().init_app(app)
    client = app.test_client()
    for _ in range(2):
        client.get("/sse/stream?channel=a").close()
    [event] = wire.Parser().feed(client.get("/sse/stream?channel=a").data)
    assert event.json()["reason"] == "busy"
    assert event.retry is not None
    assert event.retry > 3000 * 1000


def test_a_line_of_the_docs_exempts_the_routes_from_flask_limiter(make: Callable[..., Flask]) -> None:
    limiter = make_limiter()
    app = make(limiter.init_app)
    exec(line("limiter.exempt("), {"limiter": limiter, "app": app})
    app.add_url_rule("/page", "page", lambda: "page")
    assert {kind_of(app) for _ in range(4)} == {"sse.open"}
    client = app.test_client()
    assert {client.get("/sse/poll?channel=a&timeout=0").status_code for _ in range(4)} == {200}
    assert {client.post("/sse/publish/a", data="x", headers=PUBLISHING).status_code for _ in range(4)} == {201}
    assert [client.get("/page").status_code for _ in range(3)] == [200, 200, 429]


def ask_ticket(app: Flask) -> int:
    token = {"Authorization": f"Bearer {signed(claims())}"}
    return app.test_client().post("/sse/ticket?channel=a", headers=token).status_code


def test_a_line_of_the_docs_exempts_the_routes_from_flask_wtf_s_csrf_protect(make: Callable[..., Flask]) -> None:
    protect = CSRFProtect()
    app = make(protect.init_app, SECRET_KEY="of this test alone")
    app.add_url_rule("/page", "page", lambda: "page", methods=["POST"])
    post = app.test_client().post
    refused = post("/sse/publish/a", data="x", headers=PUBLISHING)
    assert (refused.status_code, "CSRF" in refused.json["error"]["message"]) == (400, True)
    exec(line("csrf.exempt("), {"csrf": protect, "app": app})
    assert post("/sse/publish/a", data="x", headers=PUBLISHING).status_code == 201
    assert post("/sse/publish", json={"channel": "a", "data": "x"}, headers=PUBLISHING).status_code == 201
    assert ask_ticket(app) == 201
    assert post("/page").status_code == 400


@pytest.mark.parametrize("init", [lambda app: make_limiter().init_app(app), CSRFProtect], ids=["limiter", "csrf"])
@pytest.mark.parametrize("mode", ["auto", "on"])
def test_their_hooks_hold_the_fast_lane_back_unless_sse_lane_is_on(
    make: Callable[..., Flask], init: Callable[[Flask], object], mode: str
) -> None:
    app = make(init, SECRET_KEY="of this test alone", SSE_LANE=mode)
    app.test_client().get("/sse/health")
    rule = app.extensions["sse.lane"].rule
    expected = rule.mode == "on"  # which comes too late where SSE is initialised first
    assert (rule.why_off() == "") is expected
    assert bool(rule.passed_by) is expected
