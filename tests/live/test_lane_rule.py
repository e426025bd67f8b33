"""Under gunicorn, requests go past Flask only where the app does not see them, and the log says so at the start."""

from __future__ import annotations

import http.client
import os
import re
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import pytest

from tests.live.load import KEY, address
from tests.servers import Gunicorn, wait_until

pytestmark = pytest.mark.skipif(os.environ.get("LANE") == "off", reason="the lane of all servers is off")

ENV = {"SSE_PUBLIC": "*", "SSE_PUBLISH_KEYS": KEY}
ON = {"SSE_LANE": "on"}
POLL, STREAM = "/sse/poll?channel=a&timeout=0", "/sse/stream?channel=a"


class Case(NamedTuple):
    way: str
    line: str
    is_seen: bool
    env: Mapping[str, str] = {}
    arguments: tuple[str, ...] = ()


CASES = {
    "nothing": Case("nothing", r"INFO\] fast lane: on$", False),
    "off": Case("nothing", r"INFO\] fast lane: off, because SSE_LANE is off$", False, {"SSE_LANE": "off"}),
    "hook": Case("hook", r"INFO\] fast lane: off, because the app has the after_request hook mark \(", True),
    "hook, waived": Case("hook", r"WARNING\] fast lane: SSE_LANE=on, so .* after_request hook mark \(", False, ON),
    "signal": Case("signal", r"INFO\] fast lane: off, because mark_sent \(.*receives the signal request_fin", True),
    "view": Case("view", r"WARNING\] fast lane: off, because the view sse.stream is decorated", True, ON),
    "class": Case("class", r"WARNING\] fast lane: off, because a method of Marking is Marking.process_res", True, ON),
    "inner": Case("inner middleware", r"WARNING\] fast lane: off, because app.wsgi_app is a .*Middleware", True, ON),
    "middleware": Case("middleware", r"fast lane: off, because gunicorn serves a .*Middleware and not", True, ON),
    "access log": Case(
        "nothing",
        r"INFO\] fast lane: on, but each request has a greenlet, because gunicorn's access log is on$",
        False,
        arguments=("--access-logfile", "-"),
    ),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gunicorn]]:
    made = {
        name: Gunicorn(
            tmp_path_factory.mktemp("lane"),
            f"tests.live.apps.seeing:make('{case.way}')",
            ENV | case.env,
            arguments=case.arguments,
        )
        for name, case in CASES.items()
    }
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        list(pool.map(stack.enter_context, made.values()))
        yield made


def ask(server: Gunicorn, *requests: tuple[str, str], **headers: str) -> list[http.client.HTTPResponse]:
    """Return the answers to requests on one connection, without their bodies."""
    answers = []
    with closing(http.client.HTTPConnection(*address(server.url), timeout=20)) as connection:
        for method, path in requests:
            connection.request(method, path, b"x" if method == "POST" else None, headers)
            answers.append(answer := connection.getresponse())
            if "stream" not in path:
                answer.read()
    return answers


@pytest.mark.parametrize("name", CASES)
def test_the_log_says_at_the_start_whether_requests_go_past_flask_and_they_do(
    servers: dict[str, Gunicorn], name: str
) -> None:
    case, server = CASES[name], servers[name]
    assert re.search(case.line, server.logs(), re.MULTILINE)
    answers = ask(
        server, ("GET", POLL), ("GET", POLL), ("POST", "/sse/publish/a"), ("GET", STREAM), Authorization=f"Bearer {KEY}"
    )
    assert [answer.status for answer in answers] == [200, 200, 201, 200]
    assert [answer.getheader("X-Seen") == "1" for answer in answers] == [case.is_seen] * 4


def test_the_access_log_has_each_request(servers: dict[str, Gunicorn]) -> None:
    ask(servers["access log"], ("GET", POLL.replace("=a&", "=logged&")), ("GET", "/sse/health"))
    wait_until(
        lambda: '"GET /sse/health HTTP/1.1" 200' in servers["access log"].logs(), what="the last request is logged"
    )
    assert '"GET /sse/poll HTTP/1.1" 200' in servers["access log"].logs()


def test_a_hook_that_comes_late_sees_the_next_request(tmp_path: Any) -> None:
    with Gunicorn(tmp_path, "tests.live.apps.seeing:make('late')", ENV) as server:
        requests = [("GET", POLL), ("GET", POLL), ("GET", "/late"), ("GET", POLL), ("GET", POLL), ("GET", STREAM)]
        seen = [answer.getheader("X-Seen") for answer in ask(server, *requests)]
        assert seen == [None, None, "1", "1", "1", "1"]
        wait_until(lambda: "fast lane: off from now on, because" in server.logs(), what="the change is logged")
        assert server.logs().count("fast lane: off from now on") == 1


def test_a_session_is_refreshed_as_long_as_its_client_has_it(tmp_path: Any) -> None:
    with Gunicorn(tmp_path, "tests.live.apps.seeing:make('session')", ENV) as server:
        (login,) = ask(server, ("GET", "/login/ann"))
        cookie = (login.getheader("Set-Cookie") or "").partition(";")[0]
        refreshed = ask(server, ("GET", POLL), ("GET", STREAM), Cookie=cookie)
        assert all((answer.getheader("Set-Cookie") or "").startswith("session=") for answer in refreshed)
        assert [answer.getheader("Set-Cookie") for answer in ask(server, ("GET", POLL), ("GET", STREAM))] == [None] * 2


def test_one_worker_of_each_generation_says_whether_it_is_on(tmp_path: Any, redis_url: str) -> None:
    def lines() -> int:
        return server.logs().count("fast lane: on")

    with Gunicorn(tmp_path, "tests.live.apps.seeing:make('nothing')", ENV | {"SSE_REDIS_URL": redis_url}, 2) as server:
        wait_until(lambda: lines() == 1, what="the first generation says so")
        before = server.worker_pids()
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not {*before} & {*server.worker_pids()}, 30, what="the workers are replaced")
        wait_until(lambda: lines() == 2, what="the second generation says so")
