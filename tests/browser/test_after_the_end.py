"""A native EventSource in each browser reads a text to its end, comes back once, gets 204, and never asks again."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from sse.stores import connect
from tests.browser.engines import Chromium, Engine, Firefox
from tests.live.load import APP, ENV
from tests.proxies import AnsweringProxy
from tests.servers import Gunicorn, HttpServer, RedisServer, free_port, wait_until
from tests.writing import Run, kept_alive

ENGINES: tuple[type[Engine], ...] = (Chromium, Firefox)
QUIET = 10.0  # seconds in which no request may come

PAGE = """<!doctype html><meta charset="utf-8"><script>
var told = {texts: [], ends: [], states: []};
var source = new EventSource(decodeURIComponent(location.hash.slice(1)));
function report() { fetch("/told?" + encodeURIComponent(JSON.stringify(told))); }
source.addEventListener("text", function (event) { told.texts.push(event.data); report(); });
source.addEventListener("sse.end", function (event) { told.ends.push(JSON.parse(event.data).reason); report(); });
source.onerror = function () { told.states.push(source.readyState); report(); };
</script>"""


class Pages(HttpServer):
    """Serves the page to one browser, and keeps the newest of the page's reports."""

    def __init__(self) -> None:
        self.told: dict[str, list[object]] = {"texts": [], "ends": [], "states": []}
        pages = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                if parts.path == "/told":
                    told = json.loads(next(iter(parse_qs(f"told={parts.query}")["told"])))
                    if sum(map(len, told.values())) > sum(map(len, pages.told.values())):  # reports may overtake
                        pages.told = told
                body = PAGE.encode() if parts.path == "/" else b""
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", free_port()), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


def test_a_native_event_source_gets_204_after_the_end_and_asks_no_more(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tmp_path))
        store = connect(redis.url, ring=1000, ring_ttl=3600)
        stack.callback(store.close)
        pages = [stack.enter_context(Pages()) for _ in ENGINES]
        env = ENV | {"SSE_REDIS_URL": redis.url, "SSE_ORIGINS": ",".join(page.url for page in pages)}
        server = stack.enter_context(Gunicorn(tmp_path, APP, env | {"SSE_RETRY": "1000"}))
        upstream = int(server.url.rpartition(":")[2])
        proxies = [stack.enter_context(AnsweringProxy(upstream)) for _ in ENGINES]
        run = Run(store, "answer")
        run.write("Hello")
        with kept_alive(run):
            for engine, page, proxy in zip(ENGINES, pages, proxies, strict=True):
                address = f"{page.url}/#{proxy.url}/sse/stream?channel=answer"
                stack.enter_context(engine(tmp_path_factory.mktemp("e"), address))
            wait_until(lambda: all(page.told["texts"] for page in pages), 60, what="the text")
            run.write(" world")
        run.end("stopped")
        wait_until(lambda: all(2 in page.told["states"] for page in pages), 20, what="each is closed by the 204")
        time.sleep(QUIET)
        for engine, page, proxy in zip(ENGINES, pages, proxies, strict=True):
            assert page.told == {"texts": ["Hello", " world"], "ends": ["stopped"], "states": [0, 2]}, engine.name
            assert len(proxy.requests) == 2, engine.name
