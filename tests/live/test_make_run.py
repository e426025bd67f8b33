"""`make run` prints commands that work when copied, and leaves nothing behind after Ctrl-C."""

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
from tests.servers import RedisServer, Server, children, free_port, wait_until

THREE_LINES = re.compile(r"^  open (\S+)\n  (curl -N .+)\n  (curl -H .+)$", re.MULTILINE)


class MakeRun(Server):
    """`make run` in its own session, as in a terminal. `redis_url` is the environment's REDIS_URL, if any."""

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
        return kept | {"PORT": str(self.port)} | given

    def ready(self) -> bool:
        return THREE_LINES.search(self.logs()) is not None

    def tree(self) -> dict[int, str]:
        """Return the commands, by pid, of it and all processes below it, in any session, while their parents live."""
        found: dict[int, str] = {}
        pids = [self.pid]
        while pids:
            pid = pids.pop()
            found[pid] = command_of(pid)
            pids += children(pid)
        return found

    def interrupt(self) -> None:
        """Press Ctrl-C: send SIGINT to the process group in the terminal's foreground."""
        os.killpg(self.pid, signal.SIGINT)
        assert self.process is not None
        self.process.wait(10)

    def stop(self, timeout: float = 10, by: signal.Signals = signal.SIGINT) -> None:
        """Press Ctrl-C for the processes that a failed test has left, and kill those that remain."""
        tree = {}
        if self.process is not None and self.process.poll() is None:
            tree = self.tree()
            os.killpg(self.pid, by)
        super().stop(timeout, by)
        for pid in alive(tree):
            os.kill(pid, signal.SIGKILL)


def alive(tree: dict[int, str]) -> dict[int, str]:
    """Return the processes that still run with the same command."""
    return {pid: command for pid, command in tree.items() if command and command_of(pid) == command}


def command_of(pid: int) -> str:
    """Return the process's command line, or nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


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
        assert len(re.findall(r"open files: (?:up to|only) \d+ subscribers a worker", run.logs())) == 1
        page, follow, publish = printed[1], shlex.split(printed[2]), shlex.split(printed[3])
        base = f"http://127.0.0.1:{run.port}"
        assert page == f"{base}/"
        answer = client.request(base, "GET", "/")
        assert answer.status == 200
        assert b"<title>Throughline" in answer.body

        with subprocess.Popen([*follow, "--silent", "--max-time", "30"], stdout=subprocess.PIPE) as curl:
            assert curl.stdout
            lines = iter(curl.stdout.readline, b"")  # ends with curl, after --max-time at the latest
            assert b"event: sse.open\n" in lines
            said = subprocess.run([*publish, "--silent"], check=True, capture_output=True, timeout=10).stdout
            (id,) = json.loads(said)["ids"]
            assert f"id: {id}\n".encode() in lines
            assert next(lines) == b"data: hello\n"

            tree = run.tree()
            own_redis = [command for command in tree.values() if command.startswith("redis-server")]
            assert len(own_redis) == (store == "Redis of its own")
            since = time.monotonic()
            run.interrupt()  # while the stream is open
        wait_until(lambda: not alive(tree), 10 - (time.monotonic() - since), what=f"{tree} have ended")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # passes over TIME_WAIT, not over a listener
            sock.bind(("127.0.0.1", run.port))
