"""docs/migrating.md: each program under "After" runs as it is printed, and does what the page says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask

import sse
from sse.compat.flask_sse import sse as blueprint
from tests import client as wire
from tests.conftest import MakeApp
from tests.servers import ROOT

PAGE = (ROOT / "docs" / "migrating.md").read_text()
AFTER = dict(re.findall(r"```python\n# after ([\w-]+)\n(.*?)```", PAGE, re.DOTALL))


def run(package: str, **replaced: str) -> SimpleNamespace:
    """Run a program of the page, with parts of it replaced, and return its names."""
    program = AFTER[package]
    for old, new in replaced.items():
        assert old in program
        program = program.replace(old, new)
    names: dict[str, Any] = {"__name__": f"after_{re.sub('[^a-z]', '_', package.lower())}"}
    exec(compile(program, package, "exec"), names)
    return SimpleNamespace(**names)


def test_each_package_of_the_page_has_a_program() -> None:
    headings = re.findall(r"^## ([\w-]+)", PAGE, re.MULTILINE)
    assert headings == list(AFTER) == ["flask-sse", "Flask-SocketIO", "django-eventstream", "sse-starlette"]
    assert PAGE.count("\nBefore:\n") == PAGE.count("\nAfter:\n") == len(AFTER)


def hear(app: Flask, path: str, act: Callable[[], object]) -> wire.Event:
    """Return the first event of a stream after its opening, which `act` causes."""
    with closing(app.test_client().get(path, buffered=False)) as answer:
        assert answer.status_code == 200
        chunks = answer.iter_encoded()
        next(chunks)
        act()
        [event] = wire.Parser().feed(next(chunks))
    return event


def test_after_flask_sse(redis_url: str) -> None:
    app = run("flask-sse", **{"redis://localhost": redis_url}).app
    event = hear(app, "/stream", lambda: app.test_client().post("/hello"))
    assert (event.event, event.json()) == ("greeting", {"message": "Hello!"})
    assert hasattr(blueprint, "extension")
    with app.test_request_context():
        assert app.url_for("sse.stream") == "/stream"
    blueprint.extension.close()


def test_after_flask_socketio() -> None:
    names = run("Flask-SocketIO")
    event = hear(names.app, "/sse/stream?channel=prices/acme", lambda: names.app.test_client().post("/prices/acme/7"))
    assert (event.event, event.json()) == ("price", {"symbol": "acme", "price": 7})
    names.sse.close()


def test_after_django_eventstream(make_app: MakeApp, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSE_REDIS_URL", redis_url)
    names = run("django-eventstream")
    event = hear(make_app(), "/sse/stream?channel=orders", lambda: names.pay(None, 42))
    assert (event.event, json.loads(event.data or "")) == ("paid", {"number": 42})
    names.publisher.close()


def test_after_sse_starlette() -> None:
    names = run("sse-starlette", **{"time.sleep(1)": "time.sleep(0.01)"})
    blocks = wire.Parser().feed(names.app.test_client().get("/numbers").data)
    assert [(block.event, block.data) for block in blocks[2:-1]] == [("number", str(n)) for n in range(3)]
    assert blocks[-1].json() == {"channel": None, "reason": "done"}
    assert names.app.test_client().get("/numbers", headers={"Last-Event-ID": blocks[-1].id}).status_code == 204
    names.sse.close()


@pytest.mark.parametrize("name", sorted({name for names in re.findall(r"`sse\.(\w+)", PAGE) for name in [names]}))
def test_each_name_of_ours_is_there(name: str) -> None:
    notices = {"open", "reset", "end", "worker", "messages", "redis", "extension", "before_request"}
    assert name in notices or hasattr(sse.SSE, name)
