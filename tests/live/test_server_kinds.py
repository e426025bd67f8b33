"""The log says why a server cannot hold streams.

At SIGTERM, each kind of gunicorn worker ends its streams with a close event.
"""

from __future__ import annotations

import re
import signal
import threading
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.app_servers import FlaskRun, OneThread, PyWSGI, Waitress, WSGIRef
from tests.live.load import APP, ENV
from tests.publishing import publish
from tests.servers import Gunicorn

WARNING = re.compile(r"^.*(?:answers one request at a time|has a fixed number of threads).*$", re.MULTILINE)
OURS = 'worker_class = "sse.worker.Worker"'
UNABLE = {
    "sync": (r"gunicorn/[\d.]+ answers one request at a time", f": set {OURS}"),
    "gthread": (r"gunicorn/[\d.]+ has a fixed number of threads", f": set {OURS}, or have more threads"),
    "waitress": ("waitress has a fixed number of threads", f": use gunicorn with {OURS}, or have more threads"),
    "one thread": (r"Werkzeug/[\d.]+ answers one request at a time", ": leave out --without-threads"),
    "wsgiref": (r"WSGIServer/[\d.]+ answers one request at a time", f": use gunicorn with {OURS}"),
}
ABLE = ("handed off", "gevent", "flask run", "pywsgi")
WORKERS = {
    "handed off": (),
    "gevent": ("-k", "gevent"),
    "gthread": ("-k", "gthread", "--threads", "4"),
    "sync": ("-k", "sync"),
}


def make(kind: str, directory: Path) -> Gunicorn:
    others = {
        "flask run": FlaskRun,
        "one thread": OneThread,
        "waitress": Waitress,
        "wsgiref": WSGIRef,
        "pywsgi": PyWSGI,
    }
    if kind in others:
        return others[kind](directory, APP, ENV)
    return Gunicorn(directory, APP, ENV, arguments=WORKERS[kind])


def open_and_close(server: Gunicorn) -> None:
    with Stream(server.url, {"channel": "a"}) as stream:
        opened = stream.next()
        assert opened
        assert opened.event == "sse.open"


def wait_for_nothing(server: Gunicorn) -> None:
    [place] = publish(server, "a", "before")
    assert client.poll(server.url, ["a"], place, timeout=1).json()["events"] == []


def warnings(server: Gunicorn) -> list[str]:
    return WARNING.findall(server.log.read_text())


@pytest.mark.parametrize("kind", UNABLE)
def test_the_first_stream_has_the_log_name_a_server_that_cannot_hold_it_and_the_remedy(
    kind: str, tmp_path: Path
) -> None:
    with make(kind, tmp_path) as server:
        client.poll(server.url, ["a"], timeout=0)
        assert not warnings(server)  # it held nothing
        open_and_close(server)
        [warning] = warnings(server)
        what, remedy = UNABLE[kind]
        assert re.search(what, warning)
        assert remedy in warning


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_a_poll_that_waits_has_the_log_say_so_too_and_nothing_says_it_twice(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path) as server:
        wait_for_nothing(server)
        assert len(warnings(server)) == 1
        open_and_close(server)
        wait_for_nothing(server)
        assert len(warnings(server)) == 1


@pytest.mark.parametrize("kind", ABLE)
def test_nothing_is_said_of_a_server_that_holds_streams(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path) as server:
        open_and_close(server)
        wait_for_nothing(server)
        assert not warnings(server)


@pytest.mark.parametrize("kind", WORKERS)
def test_at_sigterm_each_of_gunicorn_s_workers_ends_a_stream_with_drain(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path) as server, Stream(server.url, {"channel": "a"}) as stream:
        opened = stream.next()
        assert opened
        server.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
        assert stream.until("sse.close").json()["reason"] == "drain"
        assert list(stream.events()) == []
        assert stream.complete


@pytest.mark.parametrize("kind", WORKERS)
def test_at_sigterm_each_of_gunicorn_s_workers_answers_a_poll_that_waits(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path) as server:
        [place] = publish(server, "a", "before")
        stop = threading.Timer(0.5, lambda: server.process.send_signal(signal.SIGTERM))  # type: ignore[union-attr]
        stop.start()
        answer = client.poll(server.url, ["a"], place, timeout=20)
        stop.join()
        assert (answer.status, answer.json()["events"], answer.json()["last_event_id"]) == (200, [], place)
