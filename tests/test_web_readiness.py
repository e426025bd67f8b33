"""The probe of a load balancer: which reasons make a process unready, and which are told only."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.conftest import MakeApp
from tests.servers import RedisServer, wait_until

READY = (200, True, [])


def probe(client: FlaskClient, path: str = "/sse/ready", **options: Any) -> tuple[int, bool, list[str]]:
    """Return the status, whether the process is ready, and the codes of the reasons."""
    answer = client.get(path, **options)
    assert answer.content_type == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    told = answer.get_json()
    assert all(reason["message"] for reason in told["reasons"])
    return answer.status_code, told["ready"], [reason["code"] for reason in told["reasons"]]


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """Let this process open so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = [os.open(os.devnull, os.O_RDONLY)]
    while spare[-1] + 1 - spare[0] != len(spare):  # until the numbers below are all taken
        spare.append(os.dup(spare[0]))
    spare += [os.dup(spare[0]) for _ in range(count)]
    top = spare[-1] + 1
    for fd in spare[-count:] if count else ():
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in spare[: len(spare) - count]:
            os.close(fd)


def test_the_memory_store_is_ready_at_once(make_app: MakeApp) -> None:
    client = make_app().test_client()
    assert probe(client) == READY
    assert client.get("/sse/health").text == "ok"
    assert client.head("/sse/ready").status_code == 200
    assert client.post("/sse/ready").status_code == 405


def test_each_app_has_its_probes_under_its_prefix(make_app: MakeApp) -> None:
    assert probe(make_app(SSE_PREFIX="/push").test_client(), "/push/ready") == READY


def test_several_processes_with_the_memory_store_are_not_ready(make_app: MakeApp) -> None:
    client = make_app().test_client()
    assert probe(client, environ_overrides={"wsgi.multiprocess": True}) == (503, False, ["memory_store"])


def test_a_store_is_waited_for_until_it_was_reached_and_told_of_when_it_goes(make_app: MakeApp, tmp_path: Path) -> None:
    store = RedisServer(tmp_path)
    client = make_app(SSE_REDIS_URL=store.url).test_client()
    assert probe(client) == (503, False, ["store"])
    assert str(store.port) not in client.get("/sse/ready").text
    with store:
        wait_until(lambda: probe(client) == READY, 5)
        store.kill()
        wait_until(lambda: probe(client) != READY, 5)
        assert probe(client) == (200, True, ["store"])
        assert client.get("/sse/health").status_code == 200
        store.start()
        wait_until(lambda: probe(client) == READY, 5)


def test_a_process_that_ends_is_not_ready(make_app: MakeApp) -> None:
    app = make_app(SSE_REDIS_URL="redis://127.0.0.1:1")
    app.extensions["sse"].is_ending = True
    assert probe(app.test_client()) == (503, False, ["drain"])


@pytest.mark.parametrize(("left", "expected"), [(7, (503, False, ["files"])), (8, READY)])
def test_a_process_without_files_for_more_connections_is_not_ready(
    make_app: MakeApp, left: int, expected: tuple[int, bool, list[str]]
) -> None:
    client = make_app().test_client()
    assert probe(client) == READY
    with files_left(left):
        assert probe(client) == expected
    assert probe(client) == READY


def test_a_process_that_is_full_is_ready_because_it_still_takes_publications(make_app: MakeApp) -> None:
    client = make_app(SSE_MAX_SUBSCRIBERS=1, SSE_PUBLIC="a").test_client()
    response = client.get("/sse/stream?channel=a")
    try:
        next(response.iter_encoded())
        assert probe(client) == (200, True, ["full"])
    finally:
        response.close()
    assert probe(client) == READY
