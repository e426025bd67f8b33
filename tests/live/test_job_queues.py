"""The recipes of docs/jobs.md, unchanged, with the real Celery and RQ and a Redis of their own as broker."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sse import Publisher
from sse.event import Event, Piece
from sse.stores import RedisStore, Standing
from tests.docs import code_blocks, section
from tests.servers import ROOT, RedisServer, children, wait_until

PAGE = (ROOT / "docs" / "jobs.md").read_text()
TASKS = 20
EVENTS = 30  # of each task

NUMBERED = f"""
import time
from tasks import StoreUnavailable, app, publisher

@app.task(autoretry_for=(StoreUnavailable,), default_retry_delay=0.2, max_retries=1000, retry_backoff=False)
def numbered(task):
    for number in range({EVENTS}):
        publisher.publish("numbers", f"{{task}}-{{number}}", idempotency_key=f"{{task}}-{{number}}")
        time.sleep(0.1)

@app.task
def slow(channel, first_only):
    import os, pathlib
    flag = pathlib.Path(first_only)
    with publisher.writing(channel, restart=True) as out:
        out.write(f"{{os.getpid()}} ")
        if not flag.exists():
            flag.write_text(str(os.getpid()))
            time.sleep(600)
        out.write("again")
"""


class Reading:
    """What the store has."""

    def __init__(self, url: str) -> None:
        self.store = RedisStore(url, ring=100_000, ring_ttl=3600)

    def standing(self, channel: str) -> Standing:
        [found] = self.store.standing([channel])
        assert isinstance(found, Standing)
        return found

    def events(self, channel: str) -> list[Event]:
        standing = self.standing(channel)
        if standing.run:
            start = standing.run.anchor
        else:
            [before] = self.store.before([(channel, 100_000)])
            if before is None:
                return []
            start = before  # type: ignore[assignment]
        events: list[Event] = []
        while True:
            [page] = self.store.read([(channel, start)], limit=1000)
            events += [entry.event for entry in page.entries]  # type: ignore[union-attr]
            if not page.more:  # type: ignore[union-attr]
                return events
            start = page.entries[-1].position  # type: ignore[union-attr]

    def text(self, channel: str) -> str:
        return "".join(event.data for event in self.events(channel) if isinstance(event, Piece))

    def end(self, channel: str) -> str | None:
        run = self.standing(channel).run
        return run.end if run else None


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RedisServer]:
    directory = tmp_path / "broker"
    directory.mkdir()
    with RedisServer(directory) as server:
        yield server


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def reading(redis: RedisServer) -> Iterator[Reading]:
    made = Reading(redis.url)
    yield made
    made.store.close()


def recipe(heading: str) -> str:
    (code,) = [code for language, code in code_blocks(section(PAGE, heading)) if language == "python"]
    return code


def environment(tmp_path: Path, broker: RedisServer, redis: RedisServer) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SSE_")}
    return kept | {
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "SSE_REDIS_URL": redis.url,
        "SSE_RING": "100000",
        "BROKER_URL": broker.url,
    }


@contextlib.contextmanager
def working(tmp_path: Path, env: dict[str, str], *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a worker of a queue. All of its processes end with the block."""
    with open(tmp_path / "worker.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def celery(tmp_path: Path, env: dict[str, str], processes: int) -> contextlib.AbstractContextManager[object]:
    (tmp_path / "tasks.py").write_text(recipe("Celery"))
    (tmp_path / "more_tasks.py").write_text(NUMBERED)
    options = ("--pool", "prefork", "-c", str(processes), "-l", "info", "--without-gossip", "--without-mingle")
    return working(tmp_path, env, "celery", "-A", "more_tasks", "worker", *options)


def send(tmp_path: Path, env: dict[str, str], *calls: str) -> None:
    code = "; ".join(["import tasks, more_tasks", *calls])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=60)


def progress(events: Sequence[Event]) -> list[str]:
    return [event.data for event in events if event.type == "progress"]


