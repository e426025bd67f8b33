"""A reload loads the new code of the app and of all of sse, and never a mixture of old and new code."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import client
from tests.client import Stream
from tests.live.copied_tree import Copy, copy_tree
from tests.live.load import Follower
from tests.publishing import publish, storm
from tests.servers import ROOT, RedisServer, wait_until

PROBE = """
import os
import sys

from app import create_app

application = create_app()


@application.get("/seen")
def seen():
    new = sorted(name for name, module in sys.modules.items() if hasattr(module, "NEW"))
    return {
        "new": new,
        "settings": os.environ.get("SETTINGS_ARE", "old"),
        "from": sys.modules["sse"].__file__,
        "is one": type(application.extensions["sse"]) is sys.modules["sse.service"].Service,
    }


@application.after_request
def name_worker(response):
    response.headers["X-Worker"] = str(os.getpid())
    return response
"""
SETTINGS = """

_before = post_worker_init


def post_worker_init(worker):
    _before(worker)
    os.environ["SETTINGS_ARE"] = "new"
    worker.log.info("the new filter is there: %s", "Bearer of good news")


def _is_news(record):
    record.msg, record.args = record.getMessage().replace("Bearer of good", "[new filter]"), ()
    return True
"""
EDITED = (
    *("__init__", "event", "log", "server/__init__", "server/framing", "server/head", "server/loop"),
    *("server/responder", "server/rows", "server/worker", "service", "stores/redis"),
)
NEW = sorted(
    ["app", "sse", "sse.server"]
    + [f"sse.{name.replace('/', '.')}" for name in EDITED if not name.endswith("__init__")]
)  # fmt: skip


class Probed(Copy):
    """The service, which reports the versions of the code that it runs."""

    name = "probed"

    def __init__(self, directory: Path, env: Mapping[str, str], arguments: Sequence[str] = ()) -> None:
        super().__init__(directory, "probe:application", env, arguments)
        (self.folder / "probe.py").write_text(PROBE)

    def seen(self) -> dict[str, Any]:
        answer: dict[str, Any] = client.request(self.url, "GET", "/seen").json()
        assert answer.pop("from") == f"{self.folder}/sse/__init__.py"
        return answer

    def renew(self) -> None:
        """Edit all files that a reload has to load anew."""
        for name in EDITED:
            self.append(f"sse/{name}.py", "\nNEW = True\n")
        self.append("app.py", "\nNEW = True\n")
        self.append("gunicorn.conf.py", SETTINGS)
        self.edit("sse/server/responder.py", "Server: {response.version}", "Server: the new worker's")
        self.edit(
            "sse/server/framing.py",
            "def date() -> bytes:\n",
            'def date() -> bytes:\n    return b"the new fan-out\'s"\n',
        )

    def written_by(self) -> tuple[str | None, str | None]:
        """Return which code writes the answers, by its own report."""
        headers = client.request(self.url, "GET", "/healthz").headers
        return headers["Server"], headers["Date"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_runs_the_new_code_of_everything_and_streams_go_on(
    redis_server: RedisServer, tmp_path: Path, workers: int
) -> None:
    server = Probed(tmp_path, {"SSE_REDIS_URL": redis_server.url, "SSE_RETRY": "200"})
    server.workers = workers
    with server:
        assert server.seen() == {"new": [], "settings": "old", "is one": True}
        follower = Follower(server.url, ["a", "b"])
        follower.poll()
        with storm(server.url, ["a", "b"]) as publisher:
            follower.stream(lambda: follower.is_at(20))
            server.renew()
            server.reload()
            for _ in range(5):  # a new connection may meet each of the workers
                assert server.seen() == {"new": NEW, "settings": "new", "is one": True}
                assert server.written_by() == ("the new worker's", "the new fan-out's")
            follower.stream(lambda: follower.is_at(publisher.count))
            server.edit("sse/server/responder.py", "the new worker's", "the newest worker's")
            server.reload()
            assert server.written_by() == ("the newest worker's", "the new fan-out's")
            follower.stream(lambda: follower.is_at(publisher.count))
        follower.finish(publisher.count)
        assert len(set(follower.workers)) >= 3
        assert "the new filter is there: [new filter] news" in server.log.read_text()
        assert "Traceback" not in server.logs()


def test_a_stream_that_is_open_at_a_reload_is_told_and_resumes_on_the_new_code(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with (
        Probed(tmp_path, {"SSE_REDIS_URL": redis_server.url}) as server,
        Stream(server.url, {"channel": "a"}) as stream,
    ):
        stream.until("sse.open")
        server.renew()
        server.reload()
        assert stream.until("sse.close").json()["reason"] == "drain"
        publish(server, "a", "meanwhile")
        with Stream(server.url, {"channel": "a"}, last_event_id=stream.last_event_id) as resumed:
            assert resumed.until("sse.open").json()["channels"]["a"]["resumed"] is True
            assert [event.data for event in resumed.take(1)] == ["meanwhile"]


def test_the_master_keeps_nothing_of_sse(tmp_path: Path) -> None:
    server = Probed(tmp_path, {})
    server.append(
        "gunicorn.conf.py",
        "\ndef child_exit(server, worker):\n"
        "    server.log.info('the master has %s', sorted(name for name in sys.modules if name[:3] == 'sse'))\n",
    )
    with server:
        server.reload()
        wait_until(lambda: "the master has []\n" in server.log.read_text())


def test_a_worker_class_of_ones_own_stands_on_the_new_code(tmp_path: Path) -> None:
    server = Probed(tmp_path, {}, ["-k", "own.Own"])
    (server.folder / "own.py").write_text(
        "from sse.worker import Worker\n\n"
        "class Own(Worker):\n"
        "    def accepted(self, client, address):\n"
        "        self.log.info('accepted by my own worker')\n"
        "        super().accepted(client, address)\n"
    )
    with server:
        server.renew()
        server.reload()
        assert server.written_by() == ("the new worker's", "the new fan-out's")
        assert "accepted by my own worker" in server.logs()


IMPORTS = {"preload_app": "\npreload_app = True\n", "the settings import the app": "\nimport probe\n"}


@pytest.mark.parametrize("how", IMPORTS)
def test_an_app_that_the_master_has_imported_keeps_the_code_that_fits_it(tmp_path: Path, how: str) -> None:
    server = Probed(tmp_path, {})
    server.append("gunicorn.conf.py", IMPORTS[how])
    with server, Stream(server.url, {"channel": "a"}) as stream:
        stream.until("sse.open")
        assert "a reload brings no new code" in server.logs()
        publish(server, "a", "heard")
        assert [event.data for event in stream.take(1)] == ["heard"]
        for name in EDITED:
            server.append(f"sse/{name}.py", "\nNEW = True\n")
        server.edit("sse/server/framing.py", "def date() -> bytes:\n", 'def date() -> bytes:\n    return b"new"\n')
        server.reload()
        assert stream.until("sse.close").json()["reason"] == "drain"
        assert server.seen()["new"] == [], "the app has the old code, so all have it"
        assert server.written_by()[1] != "new"
        assert server.log.read_text().count("a reload brings no new code") == 1
        server.stop(by=signal.SIGTERM)
        assert "Traceback" not in server.log.read_text(), "workers end quietly"


def test_a_master_that_comes_to_import_the_app_says_so_and_has_it_all_new(tmp_path: Path) -> None:
    with Probed(tmp_path, {}) as server:
        server.append("gunicorn.conf.py", IMPORTS["preload_app"])
        server.renew()
        server.reload()
        assert server.seen() == {"new": NEW, "settings": "new", "is one": True}
        assert server.written_by() == ("the new worker's", "the new fan-out's")
        assert server.log.read_text().count("a reload brings no new code") == 1


HARMLESS = {
    "a hook after the fork imports the app": "\ndef post_fork(server, worker):\n    import probe\n",
    "the settings import a name": "\nfrom sse import StoreUnavailable, __version__\n",
}


@pytest.mark.parametrize("how", HARMLESS)
def test_other_imports_neither_keep_old_code_nor_mix_it(tmp_path: Path, how: str) -> None:
    server = Probed(tmp_path, {})
    server.append("gunicorn.conf.py", HARMLESS[how])
    with server:
        assert server.seen() == {"new": [], "settings": "old", "is one": True}
        server.renew()
        server.reload()
        assert server.seen() == {"new": NEW, "settings": "new", "is one": True}
        assert server.written_by() == ("the new worker's", "the new fan-out's")
        with Stream(server.url, {"channel": "a"}) as stream:
            stream.until("sse.open")
            server.stop(by=signal.SIGTERM)
            assert stream.until("sse.close").json()["reason"] == "drain"
        for wrong in ("a reload brings no new code", "has no SSE", "Traceback"):
            assert wrong not in server.log.read_text()


def check_before_reload(folder: Path, environ: Mapping[str, str]) -> int:
    """Run the command that the systemd unit runs before a reload. `environ` is the master's."""
    unit = (ROOT / "deploy/systemd/throughline.service").read_text()
    commands = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecReload=")]
    check, signals = commands
    assert signals == "/bin/kill -HUP $MAINPID"
    program, *arguments = shlex.split(check)
    assert program == "/opt/throughline/.venv/bin/python"
    with subprocess.Popen(["sleep", "60"], env=dict(environ)) as master:
        try:
            wait_until(lambda: Path(f"/proc/{master.pid}/cmdline").read_bytes().startswith(b"sleep"))
            filled = [str(master.pid) if argument == "$MAINPID" else argument for argument in arguments]
            env = {"PATH": os.environ["PATH"], "SSE_HEARTBEAT": "of today's file, which the workers do not have"}
            command = [sys.executable, *filled]
            return subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=60, check=False).returncode
        finally:
            master.kill()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    copy_tree(tmp_path / "tree")
    return tmp_path / "tree"


@pytest.mark.parametrize("fault", ["def broken(:\n", "import nothing_like_it\n", "raise ValueError('while it runs')\n"])
@pytest.mark.parametrize(
    "file", ["app.py", "wsgi.py", "gunicorn.conf.py", "sse/__init__.py", "sse/worker.py", "sse/server/loop.py"]
)
def test_systemd_does_not_reload_code_that_cannot_be_loaded(tree: Path, file: str, fault: str) -> None:
    with (tree / file).open("a") as opened:
        opened.write(fault)
    assert check_before_reload(tree, {}) == 1


def test_systemd_does_not_reload_what_refuses_the_master_s_settings(tree: Path) -> None:
    assert check_before_reload(tree, {"SSE_HEARTBEAT": "soon"}) == 3


def test_systemd_reloads_what_can_be_loaded(tree: Path) -> None:
    with (tree / "app.py").open("a") as opened:
        opened.write("import threading, time\n")
        opened.write("threading.Thread(target=time.sleep, args=(100,)).start()\n")  # which the check does not wait for
    assert check_before_reload(tree, {"SSE_HEARTBEAT": "20"}) == 0
