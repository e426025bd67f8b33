"""Random faults while a run is written: every reader has the text without a hole and without a double, and the end."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from sse.cli.local import Local
from sse.config import Config
from sse.errors import RunFailed, SSEError, Stopped
from sse.event import Event, Piece
from sse.service import Service
from sse.stores import Standing
from sse.wire import Parser
from tests.chaos.cluster import CrashingRedis
from tests.chaos.test_chaos import SEEDS
from tests.servers import wait_until

SECONDS = 2.0  # of faults in each seed
Fault = Callable[[CrashingRedis, random.Random], object]


def restart(redis: CrashingRedis, rng: random.Random) -> None:
    redis.restart(down=rng.uniform(0.1, 1))


def drop_connections(redis: CrashingRedis, rng: random.Random) -> None:
    redis.ask("CLIENT", "KILL", "TYPE", rng.choice(("normal", "pubsub")), "SKIPME", "yes")


def pause(redis: CrashingRedis, rng: random.Random) -> None:
    redis.ask("CLIENT", "PAUSE", int(rng.uniform(100, 1500)), rng.choice(("WRITE", "ALL")))


def fill_memory(redis: CrashingRedis, rng: random.Random) -> None:
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    time.sleep(rng.uniform(0.1, 0.4))
    redis.ask("CONFIG", "SET", "maxmemory", "0")


def mute(redis: CrashingRedis, rng: random.Random) -> None:
    """Store entries without announcing them."""
    redis.ask("ACL", "SETUSER", "default", "-publish")
    time.sleep(rng.uniform(0.1, 0.4))
    redis.ask("ACL", "SETUSER", "default", "+publish")


def rewind(redis: CrashingRedis, rng: random.Random) -> None:
    redis.rewind(down=rng.uniform(0, 0.5))


def remember(redis: CrashingRedis, rng: random.Random) -> None:
    redis.remember()


LOSSLESS: list[Fault] = [restart, drop_connections, pause, fill_memory, mute]
LOSSY: list[Fault] = [rewind, remember]


class Reader(threading.Thread):
    """Reads the channel through streams of one service until its end."""

    def __init__(self, service: Service, rng: random.Random) -> None:
        super().__init__(name="reader", daemon=True)
        self.local, self.rng = Local(service), rng
        self.text = ""
        self.end = ""
        self.faults: list[str] = []

    def run(self) -> None:
        last = ""
        give_up = time.monotonic() + 40
        while not self.end and time.monotonic() < give_up:
            parser = Parser(last)
            cut_at = time.monotonic() + self.rng.expovariate(1)
            try:
                with contextlib.closing(self.local.stream(["a"], "", 0, last)) as chunks:
                    for chunk in chunks:
                        for block in parser.feed(chunk):
                            self._take(block.type, block.data)
                        if self.end or time.monotonic() > cut_at:
                            break
            except SSEError:
                time.sleep(0.1)
            last = parser.last_event_id

    def _take(self, kind: str, data: str) -> None:
        if kind == "sse.reset":
            self.text = ""
        elif kind == "text":
            self.text += data
            if not beginning_of_a_text(self.text):
                self.faults.append(self.text[-200:])
        elif kind == "sse.end":
            self.end = data


def words(writer: str, count: int) -> str:
    return "".join(f"{writer}{number} " for number in range(count))


def beginning_of_a_text(text: str) -> bool:
    return not text or words(text[0], 2000).startswith(text)


class Writing(threading.Thread):
    """Writes the words of one run, and notes how it ended for the writer."""

    def __init__(self, service: Service, name: str, rng: random.Random, ended: threading.Event) -> None:
        super().__init__(name="writing", daemon=True)
        self.service, self.word, self.rng, self.ended = service, name, rng, ended
        self.count = 0
        self.outcome = ""

    def run(self) -> None:
        make_event = partial(lambda data, type: Event(data, type))
        try:
            with self.service.writing("a", make_event, restart=True) as out:
                while not self.ended.wait(self.rng.expovariate(200)) and self.count < 2000:
                    out.write(f"{self.word}{self.count} ")
                    self.count += 1
        except Stopped:
            self.outcome = "stopped"
        except RunFailed:
            self.outcome = "failed"
        except SSEError as error:
            self.outcome = f"never begun: {error}"
        else:
            self.outcome = "done"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashingRedis]:
    with CrashingRedis(Path(tmp_path_factory.mktemp("chaos"))) as server:
        yield server


@contextlib.contextmanager
def services(redis: CrashingRedis) -> Iterator[list[Service]]:
    made = [
        Service(Config.load({}, {"SSE_REDIS_URL": redis.url, "SSE_REDIS_TIMEOUT": 2, "SSE_HEARTBEAT": 3}), serves=False)
        for _ in range(3)
    ]
    try:
        yield made
    finally:
        for service in made:
            service.close()


def stored(service: Service) -> tuple[str, str | None]:
    """Return the text in the store, and why it has ended."""
    [standing] = service.store.standing(["a"])
    assert isinstance(standing, Standing)
    assert standing.run
    [page] = service.store.read([("a", standing.run.anchor)], limit=10_000, max_bytes=1 << 30)
    return "".join(entry.event.data for entry in page.entries if isinstance(entry.event, Piece)), standing.run.end  # type: ignore[union-attr]


@pytest.mark.chaos
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_a_text_has_no_hole_and_an_end(seed: int, redis: CrashingRedis, totals: Counter[str]) -> None:
    print(f"CHAOS_SEED={seed}")
    rng = random.Random(seed)
    gentle, replaced = rng.random() < 0.5, rng.random() < 0.3
    redis.ask("FLUSHALL")
    redis.remember()
    with services(redis) as [one, two, three]:
        ended = threading.Event()
        writers = [Writing(one, "a", random.Random(rng.random()), ended)]
        writers[0].start()
        wait_until(lambda: writers[0].count)
        readers = [Reader(service, random.Random(rng.random())) for service in (one, two, three, three)]
        for reader in readers:
            reader.start()
        deadline = time.monotonic() + SECONDS
        faults = LOSSLESS if gentle else LOSSLESS + LOSSY * 2
        while time.monotonic() < deadline:
            time.sleep(rng.uniform(0, 0.3))
            fault = rng.choice(faults)
            if fault is rewind:  # once: a second one may take back even the end, of which nobody can tell then
                faults = LOSSLESS
            print(f"{SECONDS + time.monotonic() - deadline:.2f} s: {fault.__name__}")  # type: ignore[attr-defined]
            fault(redis, rng)
            if replaced and len(writers) == 1 and rng.random() < 0.3:
                print("replaced")
                writers.append(Writing(two, "b", random.Random(rng.random()), ended))
                writers[1].start()
        ended.set()
        for thread in (*writers, *readers):
            thread.join(45)
            assert not thread.is_alive(), f"a {thread.name} never came to its end"
        outcomes = [writer.outcome for writer in writers]
        print(outcomes, [reader.end for reader in readers])
        assert not [fault for reader in readers for fault in reader.faults]
        text, reason = stored(three)
        newest = writers[-1]
        assert beginning_of_a_text(text)
        if reason == "done":
            assert newest.outcome == "done" or len(writers) == 2
            assert text in [words(writer.word, writer.count) for writer in writers if writer.outcome == "done"]
        if gentle and not newest.outcome.startswith("never begun"):
            assert newest.outcome == "done"
            assert reason == "done"
        if gentle or reason == "done":
            assert {reader.text for reader in readers if f'"{reason}"' in reader.end} <= {text}
        assert all(reader.end for reader in readers), "a reader has not heard of the end"
        totals.update(f"run {outcome.partition(':')[0]}" for outcome in outcomes)
        totals["words"] += sum(writer.count for writer in writers)
