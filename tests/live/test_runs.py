"""Runs under gunicorn: each ends, at every reader and on both transports, whatever becomes of workers and of Redis."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sse import Publisher
from tests import client
from tests.live.run_readers import RunReader
from tests.servers import Gunicorn, RedisServer, wait_until
from tests.tokens import KEY

APP = "tests.live.apps.running:application"
LOST_WITHIN = 12.0  # seconds
GRACE = 8  # seconds, in which a run of 60 words has time to end, also on a busy machine


class Service:
    """Two workers over a Redis of their own, and readers of the runs on both transports."""

    def __init__(self, directory: Path, server: Gunicorn, redis: RedisServer) -> None:
        self.server, self.redis = server, redis
        self.notes = directory / "notes"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, path: str, **params: object) -> dict[str, object]:
        answer = client.request(self.server.url, "GET", path, {name: str(value) for name, value in params.items()})
        assert answer.status == 200, answer.body
        return dict(answer.json())

    def run(self, channel: str, **params: object) -> int:
        """Begin a run, and return the process in which it is."""
        answer = self.ask(f"/run/{channel}", **params)
        assert answer["began"] is True
        return int(str(answer["pid"]))

    def readers(self, channel: str, each: int = 2) -> list[RunReader]:
        """Return readers that wait or read already."""
        made = [RunReader(self.server.url, channel, kind) for kind in ("stream", "poll") for _ in range(each)]  # type: ignore[arg-type]
        for reader in made:
            self._stack.enter_context(reader)
        wait_until(lambda: all(reader.last_event_id for reader in made))
        return made

    def has_noted(self, what: str) -> bool:
        return self.notes.exists() and what in self.notes.read_text().splitlines()


@contextlib.contextmanager
def serving(
    tmp_path: Path, workers: int = 2, durable: bool = False, arguments: Sequence[str] = (), **settings: object
) -> Iterator[Service]:
    env = {"SSE_PUBLIC": "*", "SSE_PUBLISH_KEYS": KEY, "SSE_HEARTBEAT": "3", "SSE_RETRY": "100"}
    env |= {name: str(value) for name, value in settings.items()}
    with (
        RedisServer(tmp_path, appendonly="yes" if durable else "no", appendfsync="always") as redis,
        Gunicorn(
            tmp_path,
            APP,
            env | {"SSE_REDIS_URL": redis.url, "NOTES": str(tmp_path / "notes")},
            workers=workers,
            arguments=arguments,
        ) as server,
        Service(tmp_path, server, redis) as service,
    ):
        yield service


def words(count: int) -> str:
    return "".join(f"{number} " for number in range(count))


def whole_words(text: str) -> int:
    """Return how many words a text has, which has to be the beginning of the whole text."""
    assert words(1_000_000).startswith(text), f"a text with a hole: {text[:200]!r}"
    return text.count(" ")


def all_ended(readers: list[RunReader], reason: str, timeout: float) -> None:
    wait_until(lambda: all(reader.reason for reader in readers), timeout, what=f"{reason} at all readers")
    assert [reader.reason for reader in readers] == [reason] * len(readers), [reader.faults for reader in readers]


def test_every_reader_has_the_whole_text_and_the_end(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        readers = service.readers("a")
        service.run("a", count=100, every=0.02)
        all_ended(readers, "done", 10)
        assert {reader.text for reader in readers} == {words(100)}
        assert not any(reader.resets for reader in readers), "readers that waited before the run heard a reset"
        assert service.ask("/run/a")["began"] is False
        late = service.readers("a")
        all_ended(late, "done", 5)
        assert {reader.text for reader in late} == {words(100)}


@pytest.mark.parametrize("workers", [2, 1])
@pytest.mark.parametrize("delay", [0, 60], ids=["in mid-run", "before its first write"])
def test_a_killed_worker_s_run_is_lost_at_every_reader(tmp_path: Path, delay: float, workers: int) -> None:
    with serving(tmp_path, workers=workers) as service:
        pid = service.run("a", delay=delay)
        readers = service.readers("a", each=4)
        if not delay:
            wait_until(lambda: all(reader.text for reader in readers))
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        all_ended(readers, "lost", LOST_WITHIN)
        assert max(reader.ended_at for reader in readers) - killed < LOST_WITHIN
        print(sorted(round(reader.ended_at - killed, 1) for reader in readers))
        assert min(reader.ended_at for reader in readers) - killed > 3, "it was lost before its lease had run out"
        assert len({whole_words(reader.text) for reader in readers}) == 1


def test_a_run_that_is_frozen_is_lost_and_writes_no_more_when_it_wakes(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        pid = service.run("a")
        other = next(worker for worker in service.server.worker_pids() if worker != pid)
        assert other
        os.kill(pid, signal.SIGSTOP)
        try:
            reader = service.readers("a", each=0) or [RunReader(service.server.url, "a", "poll")]
            with reader[0] as one:
                wait_until(lambda: one.reason == "lost", LOST_WITHIN + 3, what="the end")
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: service.has_noted(f"closed a {pid}"), 10)
        late = service.readers("a", each=1)
        all_ended(late, "lost", 5)
        assert {reader.text for reader in late} == {one.text}


@pytest.mark.parametrize(("count", "reason"), [(60, "done"), (1_000_000, "interrupted")])
def test_a_worker_that_is_stopped_gives_its_run_time(tmp_path: Path, count: int, reason: str) -> None:
    with serving(tmp_path, SSE_RUN_GRACE=GRACE) as service:
        pid = service.run("a", count=count)
        readers = service.readers("a")
        wait_until(lambda: all(reader.text for reader in readers))
        os.kill(pid, signal.SIGTERM)
        stopped = time.monotonic()
        all_ended(readers, reason, GRACE + 5)
        wait_until(lambda: pid not in service.server.worker_pids(), 5)
        assert time.monotonic() - stopped < GRACE + 2
        assert service.has_noted(f"closed a {pid}")
        read = {whole_words(reader.text) for reader in readers}
        assert read == {count} if reason == "done" else min(read) > 50
        assert len(read) == 1


def test_streams_of_a_worker_that_is_stopped_stay_until_its_run_ends(tmp_path: Path) -> None:
    with serving(tmp_path, workers=1, SSE_RUN_GRACE=10) as service:
        pid = service.run("a", count=60)
        with client.Stream(service.server.url, {"channel": "a"}) as stream:
            stream.until("sse.open")
            os.kill(pid, signal.SIGTERM)
            assert stream.until("sse.end", 10).json() == {"channel": "a", "reason": "done"}


def test_without_runs_a_worker_ends_as_soon_as_ever(tmp_path: Path) -> None:
    with serving(tmp_path, workers=1) as service, client.Stream(service.server.url, {"channel": "a"}) as stream:
        stream.until("sse.open")
        [pid] = service.server.worker_pids()
        os.kill(pid, signal.SIGTERM)
        begun = time.monotonic()
        assert stream.until("sse.close").json()["reason"] == "drain"
        wait_until(lambda: pid not in service.server.worker_pids(), 5)
        assert time.monotonic() - begun < 2


def test_a_run_waits_while_redis_is_away_and_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path, durable=True) as service:
        service.run("a", count=150, every=0.02)
        readers = service.readers("a")
        wait_until(lambda: all(whole_words(reader.text) > 20 for reader in readers))
        service.redis.restart(down=10)
        all_ended(readers, "done", 30)
        assert {reader.text for reader in readers} == {words(150)}


def test_a_run_survives_a_redis_that_hangs(tmp_path: Path) -> None:
    """A hanging Redis neither answers nor refuses, and the leases run out meanwhile."""
    with serving(tmp_path) as service:
        service.run("a", count=400, every=0.02)
        readers = service.readers("a")
        for seconds in (4.5, 8):
            seen = readers[0].text
            wait_until(lambda seen=seen: len(readers[0].text) > len(seen) + 50)
            os.kill(service.redis.pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(service.redis.pid, signal.SIGCONT)
        all_ended(readers, "done", 40)
        assert {reader.text for reader in readers} == {words(400)}


@pytest.mark.parametrize("when", ["before the run", "in mid-run"])
def test_a_redis_from_a_stale_file_ends_the_run_as_failed_without_a_hole(tmp_path: Path, when: str) -> None:
    with serving(tmp_path) as service:
        if when == "before the run":
            service.redis.snapshot()
        service.run("a")
        readers = service.readers("a")
        wait_until(lambda: all(whole_words(reader.text) > 20 for reader in readers))
        if when == "in mid-run":
            service.redis.snapshot()
            seen = max(whole_words(reader.text) for reader in readers)
            wait_until(lambda: all(whole_words(reader.text) > seen + 20 for reader in readers))
        service.redis.restart(lost_writes=True)
        all_ended(readers, "failed", 15)
        assert len({whole_words(reader.text) for reader in readers}) == 1


@pytest.mark.parametrize("every", [0.05, 60], ids=["while it writes", "while it waits for its next word"])
def test_a_stop_from_another_process_ends_the_channel_within_a_second(tmp_path: Path, every: float) -> None:
    with serving(tmp_path) as service, Publisher(redis_url=service.redis.url) as other:
        pid = service.run("a", every=every)
        readers = service.readers("a")
        wait_until(lambda: all(reader.text for reader in readers))
        assert other.stop("a") is True
        stopped = time.monotonic()
        all_ended(readers, "stopped", 5)
        assert max(reader.ended_at for reader in readers if reader.transport == "stream") - stopped < 1
        assert max(reader.ended_at for reader in readers) - stopped < 1
        wait_until(lambda: service.has_noted(f"closed a {pid}"), 5)
        assert other.stop("a") is False


def test_a_stop_in_the_same_worker_closes_a_waiting_generator_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, workers=1) as service:
        pid = service.run("a", delay=60)
        wait_until(lambda: service.has_noted(f"begun a {pid}"))
        assert service.ask("/stop/a")["stopped"] is True
        wait_until(lambda: service.has_noted(f"closed a {pid}"), 1)


def test_a_run_over_its_bytes_fails_loudly(tmp_path: Path) -> None:
    with serving(tmp_path, SSE_RUN_BYTES=65_536) as service:
        pid = service.run("a", every=0, size=1000)
        readers = service.readers("a")
        all_ended(readers, "failed", 10)
        assert len({reader.text for reader in readers}) == 1
        assert 50_000 < len(readers[0].text) < 65_536
        wait_until(lambda: service.has_noted(f"closed a {pid}"), 5)
        wait_until(lambda: "SSE_RUN_BYTES" in service.server.logs())


def test_a_run_begun_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.run("a")
        readers = service.readers("a")
        wait_until(lambda: all(whole_words(reader.text) > 20 for reader in readers))
        service.run("a", count=50, every=0.01, restart=1)
        all_ended(readers, "done", 10)
        assert {reader.text for reader in readers} == {words(50)}
        assert all(reader.resets for reader in readers)


@pytest.mark.parametrize(("count", "reason"), [(60, "done"), (1_000_000, "interrupted")])
def test_gunicorn_s_own_worker_gives_its_runs_time_too(tmp_path: Path, count: int, reason: str) -> None:
    threads = ("-k", "gthread", "--threads", "16")
    with serving(tmp_path, arguments=threads, SSE_RUN_GRACE=GRACE) as service:
        pid = service.run("a", count=count)
        readers = service.readers("a", each=1)
        wait_until(lambda: all(reader.text for reader in readers))
        os.kill(pid, signal.SIGTERM)
        stopped = time.monotonic()
        all_ended(readers, reason, GRACE + 5)
        wait_until(lambda: pid not in service.server.worker_pids(), 5)
        assert time.monotonic() - stopped < GRACE + 2


def test_a_page_that_is_reloaded_at_any_moment_has_the_whole_text(tmp_path: Path) -> None:
    rng = random.Random()
    with serving(tmp_path) as service, contextlib.ExitStack() as stack:
        service.run("a", count=300, every=0.02)
        pages: list[RunReader] = []
        for number in range(20):
            time.sleep(rng.uniform(0, 0.5))
            page = RunReader(service.server.url, "a", "stream" if number % 2 else "poll")
            pages.append(stack.enter_context(page))
        all_ended(pages, "done", 20)
        assert {page.text for page in pages} == {words(300)}
        assert not any(page.resets for page in pages)
        after = service.readers("a")
        all_ended(after, "done", 5)
        assert {page.text for page in after} == {words(300)}
