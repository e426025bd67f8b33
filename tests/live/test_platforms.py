"""The scoreboard example works on platforms that cannot run here, and the doctor names what they do to it.

tests/platforms.py simulates their fronts, with their times scaled down. All of them run side by side: first a viewer of
each, for some seconds, and then a doctor of each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sse import Publisher
from sse.doctor.findings import Finding
from sse.doctor.judge import judge
from sse.doctor.measure import measure
from tests import client
from tests.client import Stream
from tests.platforms import CASES, SCOREBOARD, Instance, Platform
from tests.servers import RedisServer, wait_until

CHANNELS = ["scores/north", "scores/numbers"]  # a source's, and one on which the tests publish numbers
VIEWED = 9.0  # seconds
WAIT = 10.0  # seconds that a doctor watches streams


@dataclass
class Seen:
    """What a viewer has seen, in order."""

    numbers: list[int] = field(default_factory=list)
    scores: int = 0
    streams: int = 0
    polls: int = 0
    resets: list[str] = field(default_factory=list)
    last_event_id: str = ""

    def take(self, kind: str, data: object) -> None:
        if kind == "number":
            self.numbers.append(int(str(data)))
        elif kind == "sse.reset":
            self.resets.append(str(data))
        elif kind == "message":
            self.scores += 1


def view(platform: Platform, seconds: float, origin: str = "", seen: Seen | None = None) -> Seen:
    """Follow the channels as the script does: by streams, and by polls if a stream stays silent for 3 s."""
    seen = seen or Seen()
    until = time.monotonic() + seconds
    headers = {"Origin": origin} if origin else {}
    while time.monotonic() < until:
        if not seen.polls:
            seen.streams += 1
            if not _stream(platform, until, headers, seen):
                seen.polls = 1
            time.sleep(0.3)  # the script waits as `retry` says, which is up to 3 s
        else:
            seen.polls += 1
            answer = client.poll(platform.url, CHANNELS, seen.last_event_id or None, headers=headers, timeout=2)
            assert answer.status == 200, answer
            told = answer.json()
            seen.resets += [str(reset) for reset in told.get("resets", [])]
            for event in told["events"]:
                seen.take(event["type"], event["data"])
            seen.last_event_id = told["last_event_id"]
    return seen


def _stream(platform: Platform, until: float, headers: Mapping[str, str], seen: Seen) -> bool:
    """Read one stream to its end, and return False if it stayed silent from the first."""
    query = [("channel", name) for name in CHANNELS]
    has_begun = False
    try:
        with Stream(platform.url, query, headers=headers, last_event_id=seen.last_event_id, timeout=3) as stream:
            while (left := until - time.monotonic()) > 0:
                event = stream.next(max(min(3 if not has_begun else left, left), 0.01))
                if event is None:
                    break
                has_begun = True
                seen.take(event.event, event.data)
                seen.last_event_id = stream.last_event_id
    except TimeoutError:
        return has_begun
    except ConnectionError:
        pass
    return True


class Numbers:
    """Publishes 1, 2, 3, … to a service's store while its block runs, past the platform's front."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._publisher = Publisher(**{name.removeprefix("SSE_").lower(): value for name, value in settings.items()})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.last = 0

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            self._publisher.publish("scores/numbers", self.last + 1, type="number")
            self.last += 1

    def __enter__(self) -> Numbers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._publisher.close()


@dataclass
class Outcome:
    """What a viewer has seen on a platform, and what its doctor has found."""

    seen: Seen
    last: int
    cuts: int
    freezes: int
    starts: int
    ends: int
    findings: list[Finding]

    def codes(self, level: str) -> set[str]:
        return {finding.code for finding in self.findings if finding.level == level}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def run(name: str, directory: Path, redis: RedisServer, wait: Callable[[], object]) -> Outcome:
    case = CASES[name]
    store = {"SSE_REDIS_URL": redis.url, "SSE_NAMESPACE": "".join(filter(str.isalpha, name))}
    instance = Instance(directory, SCOREBOARD, {**store, "SSE_DOCTOR": "1", "SSE_PROXIES": "1", **case.settings})
    with instance, Platform(instance, case.faults) as platform:
        with Numbers(store) as numbers:
            seen = view(platform, VIEWED / 2, case.origin)
            if case.faults.freezes:
                wait_until(lambda: platform.is_frozen, 5, what="the instance is frozen")
            if case.faults.idle_kill < VIEWED:
                wait_until(lambda: platform.ends, 10, what="the instance is ended")
            view(platform, VIEWED / 2, case.origin, seen)
        wait()
        found = measure(f"{platform.url}/sse", origin=case.origin, wait=WAIT)
        marks = (platform.cuts, platform.freezes, platform.starts, platform.ends)
    return Outcome(seen, numbers.last, *marks, judge(found))


@pytest.fixture(scope="module")
def outcomes(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Run all cases side by side. The doctors begin when the last viewer is done, because they measure times."""
    together = threading.Barrier(len(CASES), timeout=90)
    with ThreadPoolExecutor(len(CASES)) as pool:
        running = {
            name: pool.submit(run, name, tmp_path_factory.mktemp("platform"), redis, together.wait) for name in CASES
        }
        return {name: future.result(120) for name, future in running.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_scoreboard_works_on_a_platform(name: str, outcomes: dict[str, Outcome]) -> None:
    case, outcome = CASES[name], outcomes[name]
    seen = outcome.seen
    assert seen.scores >= 3, seen
    assert seen.numbers == list(range(seen.numbers[0], seen.numbers[-1] + 1)), (
        "nothing is lost, and nothing comes twice"
    )
    assert seen.numbers[-1] >= outcome.last - 15, "and nothing is late"
    assert seen.resets == []
    assert seen.polls or not case.by_polls
    assert seen.streams < 20, "no stream is refused at once, again and again"


@pytest.mark.parametrize("name", CASES)
def test_the_doctor_names_what_a_platform_does_and_nothing_else(name: str, outcomes: dict[str, Outcome]) -> None:
    found = {finding.code: (finding.level, finding.evidence) for finding in outcomes[name].findings}
    assert outcomes[name].codes("fault") == CASES[name].named, found


def test_the_platforms_have_done_what_they_are_for(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["cloud run, with its own request timeout"].cuts >= 2
    assert outcomes["cloud run, with its own CPU"].freezes >= 2
    asleep = outcomes["cloud run, without an instance at rest"]
    assert asleep.ends >= 1
    assert asleep.starts >= 1
    assert outcomes["firebase hosting in front"].cuts >= 1
    assert outcomes["heroku, with a heartbeat that is too long"].cuts >= 1
