"""A native EventSource cannot send headers. In Chromium, the HttpOnly cookie lets it in."""

from __future__ import annotations

from pathlib import Path

from selenium import webdriver

from tests.live.load import APP, KEY
from tests.publishing import publish
from tests.servers import Gunicorn, RedisServer, wait_until
from tests.tokens import SECRET, claims, signed

LISTEN = """
    heard = []; states = [];
    source = new EventSource("/sse/stream?channel=a");
    source.onmessage = function (event) { heard.push(event.data); };
    source.onerror = function () { states.push(source.readyState); };
"""


def test_a_native_event_source_listens_by_its_cookie(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    env = {"SSE_SECRET": SECRET, "SSE_PUBLISH_KEYS": KEY}
    with RedisServer(tmp_path) as store, Gunicorn(tmp_path, APP, env | {"SSE_REDIS_URL": store.url}) as server:
        chromium.get(f"{server.url}/healthz")
        chromium.execute_script(LISTEN)
        wait_until(lambda: chromium.execute_script("return states") == [2], what="a stranger is refused")
        chromium.add_cookie({"name": "sse_token", "value": signed(claims()), "httpOnly": True, "sameSite": "Strict"})
        assert chromium.execute_script("return document.cookie") == ""
        chromium.execute_script(LISTEN)
        wait_until(lambda: chromium.execute_script("return source.readyState") == 1)
        publish(server, "a", "one")
        wait_until(lambda: chromium.execute_script("return heard") == ["one"])
        server.kill()
        server.start()
        publish(server, "a", "two")
        wait_until(lambda: chromium.execute_script("return heard") == ["one", "two"], 20)
