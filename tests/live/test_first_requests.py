"""The first requests of a process may come all at once.

They are answered, also if gevent patches the standard library after the app was made.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import client
from tests.servers import Gunicorn, Server, children, free_port, wait_until
from tests.tokens import KEY

AT_ONCE = 20
SETTINGS = {"SSE_PUBLIC": "*", "SSE_PUBLISH_KEYS": KEY}


class Preloaded(Gunicorn):
    """gunicorn's own gevent worker and no settings; the app is made before the fork, and before the patch."""

    def command(self) -> Sequence[str]:
        none = self.dir / "none.py"  # else gunicorn.conf.py here would be read
        none.touch()
        arguments = ["-c", str(none), "-k", "gevent", "--preload", "--no-control-socket", "-b", self.bind]
        return [sys.executable, "-m", "gunicorn", *arguments, self.app]


class Pywsgi(Server):
    """gevent's own server, in a program that patches the standard library after it has made the app."""

    name = "pywsgi"

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        super().__init__(directory)
        self.env = env
        self.bind = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.bind}"

    def command(self) -> Sequence[str]:
        program = (
            "from wsgi import application; from gevent import monkey; monkey.patch_all(); "
            f"from gevent.pywsgi import WSGIServer; WSGIServer({self.bind!r}, application).serve_forever()"
        )
        return [sys.executable, "-W", "ignore", "-c", program]

    def environment(self) -> dict[str, str]:
        return super().environment() | self.env

    def ready(self) -> bool:
        try:
            client.connect(self.url, 1).close()  # no request: the first ones are the test's
        except OSError:
            return False
        return True


@pytest.mark.parametrize("kind", [Preloaded, Pywsgi])
def test_many_first_requests_are_answered(
    store_url: str | None, tmp_path: Path, kind: type[Preloaded | Pywsgi]
) -> None:
    env = SETTINGS | ({"SSE_REDIS_URL": store_url} if store_url else {})

    class First(kind):  # type: ignore[misc, valid-type]
        def ready(self) -> bool:
            return bool(Pywsgi.ready(self))  # type: ignore[arg-type]

    with First(tmp_path, env=env) as server, contextlib.ExitStack() as stack:
        (serves,) = wait_until(lambda: children(server.pid)) if kind is Preloaded else [server.pid]
        os.kill(serves, signal.SIGSTOP)  # so that it finds all requests at once
        try:
            asking = [stack.enter_context(contextlib.closing(client.connect(server.url, 10))) for _ in range(AT_ONCE)]
            for number, connection in enumerate(asking):
                if number % 2:
                    head = f"POST /sse/publish/a{number} HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1"
                else:
                    head = f"GET /sse/poll?channel=a{number}&timeout=1 HTTP/1.1"
                end = "\r\nHost: a\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" + "x" * (number % 2)
                connection.sendall((head + end).encode())
        finally:
            os.kill(serves, signal.SIGCONT)
        answers = [connection.makefile("rb").readline() for connection in asking]
    assert answers == [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 201 CREATED\r\n"] * (AT_ONCE // 2)
