"""`make run` as a newcomer meets it: what it prints can be tried as it stands, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.servers import RedisServer, Server, free_port, wait_until

THREE_LINES = re.compile(r"^  open (\S+)\n  (curl -N .+)\n  (curl -H .+)$", re.MULTILINE)


class MakeRun(Server):
    """`make run` in a session of its own, as in a terminal; `redis_url` is what the environment says, if anything."""

    name = "make-run"

    def __init__(self, directory: Path, *arguments: str, redis_url: str | None = None) -> None:
        super().__init__(directory)
        self.arguments, self.redis_url, self.port = arguments, redis_url, free_port()

    def command(self) -> Sequence[str]:
        return ["setsid", "make", "run", *self.arguments]

    def environment(self) -> dict[str, str]:
        own = ("SSE_", "REDIS_URL", "BIND", "WEB_CONCURRENCY", "GUNICORN_", "DEMO", "MAKE", "MFLAGS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        given = {"SSE_REDIS_URL": self.redis_url} if self.redis_url else {}
        # Children keep it whatever session they are in: so they are found, even when their parents have gone.
        return kept | {"PORT": str(self.port), "MAKE_RUN_TEST": self.log.name} | given

    def ready(self) -> bool:
        return THREE_LINES.search(self.logs()) is not None

    def processes(self) -> dict[int, str]:
        """Every process that came of it, by pid."""
        mark = f"MAKE_RUN_TEST={self.log.name}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
                except OSError:
                    pass  # gone meanwhile, or another user's
        return found

    def interrupt(self) -> None:
        """Ctrl-C: SIGINT to the whole process group that a terminal would have in front."""
        os.killpg(self.pid, signal.SIGINT)
        assert self.process is not None
        self.process.wait(10)

    def stop(self, timeout: float = 5, by: signal.Signals = signal.SIGINT) -> None:
        super().stop(timeout, by)
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def redis_answers_at_home() -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", 6379)) == 0


@pytest.mark.parametrize("store", ["memory", "Redis of its own", "Redis that is there"])
def test_what_make_run_prints_works_and_ctrl_c_ends_it_all(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if store == "memory":
        run = MakeRun(tmp_path)
    elif store == "Redis that is there":
        there: RedisServer = request.getfixturevalue("redis_server")
        run = MakeRun(tmp_path, "REDIS=1", redis_url=there.url)
    elif redis_answers_at_home():
        pytest.skip("a Redis answers on 6379, so `make run REDIS=1` starts none of its own")
    else:
        run = MakeRun(tmp_path, "REDIS=1")
    with run:
        printed = THREE_LINES.search(run.logs())
        assert printed
        page, follow, publish = printed[1], shlex.split(printed[2]), shlex.split(printed[3])
        base = f"http://127.0.0.1:{run.port}"
        assert page == f"{base}/"
        answer = client.request(base, "GET", "/")
        assert answer.status == 200
        assert b"<title>Throughline" in answer.body

        assert follow[:2] == ["curl", "-N"]
        with Stream(follow[2], timeout=10) as stream:
            assert stream.next_event().event == "sse.open"
            said = subprocess.run([*publish, "--silent"], check=True, capture_output=True, timeout=10).stdout
            (position,) = json.loads(said)["ids"]
            events = (stream.next_event() for _ in range(5))
            event = next(event for event in events if not event.event.startswith("sse."))
            assert (event.event, event.data, event.own_id) == ("message", "hello", position)

            own_redis = [name for name in run.processes().values() if "redis-server" in name]
            assert len(own_redis) == (store == "Redis of its own")
            since = time.monotonic()
            run.interrupt()  # while the stream is open
        wait_until(lambda: not run.processes(), 10 - (time.monotonic() - since), what="its processes have ended")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # passes over TIME_WAIT, not over a listener
            sock.bind(("127.0.0.1", run.port))
