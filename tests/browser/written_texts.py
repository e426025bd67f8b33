"""A worker, a Redis, and a writer in the tests' own process: texts that are written bit by bit, and end."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from flask import Flask

from sse import SSE, SSEError
from tests import client
from tests.proxies import AnsweringProxy, Connection
from tests.publishing import publish_in_app
from tests.servers import Gunicorn, RedisServer

VIEW = "/inbox/events"


class NotingProxy(AnsweringProxy):
    """Notes what each request accepts, too."""

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
        self.accepts: list[tuple[str, str]] = []

    def passes(self, connection: Connection, data: bytes, upward: bool) -> bool:
        if upward and (found := re.match(rb"GET (\S+) .*?\r\nAccept: (.*?)\r\n", data, re.DOTALL)):
            self.accepts.append((found[1].decode(), found[2].decode()))
        return super().passes(connection, data, upward)


class TextService:
    """The service behind a proxy that notes all requests, so that a test can show that none came."""

    def __init__(self, directory: Path, redis: RedisServer) -> None:
        settings = {"REDIS_URL": redis.url, "PUBLIC": "*", "ORIGINS": "*", "RETRY": "300", "HEARTBEAT": "3"}
        self._gunicorn = Gunicorn(
            directory, "tests.browser.apps.texts:application", {f"SSE_{name}": text for name, text in settings.items()}
        )
        self.front = NotingProxy(int(self._gunicorn.bind.rpartition(":")[2]))
        self.url = self.front.url
        self._app = Flask("writer")
        self._app.config.from_mapping(SSE_REDIS_URL=redis.url)
        self._sse = SSE(self._app)
        self._runs: dict[str, tuple[AbstractContextManager[Any], Any]] = {}
        self._pages = itertools.count()

    def __enter__(self) -> Self:
        self._gunicorn.start()
        self.front.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()
        self._app.extensions["sse"].close()
        self.front.__exit__()
        self._gunicorn.stop()

    def begin(self, name: str) -> None:
        """Begin a run, or begin it again."""
        old = self._runs.get(name)
        with self._app.app_context():
            context = self._sse.writing(name, restart=old is not None)
            self._runs[name] = context, context.__enter__()
        if old:
            with contextlib.suppress(SSEError):  # it was ended before, or by the new one
                old[0].__exit__(None, None, None)

    def write(self, name: str, *pieces: str) -> None:
        _, out = self._runs[name]
        for piece in pieces:
            out.write(piece)
            out.flush()

    def publish(self, name: str, data: Any, type: str = "message") -> None:
        """Publish an event, which is one of the run where there is one."""
        if name in self._runs:
            self._runs[name][1].publish(data, type)
        else:
            publish_in_app(self._app, name, data, type=type)

    def end(self, name: str, reason: str = "done") -> float:
        """End the run, and return the moment."""
        context, _ = self._runs[name]
        error = ValueError("failed") if reason == "failed" else None
        if reason == "stopped":
            with self._app.app_context():
                assert self._sse.stop(name)
        moment = time.time()
        with contextlib.suppress(SSEError, ValueError):
            context.__exit__(type(error) if error else None, error, None)
        return moment

    def end_all(self) -> None:
        for context, _ in self._runs.values():
            with contextlib.suppress(SSEError):
                context.__exit__(None, None, None)
        self._runs.clear()

    def add_page(self, body: str) -> str:
        """Return the path of a page with this body."""
        path = f"/written/{next(self._pages)}"
        assert client.request(self._gunicorn.url, "PUT", path, body=body.encode()).status == 200
        return path

    def choose(self, *names: str) -> None:
        """Choose the channels of the view."""
        body = " ".join(names).encode()
        assert client.request(self._gunicorn.url, "PUT", "/chosen", body=body).status == 200

    def cut(self) -> None:
        self.front.cut()

    def since(self, moment: float, part: str = "") -> list[str]:
        """Return the targets of the streams and polls since that moment that contain `part`."""
        asked = [target for at, target in self.front.requests if at >= moment and "_=" in target]
        return [target for target in asked if part in target]
