"""The worker finds the service in the app, however the app is wrapped or mounted.

Without a service, the worker serves the app and logs that once.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.app_servers import FewFilesGunicorn
from tests.live.load import ENV, GREENLETS
from tests.servers import Gunicorn, wait_until

FILES = 400
ALLOWED = 210  # of the 350 that are not the worker's own, 70 are for other requests and 70 for those between two


def started(directory: Path, app: str, arguments: Sequence[str] = (), env: Mapping[str, str] = ENV) -> Gunicorn:
    return FewFilesGunicorn(directory, f"tests.live.apps.embedded:{app}()", env, arguments=arguments, files=FILES)


@pytest.mark.parametrize("arguments", [(), GREENLETS], ids=["handed off", "greenlets"])
@pytest.mark.parametrize("app", ["plain", "inside", "closure", "function", "instance", "bodies", "mounted"])
def test_one_service_is_found_and_bounded(tmp_path: Path, app: str, arguments: Sequence[str]) -> None:
    with started(tmp_path, app, arguments) as server:
        told = client.request(server.url, "GET", "/there/told" if app == "mounted" else "/told").json()
        assert told == {"most": ALLOWED, "admits": not arguments}
        assert f"{FILES} open files: only {ALLOWED} subscribers a worker, not 10000" in server.logs()
        assert "has no SSE" not in server.logs()
        assert "Traceback" not in server.logs()


@pytest.mark.parametrize("app", ["plain", "inside", "closure", "function", "instance", "bodies", "mounted", "late"])
def test_streams_are_told_at_the_end_of_the_worker(tmp_path: Path, app: str) -> None:
    path = "/there/sse/stream" if app == "mounted" else "/sse/stream"
    with started(tmp_path, app) as server, Stream(server.url, {"channel": "a"}, path=path) as stream:
        stream.until("sse.open")
        server.stop(by=signal.SIGTERM)
        assert stream.until("sse.close").json()["reason"] == "drain"
        assert stream.next() is None
        assert stream.complete
        assert "are cut" not in server.logs()


@pytest.mark.parametrize("app", ["two", "two_within"])
def test_several_services_share_the_files_and_are_all_drained(tmp_path: Path, app: str) -> None:
    with started(tmp_path, app) as server:
        for path in ("/told", "/there/told"):
            assert client.request(server.url, "GET", path).json() == {"most": ALLOWED // 2, "admits": True}
        assert f"only {ALLOWED} subscribers a worker in 2 apps together, not 20000" in server.logs()
        with (
            Stream(server.url, {"channel": "a"}) as one,
            Stream(server.url, {"channel": "a"}, path="/there/sse/stream") as other,
        ):
            for stream in (one, other):
                stream.until("sse.open")
            server.stop(by=signal.SIGTERM)
            for stream in (one, other):
                assert stream.until("sse.close").json()["reason"] == "drain"


@pytest.mark.parametrize("arguments", [(), GREENLETS], ids=["handed off", "greenlets"])
@pytest.mark.parametrize("app", ["none", "late"])
def test_an_app_without_a_service_is_served_and_the_log_says_so_once(
    tmp_path: Path, app: str, arguments: Sequence[str]
) -> None:
    server = started(tmp_path, app, arguments)
    server.workers = 2
    with server:
        assert client.request(server.url, "GET", "/" if app == "none" else "/told").status == 200
        server.stop(by=signal.SIGTERM)
    assert server.log.read_text().count("has no SSE") == 1
    assert "Traceback" not in server.logs()


def test_services_over_redis_connect_at_the_start(tmp_path: Path) -> None:
    nowhere = "redis://127.0.0.1:1/0"
    with started(tmp_path, "two", env=ENV | {"SSE_REDIS_URL": nowhere}) as server:
        wait_until(lambda: server.log.read_text().count("the store is away") == 2)