def test_a_task_of_celery_writes_a_run_and_publishes(
    tmp_path: Path, broker: RedisServer, redis: RedisServer, reading: Reading
) -> None:
    env = environment(tmp_path, broker, redis)
    with celery(tmp_path, env, 2):
        send(
            tmp_path, env, "tasks.report.delay('reports/1', 40)", "tasks.tell_paid.delay(7)", "tasks.tell_paid.delay(7)"
        )
        wait_until(lambda: reading.end("reports/1") == "done", 60)
        assert reading.text("reports/1") == "".join(f"row {row}\n" for row in range(40))
        assert progress(reading.events("reports/1")) == [f'{{"percent":{percent}}}' for percent in (0, 25, 50, 75)]
        time.sleep(1)
        assert reading.events("orders") == [Event({"number": 7}, "paid")], "two tasks with one key"


def test_a_task_that_is_delivered_again_begins_its_text_again(
    tmp_path: Path, broker: RedisServer, redis: RedisServer, reading: Reading
) -> None:
    env = environment(tmp_path, broker, redis)
    flag = tmp_path / "flag"
    with celery(tmp_path, env, 1):
        send(tmp_path, env, f"more_tasks.slow.delay('reports/1', {str(flag)!r})")
        pid = int(wait_until(lambda: flag.exists() and flag.read_text(), 60))  # type: ignore[arg-type]
        wait_until(lambda: reading.text("reports/1") == f"{pid} ")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: reading.end("reports/1") == "done", 30)
        found = re.fullmatch(r"([0-9]+) again", reading.text("reports/1"))
        assert found
        assert int(found[1]) != pid


def test_each_event_of_twenty_tasks_is_stored_once_although_redis_is_killed(
    tmp_path: Path, broker: RedisServer, redis: RedisServer, reading: Reading
) -> None:
    env = environment(tmp_path, broker, redis)
    with celery(tmp_path, env, 10):
        begin = [f"more_tasks.numbered.delay({task})" for task in range(TASKS)]
        send(tmp_path, env, *begin)
        wait_until(lambda: len(reading.events("numbers")) > 20, 60)
        for down in (0.0, 1.0, 3.0):
            redis.restart(down=down)
            time.sleep(1)
        send(tmp_path, env, *begin)  # each task once more
        expected = {f"{task}-{number}" for task in range(TASKS) for number in range(EVENTS)}
        wait_until(lambda: {event.data for event in reading.events("numbers")} == expected, 90)
        wait_until(lambda: (tmp_path / "worker.log").read_text().count(" succeeded in ") == 2 * TASKS, 60)
        assert Counter(event.data for event in reading.events("numbers")) == dict.fromkeys(expected, 1)
        assert "Retry in" in (tmp_path / "worker.log").read_text(), "no task met a Redis that was away"


def test_a_job_of_rq_writes_a_run_and_can_be_stopped(
    tmp_path: Path, broker: RedisServer, redis: RedisServer, reading: Reading
) -> None:
    env = environment(tmp_path, broker, redis)
    (tmp_path / "jobs.py").write_text(recipe("RQ"))
    with working(tmp_path, env, "rq.cli", "worker", "--url", broker.url) as worker:
        code = (
            "import sys, redis, rq; queue = rq.Queue(connection=redis.Redis.from_url(sys.argv[1]));"
            "queue.enqueue('jobs.report', 'reports/1', 30); queue.enqueue('jobs.report', 'reports/2', 1_000_000)"
        )
        subprocess.run([sys.executable, "-c", code, broker.url], cwd=tmp_path, env=env, check=True, timeout=60)
        wait_until(lambda: reading.end("reports/1") == "done", 60)
        assert reading.text("reports/1") == "".join(f"row {row}\n" for row in range(30))
        wait_until(lambda: reading.text("reports/2"), 30)
        with Publisher(redis_url=redis.url) as publisher:
            assert publisher.stop("reports/2")
        wait_until(lambda: not children(worker.pid), 10, what="the end of the stopped job")
        assert reading.end("reports/2") == "stopped"
    assert "Traceback" not in (tmp_path / "worker.log").read_text()
