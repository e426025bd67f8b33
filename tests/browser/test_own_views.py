"""The app's own views in Chromium: the script follows a view's channels, and an EventSource reads an iterable once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from tests import client
from tests.publishing import publish
from tests.servers import Gunicorn, wait_until
from tests.tokens import KEY

APP = "tests.live.apps.own:application"


@pytest.fixture
def server(tmp_path: Path, redis_url: str) -> Iterator[Gunicorn]:
    env = {"SSE_PUBLISH_KEYS": KEY, "SSE_HEARTBEAT": "3", "SSE_RETRY": "300", "SSE_REDIS_URL": redis_url}
    with Gunicorn(tmp_path, APP, env, workers=2) as server:
        yield server


def value(chromium: webdriver.Chrome, expression: str) -> Any:
    return chromium.execute_script(f"return {expression}")


def test_the_script_follows_a_view_through_a_revocation_and_restarts_of_the_workers(
    chromium: webdriver.Chrome, server: Gunicorn
) -> None:
    chromium.get(f"{server.url}/page")
    wait_until(lambda: value(chromium, "feed.state") == "live", 15, what="the feed is live")
    publish(server, "a", "one")
    publish(server, "b", "two")
    publish(server, "other", "not for this view")
    wait_until(lambda: sorted(value(chromium, "heard")) == ["a one", "b two"])
    client.request(server.url, "POST", "/revoke", body=b"")
    publish(server, "a", "three")
    wait_until(lambda: "a three" in value(chromium, "heard"), 25, what="it has come back after the revocation")
    server.stop()
    server.start()
    publish(server, "b", "four")
    wait_until(lambda: "b four" in value(chromium, "heard"), 25, what="it has come back after the restart")
    assert sorted(value(chromium, "heard")) == ["a one", "a three", "b four", "b two"]


def test_an_eventsource_reads_an_iterable_once_and_stays_away(chromium: webdriver.Chrome, server: Gunicorn) -> None:
    chromium.get(f"{server.url}/page")
    end = '{"channel":null,"reason":"done"}'
    wait_until(lambda: value(chromium, "source.readyState") == 2, 15, what="the EventSource is closed by the 204")
    time.sleep(2)
    assert value(chromium, "items") == ["ends ", "facts", end]
