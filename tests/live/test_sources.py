"""Sources under real servers: they begin, deliver, end with their `finally`, and are taken over in a drain."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.client import Event, Stream, request
from tests.live.app_servers import FlaskRun, Waitress
from tests.live.test_source_storm import APP, LATEST, LINGER, NOISE, calls
from tests.servers import Gunicorn, RedisServer, wait_until

AT_ONCE = 1.0  # seconds; the next value of a slow source would come in an hour
KINDS = ("handed off", "gevent", "gthread", "waitress", "flask run")


def make(kind: str, directory: Path, *, workers: int = 1, **env: str) -> Gunicorn:
    env = {"SSE_PUBLIC": "*", "UPSTREAM_LOG": str(directory / "upstream"), **env}
    if kind in ("waitress", "flask run"):
        return (Waitress if kind == "waitress" else FlaskRun)(directory, APP, env)
    arguments = {"handed off": (), "gevent": ("-k", "gevent"), "gthread": ("-k", "gthread", "--threads", "4")}[kind]
    return Gunicorn(directory, APP, env, workers=workers, arguments=arguments)


def next_value(stream: Stream, timeout: float = 10) -> Event:
    """Return the next event that is not the service's own."""
    return next(event for event in stream.events(timeout) if not event.event.startswith("sse."))


def next_value_of(log: Path, stream: Stream) -> Event:
    """Return the next value of a source. A busy machine may hold up the source, but what it gives has to come."""
    for _ in range(3):
        asked_at = time.monotonic()
        with contextlib.suppress(TimeoutError):
            return next_value(stream)
        late = [call for call in calls(log) if call.what == "call" and asked_at < call.at < time.monotonic() - 2]
        assert not late, f"the source has given values that did not come: {late}"
    raise TimeoutError("the source stands still")


def opened(stream: Stream) -> Event:
    event = stream.next()
    assert event
    assert event.event == "sse.open"
    return event


@pytest.mark.parametrize("kind", KINDS)
def test_every_server_runs_a_source_while_somebody_listens(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "upstream"
    with make(kind, tmp_path) as server:
        assert not calls(log)
        with Stream(server.url, {"channel": "prices/acme"}) as first:
            assert opened(first).json()["channels"]["prices/acme"]["source"] == "up"
            runners = {next_value_of(log, first).json()["runner"] for _ in range(5)}
            with Stream(server.url, {"channel": "prices/acme"}) as second:
                runners.add(next_value_of(log, second).json()["runner"])
        left_at = time.monotonic()
        assert len(runners) == 1
        (end,) = wait_until(lambda: calls(log, "finally"), LATEST + 5)
        assert {end.runner} == runners
        assert left_at + LINGER - 0.5 < end.at
        # A threaded server notices at its next heartbeat that a client has gone.
        assert kind not in ("handed off", "gevent") or end.at < left_at + LATEST + NOISE


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_subscriber_gets_the_newest_value_at_once(tmp_path: Path, kind: str) -> None:
    with make(kind, tmp_path) as server, Stream(server.url, {"channel": "slow/acme"}) as first:
        value = next_value(first)
        with Stream(server.url, {"channel": "slow/acme"}) as second:
            began = time.monotonic()
            assert next_value(second, AT_ONCE).id == value.id
            assert time.monotonic() - began < AT_ONCE


def test_a_source_that_waits_for_an_hour_is_cut_when_nobody_listens(tmp_path: Path) -> None:
    log = tmp_path / "upstream"
    with make("handed off", tmp_path) as server:
        with Stream(server.url, {"channel": "slow/acme"}) as stream:
            next_value(stream)
        left_at = time.monotonic()
        (end,) = wait_until(lambda: calls(log, "finally"), LATEST + 5)
        assert left_at + LINGER - 0.5 < end.at < left_at + LATEST + NOISE
        assert "Traceback" not in server.logs()


def test_a_worker_that_drains_gives_its_sources_to_another_at_once(tmp_path: Path, redis_url: str) -> None:
    log = tmp_path / "upstream"
    with make("handed off", tmp_path, workers=2, SSE_REDIS_URL=redis_url, SSE_DRAIN="8") as server:
        streams: list[Stream] = []
        wait_until(lambda: streams.append(Stream(server.url, {"channel": "slow/acme"})) or workers(streams) == 2, 10)
        (runs,) = wait_until(lambda: calls(log), 5)
        began = time.monotonic()
        os.kill(runs.pid, signal.SIGTERM)
        _, other = wait_until(lambda: found if len(found := calls(log)) == 2 else None, 10)
        (end,) = wait_until(lambda: calls(log, "finally"), 5)
        assert other.pid != runs.pid
        assert end.runner == runs.runner
        assert end.at - began < 1 + NOISE
        assert other.at - began < 2 + NOISE
        for stream in streams:
            stream.close()


def workers(streams: list[Stream]) -> int:
    return len({stream.headers["X-Worker"] for stream in streams})


def test_a_source_that_blocks_the_loop_is_named_in_the_log(tmp_path: Path) -> None:
    with make("handed off", tmp_path) as server, Stream(server.url, {"channel": "blocking/acme"}) as stream:
        next_value(stream)
        wait_until(lambda: "loop was blocked" in server.logs(), 5)
        line = next(line for line in server.logs().splitlines() if "loop was blocked" in line)
        assert "blocking/acme" in line


def test_a_source_or_run_that_never_waits_leaves_time_to_others(tmp_path: Path) -> None:
    """With the memory store, not even to store a value waits."""
    with (
        make("handed off", tmp_path) as server,
        Stream(server.url, {"channel": "eager/nothing"}) as nothing,
        Stream(server.url, {"channel": "eager/value"}) as value,
    ):
        opened(nothing)
        next_value(value)
        assert request(server.url, "GET", "/eager", timeout=5).status == 200
        for _ in range(5):
            time.sleep(0.2)
            assert (
                request(server.url, "GET", "/sse/poll", {"channel": "other", "timeout": "0"}, timeout=5).status == 200
            )


def test_the_reloaders_parent_runs_no_source(tmp_path: Path) -> None:
    class Reloading(FlaskRun):
        def command(self) -> list[str]:
            return [*super().command(), "--debug"]

        def stop(self, *_: object) -> None:
            self.kill()  # with the child, which would outlive its parent

    env = {"SSE_PUBLIC": "*", "UPSTREAM_LOG": str(tmp_path / "upstream")}
    with Reloading(tmp_path, APP, env) as server, Stream(server.url, {"channel": "slow/acme"}) as stream:
        next_value(stream)
        (call,) = calls(tmp_path / "upstream")
        assert call.pid == int(stream.headers["X-Worker"]) != server.pid


def test_a_redis_that_hangs_does_not_keep_a_worker_from_its_goodbyes(tmp_path: Path) -> None:
    """The lease of the source cannot be given up then, and the streams do not wait for that."""
    with RedisServer(tmp_path) as redis, make("handed off", tmp_path, SSE_REDIS_URL=redis.url) as server:
        with Stream(server.url, {"channel": "slow/acme"}) as stream:
            next_value(stream)
            os.kill(redis.pid, signal.SIGSTOP)
            began = time.monotonic()
            os.kill(server.pid, signal.SIGTERM)
            assert stream.until("sse.close").json()["reason"] == "drain"
            assert time.monotonic() - began < 1 + NOISE
            wait_until(lambda: not server.worker_pids(), 10)
            assert time.monotonic() - began < 2 + NOISE
