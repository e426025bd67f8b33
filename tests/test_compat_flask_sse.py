"""flask-sse's names, each of which works or says what to use instead."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import flask_sse
import pytest
from flask import Flask, abort

from sse import SSE, InvalidEvent
from sse.compat import flask_sse as compat
from sse.compat.flask_sse import ServerSentEventsBlueprint, sse
from tests import client as wire


@pytest.fixture
def app() -> Any:
    app = Flask("tests")
    app.register_blueprint(sse, url_prefix="/stream")
    yield app
    app.extensions["sse"].close()


def test_each_public_name_of_flask_sse_is_here_or_says_what_to_use() -> None:
    theirs = {name for name in vars(flask_sse.ServerSentEventsBlueprint) if not name.startswith("_")}
    assert theirs == {"redis", "publish", "messages", "stream"}
    assert theirs <= vars(ServerSentEventsBlueprint).keys()
    assert isinstance(flask_sse.sse, flask_sse.ServerSentEventsBlueprint)
    assert (sse.name, flask_sse.sse.name) == ("sse", "sse")
    with pytest.raises(ImportError, match=r"no Message: sse\.publish"):
        from sse.compat.flask_sse import Message  # noqa: F401
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = compat.other


def test_messages_and_redis_say_what_to_use(app: Flask) -> None:
    with app.app_context():
        with pytest.raises(NotImplementedError, match=r"return sse\.extension\.subscribe\(channel\)"):
            sse.messages("a")
        with pytest.raises(NotImplementedError, match=r"redis\.Redis\.from_url"):
            _ = sse.redis


def test_a_stream_resumes_and_has_the_default_channel(app: Flask) -> None:
    with app.app_context():
        first = sse.publish("one")
        sse.publish("two", type="greeting")
    client = app.test_client()
    with closing(client.get("/stream", headers={"Last-Event-ID": first}, buffered=False)) as answer:
        chunks = answer.iter_encoded()
        opened, _, event = wire.Parser().feed(next(chunks) + next(chunks))
    assert list(opened.json()["channels"]) == ["sse"]
    assert opened.json()["channels"]["sse"]["resumed"]
    assert (event.event, event.data) == ("greeting", "two")


def test_the_query_names_one_or_more_channels(app: Flask) -> None:
    for query, names in (("channel=", ["sse"]), ("channel=a", ["a"]), ("channel=a&channel=b", ["a", "b"])):
        with closing(app.test_client().get(f"/stream?{query}", buffered=False)) as answer:
            [opened, *_] = wire.Parser().feed(next(answer.iter_encoded()))
            assert list(opened.json()["channels"]) == names


def test_a_channel_that_has_no_valid_name_is_told_clearly(app: Flask) -> None:
    with app.app_context(), pytest.raises(InvalidEvent, match="channel 'user 1' is not a channel name"):
        sse.publish("x", channel="user 1")
    answer = app.test_client().get("/stream?channel=user%201")
    assert (answer.status_code, answer.json["error"]["code"]) == (400, "invalid_channel")


def test_id_and_retry_are_not_sent_and_the_log_says_so_once(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    with app.app_context():
        ids = [sse.publish("x", id="1", retry=5) for _ in range(2)]
    assert ids[0] != ids[1]
    assert sorted(record.getMessage().partition(" is not sent")[0] for record in caplog.records) == [
        "sse.publish(id=…)",
        "sse.publish(retry=…)",
    ]


def test_the_service_s_own_routes_stay_closed(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/sse/stream?channel=sse").status_code == 403
    assert client.get("/sse/sse.js").status_code == 200


def test_hooks_of_the_blueprint_guard_its_stream_alone() -> None:
    own = ServerSentEventsBlueprint("sse", __name__)
    own.add_url_rule(rule="", endpoint="stream", view_func=own.stream)
    own.before_request(lambda: abort(401))
    app = Flask("tests")
    app.register_blueprint(own, url_prefix="/stream")
    assert app.test_client().get("/stream").status_code == 401
    assert app.test_client().get("/sse/sse.js").status_code == 200
    app.extensions["sse"].close()


def test_two_blueprints_share_one_service_and_a_bare_sse_acts_on_it(app: Flask) -> None:
    other = ServerSentEventsBlueprint("other", __name__)
    other.add_url_rule("", "stream", other.stream)
    app.register_blueprint(other, url_prefix="/other")
    with app.app_context():
        id = SSE().publish("sse", "x")
    answer = app.test_client().get("/other?timeout=0", headers={"Accept": "application/json"})
    assert answer.json["last_event_id"] == id


def test_the_settings_are_those_of_flask_sse() -> None:
    for settings in ({"REDIS_URL": "redis://127.0.0.1:1"}, {"SSE_REDIS_URL": "redis://127.0.0.1:1"}):
        app = Flask("tests")
        app.config.update(settings)
        app.register_blueprint(sse, url_prefix="/stream")
        assert app.extensions["sse"].config.redis_url == "redis://127.0.0.1:1"


def test_an_sse_is_no_blueprint_and_the_error_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"call sse\.init_app\(app\).*from sse\.compat\.flask_sse import sse"):
        Flask("tests").register_blueprint(SSE(), url_prefix="/stream")  # type: ignore[arg-type]
