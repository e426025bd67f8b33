"""Publish for the tests: over HTTP, with an app, into a store, or on and on from a thread.

A test that looks at the answer to its request has it from `client.publish` over HTTP, and from `post` in an app.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from sse.errors import StoreUnavailable
from sse.event import Event, Position
from sse.stores import Publication, Store
from tests import client
from tests.servers import Gunicorn, Nginx
from tests.tokens import KEY


def publish(
    server: Gunicorn | Nginx | str, channel: str | list[str], *data: object, type: str | None = None, key: str = KEY
) -> list[str]:
    """Publish each item to a server or URL, in a request of its own, and return the ids of all events."""
    url = server if isinstance(server, str) else server.url
    ids: list[str] = []
    for item in data:
        answer = client.publish(url, channel, item, type=type, key=key)
        assert answer.status == 201, (answer.status, answer.body)
        ids += answer.json()["ids"]
    return ids


def publish_at_once(server: Gunicorn, channel: str, *data: object) -> list[str]:
    """Publish all items to the server in one request, and return the ids of the events."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    body = json.dumps([{"channel": channel, "data": item} for item in data]).encode()
    answer = client.request(server.url, "POST", "/sse/publish", headers=headers, body=body)
    assert answer.status == 201, (answer.status, answer.body)
    ids: list[str] = answer.json()["ids"]
    return ids


def post(
    app: Flask | FlaskClient, body: object = None, path: str = "/sse/publish", key: str | None = KEY, **options: Any
) -> TestResponse:
    """Post to an app's route for publishing, and return the answer; a body that is not bytes or text goes as JSON."""
    headers = dict(options.pop("headers", {}))
    if key:
        headers["Authorization"] = f"Bearer {key}"
    if body is not None:
        options["data"] = body if isinstance(body, bytes | str) else json.dumps(body)
        options.setdefault("content_type", "application/json")
    http = app.test_client() if isinstance(app, Flask) else app
    return http.post(path, headers=headers, **options)


def publish_in_app(app: Flask, channel: str, *data: object, type: str = "message") -> list[str]:
    """Publish all items by the service of this app, without a request, and return the ids of the events."""
    publications = [Publication(channel, Event(item, type)) for item in data]
    return [f"{channel}={position}" for position in app.extensions["sse"].publish(publications)]


def publish_to_store(store: Store, channel: str, *data: object) -> list[Position]:
    """Store all items, each as a new event, and return their positions."""
    positions = []
    for receipt in store.publish([Publication(channel, Event(item)) for item in data]):
        assert not isinstance(receipt, StoreUnavailable), receipt
        assert receipt.outcome == "new"
        positions.append(receipt.position)
    return positions


def publish_for_ids(store: Store, channel: str, *data: object) -> list[str]:
    """Store all items, each as a new event, and return the ids of the events."""
    return [f"{channel}={position}" for position in publish_to_store(store, channel, *data)]


class Publisher:
    """A thread that calls `publish` with 0, 1, 2 … for as long as its block runs.

    `count` says how many calls have ended. An error ends the thread, and the end of the block raises it.
    """

    def __init__(self, publish: Callable[[int], object], pause: float = 0.02) -> None:
        self.count = 0
        self._publish, self._pause = publish, pause
        self._stop = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the thread, and raise the error that has ended it, if any."""
        self._stop.set()
        self._thread.join(40)
        assert not self._thread.is_alive()
        if self._fault:
            raise self._fault

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause) and self.count < 100_000:
                self._publish(self.count)
                self.count += 1
        except BaseException as fault:
            self._fault = fault


def storm(url: str, channels: Sequence[str], pause: float = 0.02) -> Publisher:
    """Return a publisher of numbers to all channels of a server.

    It is a publisher as it should be: it repeats what is not stored, with the same key.
    """
    name = secrets.token_hex(4)

    def publish_until_stored(number: int) -> None:
        answer: object = None
        for _ in range(100):
            with contextlib.suppress(OSError, http.client.HTTPException):
                once = f"{name}-{number}"
                answer = client.publish(url, list(channels), str(number), key=KEY, idempotency_key=once, timeout=10)
                if answer.status == 201:
                    return
                assert answer.status == 503, answer
            time.sleep(0.05)
        raise AssertionError(f"cannot be published: {answer}")

    return Publisher(publish_until_stored, pause)
