"""A native EventSource in Chromium, on another origin, through nginx with TLS and HTTP/2, comes back by itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from tests import client
from tests.publishing import publish
from tests.servers import Gunicorn, Nginx, RedisServer, wait_until
from tests.tokens import KEY


@dataclass
class Site:
    gunicorn: Gunicorn
    publisher: Gunicorn
    nginx: Nginx


@pytest.fixture
def site(tmp_path: Path, page_origin: str) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tmp_path / "redis"))
        environment = {
            "SSE_REDIS_URL": redis.url,
            "SSE_PUBLIC": "news",
            "SSE_ORIGINS": page_origin,
            "SSE_PUBLISH_KEYS": KEY,
            "SSE_RETRY": "1000",
            "SSE_HEARTBEAT": "3",
        }
        gunicorn = stack.enter_context(
            Gunicorn(tmp_path / "app", env=environment, workers=2, bind=f"unix:{tmp_path}/sock")
        )
        publisher = stack.enter_context(Gunicorn(tmp_path / "publisher", env=environment))
        yield Site(gunicorn, publisher, stack.enter_context(Nginx(tmp_path / "nginx", gunicorn.bind)))


def listen(chromium: webdriver.Chrome, page_origin: str, site: Site) -> None:
    stream = f"{site.nginx.url}/sse/stream?channel=news"
    chromium.get(page_origin + client.target("/native.html", {"stream": stream}))
    wait_until(lambda: value(chromium, "source.readyState") == 1, 15, what="the EventSource is open")


def value(chromium: webdriver.Chrome, expression: str) -> Any:
    return chromium.execute_script(f"return {expression}")


def test_after_ten_seconds_without_workers_it_is_back_by_itself_and_has_lost_and_doubled_nothing(
    chromium: webdriver.Chrome, page_origin: str, site: Site
) -> None:
    listen(chromium, page_origin, site)
    for number in range(5):
        publish(site.publisher, "news", number)
    wait_until(lambda: len(value(chromium, "events")) == 5, what="the first five events")

    site.gunicorn.stop()
    stopped = time.monotonic()
    for number in range(5, 25):
        publish(site.publisher, "news", number)
        time.sleep(0.5)
    assert time.monotonic() - stopped >= 10
    assert len(value(chromium, "events")) == 5
    assert "busy" in value(chromium, "closes")  # nginx has answered for the workers

    site.gunicorn.start()
    publish(site.publisher, "news", 25)
    wait_until(lambda: len(value(chromium, "events")) >= 26, 25, what="the EventSource has caught up")
    publish(site.publisher, "news", 26)
    wait_until(lambda: len(value(chromium, "events")) >= 27, what="a live event after the replay")
    assert value(chromium, "events") == [str(number) for number in range(27)]
    assert value(chromium, "resets") == []
    assert value(chromium, "source.readyState") == 1
    assert 2 not in value(chromium, "errors")
    assert "GET /sse/stream HTTP/2.0" in site.nginx.access_log.read_text()


def test_an_eventsource_that_closes_is_noticed_although_its_http_2_connection_stays(
    chromium: webdriver.Chrome, page_origin: str, site: Site
) -> None:
    listen(chromium, page_origin, site)
    opened = site.gunicorn.fds()
    time.sleep(4)  # longer than a heartbeat: open streams stay
    assert site.gunicorn.fds() >= opened
    chromium.execute_script("source.close()")
    wait_until(lambda: site.gunicorn.fds() < opened, 8, what="the worker has closed the connection")
