"""A request adds a bounded amount to a worker's memory, however much it asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import client
from tests.live.load import APP, ENV
from tests.publishing import publish
from tests.servers import Gunicorn, RedisServer

CHANNELS = [f"large/{number}" for number in range(50)]
EVENTS = 20
MOST = 4096  # kB that a request may add
# Each of 65,536 bytes: as plain as can be; in memory four bytes a character; in JSON six.
DATA = {"plain": "x" * 65_536, "wide": "\U0001f600" + "x" * 65_532, "escaped": "\x01" * 65_536}


@pytest.fixture(scope="module", params=[f"{data}, {store}" for data in DATA for store in ("memory", "redis")])
def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """A worker with CHANNELS that have EVENTS each. It has answered one small request."""
    data, _, store = request.param.partition(", ")
    directory = tmp_path_factory.mktemp("memory")
    environment = ENV | {"SSE_RING": str(EVENTS), "SSE_HEARTBEAT": "3", "SSE_LIMIT_PUBLISH_BYTES": ""}
    with RedisServer(directory) as redis:
        environment |= {"SSE_REDIS_URL": redis.url} if store == "redis" else {}
        with Gunicorn(directory, APP, environment) as server:
            channels = CHANNELS if data == "plain" else CHANNELS[:3]
            for _ in range(EVENTS + 1):  # so that the ring's anchor is an event's position, too
                for start in range(0, len(channels), 10):
                    publish(server, channels[start : start + 10], DATA[data])
            publish(server, ["small"], "x")
            for timeout in (0, 1):
                client.poll(server.url, ["small"], timeout=timeout, replay=1)
            with client.Stream(server.url, {"channel": "small", "replay": 1}) as stream:
                stream.take(1)
            yield server


def added(server: Gunicorn, ask: Callable[[], object]) -> int:
    """Return by how many kB the worker's memory has grown at most."""
    (pid,) = server.worker_pids()
    status = Path(f"/proc/{pid}/status")

    def resident(name: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1])

    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the highest mark begins anew (proc_pid_clear_refs(5))
    before = resident("VmRSS:")
    ask()
    return resident("VmHWM:") - before


def oldest(server: Gunicorn) -> str:
    """Return a last event id that is followed by all events of all channels but the first of each."""
    places = []
    for name in CHANNELS:
        answer = client.poll(server.url, [name], timeout=0, replay=EVENTS).json()
        if answer["events"]:
            places.append(answer["events"][0]["id"])
    return "~".join(places)


def names(place: str) -> list[str]:
    return [part.partition("=")[0] for part in place.split("~")]


@pytest.mark.parametrize("timeout", [0, 1])
def test_a_poll_takes_what_it_can_answer_and_not_all_that_there_is(worker: Gunicorn, timeout: int) -> None:
    place = oldest(worker)
    asked = {"channel": names(place), "timeout": timeout}
    answers = []

    def ask(**more: object) -> None:
        answers.append(client.request(worker.url, "GET", "/sse/poll", {**asked, **more}))

    assert added(worker, lambda: ask(replay=EVENTS)) <= MOST
    assert added(worker, lambda: ask(last_event_id=place)) <= MOST
    for answer in answers:
        assert answer.status == 200
        assert answer.json()["events"]
        assert answer.json()["more"]
        assert len(answer.body) <= (1 << 20) + 10_000


@pytest.mark.parametrize("how", ["replay", "resume"])
def test_a_stream_takes_what_it_writes_and_not_all_that_there_is(worker: Gunicorn, how: str) -> None:
    place = oldest(worker)
    params: dict[str, object] = {"channel": names(place)}
    params |= {"replay": EVENTS} if how == "replay" else {"last_event_id": place}

    def ask() -> None:
        with client.Stream(worker.url, params, timeout=30) as stream:
            received = 0
            deadline = time.monotonic() + 5
            while received < 3 << 20 and time.monotonic() < deadline:
                received += len(stream.sock.recv(1 << 20))

    assert added(worker, ask) <= MOST


def test_a_poll_that_waits_where_all_its_channels_are_current_reads_no_events(worker: Gunicorn) -> None:
    place = client.poll(worker.url, names(oldest(worker)), timeout=0).json()["last_event_id"]
    assert added(worker, lambda: client.poll(worker.url, names(place), place, timeout=1)) <= MOST // 4
