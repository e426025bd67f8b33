"""Workers, clients and publishers over one Redis, and a record that shows every loss that no reset announced."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from flask import Flask, Response, request
from werkzeug.test import TestResponse

from sse import SSE
from sse.errors import StoreUnavailable, Unavailable
from sse.event import UNBORN, Event, LastEventId, Position
from sse.hub.hub import Hub
from sse.hub.subscriber import starting_points
from sse.service import Service
from sse.stores import Publication, Store
from sse.transports.stream import Stream
from tests import client as wire
from tests.driven_streams import driven, poll
from tests.servers import RedisServer, wait_until

TRIES = 200  # of one publication


class CrashingRedis(RedisServer):
    """A Redis that loses nothing in a crash, unless `rewind` puts back an older file."""

    def __init__(self, directory: Path, **config: Any) -> None:
        durable = {"appendonly": "yes", "appendfsync": "always", "auto_aof_rewrite_percentage": "0"}
        super().__init__(directory, **durable, **config)
        self._file = self.dir / f"aof-{self.port}"
        self._older = self.dir / f"older-{self.port}"

    def remember(self) -> None:
        """Save the state to which `rewind` goes back."""
        shutil.rmtree(self._older, ignore_errors=True)
        shutil.copytree(self._file, self._older)

    def rewind(self, down: float = 0) -> None:
        """Kill Redis and start it again, with all writes since `remember` lost."""
        self.kill()
        shutil.rmtree(self._file)
        shutil.copytree(self._older, self._file)
        time.sleep(down)
        self.start()

    def ask(self, *command: Any) -> Any:
        with contextlib.closing(self.client()) as connection:
            return connection.execute_command(*command)

    def key(self, channel: str) -> str:
        return f"sse:{{{channel}}}"

    def ring(self, channel: str) -> list[tuple[Position, str]]:
        """Return the events of a channel that are in Redis."""
        with contextlib.closing(self.client()) as connection:
            entries: list[Any] = connection.xrange(self.key(channel))  # type: ignore[assignment]
        return [(_position(id), json.loads(fields["d"])["data"]) for id, fields in entries if fields["d"]]

    def top(self, channel: str) -> Position | None:
        with contextlib.closing(self.client()) as connection:
            entries: list[Any] = connection.xrevrange(self.key(channel), count=1)  # type: ignore[assignment]
        return _position(entries[0][0]) if entries else None


def _position(text: str) -> Position:
    position = Position.parse(text)
    assert position is not None, f"not a position: {text!r}"
    return position


class Ack(NamedTuple):
    """An event that its publisher knows to be stored, and the epochs in which that publish began and ended."""

    channel: str
    position: Position
    data: str
    epoch: int


class Ledger:
    """What was published, and what must never be.

    An event's tag commits to the position before it and to a nonce that only its publisher knows. With the nonces noted
    here, each delivery proves which position it follows: a gap, a repetition, another order or a silent change to
    another history of the ring cannot pass.
    """

    def __init__(self) -> None:
        self.acks: list[Ack] = []
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.epoch = 0  # odd while stored events may be lost
        self._nonces: dict[str, list[int]] = {}

    def watch(self, store: Any) -> None:
        """Note the nonces that a store of Redis gives to events."""
        calls = store._publish_calls
        make_arguments = calls._arguments

        def noting(publication: Publication, before: str | None) -> tuple[Any, ...]:
            call: tuple[Any, ...] = make_arguments(publication, before)
            self._nonces.setdefault(publication.event.data, []).append(call[1 + call[0]])
            return call

        calls._arguments = noting

    def follows(self, place: Position, position: Position, data: str) -> bool:
        return position.offset == place.offset + 1 and any(
            int(hashlib.sha1(f"{place} {nonce}".encode()).hexdigest()[:13], 16) + 1 == position.tag
            for nonce in self._nonces.get(data, ())
        )

    @contextlib.contextmanager
    def loss(self) -> Any:
        """While a fault may lose what is stored."""
        self.epoch += 1
        try:
            yield
        finally:
            self.epoch += 1

    def publish(self, store: Store, publications: Sequence[Publication], tries: int = TRIES) -> int:
        """Publish until all is stored, repeating what has a key; how many are stored."""
        stored = 0
        for attempt in range(tries):
            epoch = self.epoch
            try:
                receipts = store.publish(publications)
            except StoreUnavailable as error:
                receipts = [error] * len(publications)
            failed = []
            newest: dict[str, int] = {}
            for publication, receipt in zip(publications, receipts, strict=True):
                if isinstance(receipt, StoreUnavailable):
                    failed.append(publication)
                    continue
                stored += 1
                if self.epoch != epoch or epoch % 2:
                    continue
                self.acks.append(Ack(publication.channel, receipt.position, publication.event.data, epoch))
                if attempt == 0 and receipt.position.offset <= newest.get(publication.channel, 0):
                    self.faults.append(f"a batch was stored in another order: {publications}")
                newest[publication.channel] = receipt.position.offset
            publications = [publication for publication in failed if publication.key]
            if not publications:
                break
            time.sleep(0.02)
        return stored


class Run:
    """The events of one channel that a client received without a reset in between."""

    def __init__(self, start: Position) -> None:
        self.start = self.place = start
        self.events: list[tuple[Position, str]] = []
        self.known: set[str] = set()


class Client(threading.Thread):
    """A browser. Over all its connections it keeps nothing but the last event id.

    With a `rng` it is restless: it goes from worker to worker and from stream to poll, is cut within a block, loses
    answers, and reads slowly. With `apps`, one for each hub, it asks a view of these apps, which chooses the channels.
    """

    def __init__(
        self,
        ledger: Ledger,
        hubs: Sequence[Hub],
        channels: Sequence[str],
        *,
        transport: str = "stream",
        heartbeat: float = 1.0,
        rng: random.Random | None = None,
        apps: Sequence[Flask] = (),
    ) -> None:
        super().__init__(name=f"client {'of a view ' if apps else ''}on {','.join(channels)}", daemon=True)
        self.ledger, self.hubs, self.channels = ledger, hubs, channels
        self.apps = dict(zip(hubs, apps, strict=True)) if apps else {}
        self.transport, self.heartbeat, self.rng = transport, heartbeat, rng
        self.runs: dict[str, Run] = {}
        self.resets: list[tuple[str, str, Position]] = []  # channel, reason, the place that was lost
        self.closes: list[str] = []
        self.connections = 0
        self.last_event_id = ""
        self._ended = threading.Event()
        self._calm = rng is None

    def place(self, channel: str) -> Position | None:
        return self.runs[channel].place if channel in self.runs else None

    def data(self, channel: str) -> list[str]:
        """Return the data of the events since the last reset."""
        return [data for _, data in self.runs[channel].events] if channel in self.runs else []

    def settle(self) -> None:
        """From now on, make only those requests that bring the client up to date."""
        self._calm = True

    def end(self) -> None:
        self._ended.set()

    def run(self) -> None:
        while not self._ended.is_set():
            self.connections += 1
            try:
                hub = self.rng.choice(self.hubs) if self.rng else self.hubs[0]
                transport = self.rng.choice(("stream", "poll")) if self.rng else self.transport
                self._stream(hub) if transport == "stream" else self._poll(hub)
            except Unavailable as error:
                self.closes.append(error.code)
            except Exception as error:
                self.ledger.faults.append(f"{self.name}: {error!r}")
                return
            self._ended.wait(0.02)

    def _starts(self) -> Any:
        last = LastEventId.parse(self.last_event_id) if self.last_event_id else None
        return starting_points(self.channels, last, from_header=True)

    def _stream(self, hub: Hub) -> None:
        parser = wire.Parser(self.last_event_id)
        if self.apps:
            body = self._own_stream(self.apps[hub])
        else:
            stream = Stream(hub, self._starts(), heartbeat=self.heartbeat, lifetime=600, retry=20)
            body = driven(stream, self.rng) if self.rng and self.rng.random() < 0.7 else iter(stream)
        rng = None if self._calm else self.rng
        chunks = rng.randint(1, 40) if rng else None
        try:
            for number, chunk in enumerate(body):
                if number == chunks and rng:
                    chunk = chunk[: rng.randint(0, len(chunk))]
                for event in parser.feed(chunk):
                    self._hear(event)
                self.last_event_id = parser.last_event_id
                if number == chunks or self._ended.is_set():
                    break
                if rng and rng.random() < 0.05:
                    time.sleep(rng.uniform(0, 0.3))
        finally:
            body.close()  # type: ignore[union-attr]

    def _own_stream(self, app: Flask) -> Generator[bytes]:
        with contextlib.closing(self._ask_view(app, "text/event-stream")) as answer:
            yield from answer.iter_encoded()

    def _ask_view(self, app: Flask, accept: str, **query: object) -> TestResponse:
        headers = {"Accept": accept, "Last-Event-ID": self.last_event_id}
        answer = app.test_client().get("/own", query_string={"name": self.channels, **query}, headers=headers)
        if answer.status_code == 503:
            raise Unavailable("the store is away", "come back")
        assert answer.status_code == 200, answer.text
        return answer

    def _hear(self, event: wire.Event) -> None:
        if event.event == "sse.open":
            for channel, opened in event.json()["channels"].items():
                self._open(channel, opened["position"])
        elif event.event == "sse.reset":
            told = event.json()
            self._reset(told["channel"], told["reason"], self._entry(event.id, told["channel"]))
        elif event.event == "sse.close":
            self.closes.append(event.json()["reason"])
        elif event.event != "sse.heartbeat":
            assert event.own_id and event.data is not None, f"an event without id or data: {event}"
            channel, _, position = event.own_id.split("~")[0].partition("=")
            self._take(channel, _position(position), event.data)

    def _poll(self, hub: Hub) -> None:
        rng = None if self._calm else self.rng
        timeout = rng.choice((0, 0.1, 0.5)) if rng else 0.5
        if self.apps:
            answer = self._ask_view(self.apps[hub], "application/json", timeout=round(timeout)).json
        else:
            answer = poll(hub, self._starts(), timeout=timeout, retry=20)
        if rng and rng.random() < 0.2:
            return  # lost on the way
        for reset in answer["resets"]:
            # Without events the channel goes on from the position in the answer's id, else from before the first one.
            channel = reset["channel"]
            first = next((event for event in answer["events"] if event["channel"] == channel), None)
            self._reset(channel, reset["reason"], None if first else self._entry(answer["last_event_id"], channel))
        for event in answer["events"]:
            self._take(event["channel"], _position(event["id"].partition("=")[2]), event["data"])
        for channel in self.channels:
            place = self._entry(answer["last_event_id"], channel)
            run = self.runs.setdefault(channel, Run(place))
            assert run.place == place, f"{channel}: at {run.place}, but the answer's id says {place}"
        self.last_event_id = answer["last_event_id"]

    def _entry(self, last_event_id: str, channel: str) -> Position:
        return LastEventId.parse(last_event_id).positions[channel]

    def _open(self, channel: str, told: str | None) -> None:
        assert told, f"{channel}: opened without a position"
        place = _position(told)
        run = self.runs.setdefault(channel, Run(place))
        assert run.place == place, f"{channel}: at {run.place}, but the stream opens at {place}"

    def _reset(self, channel: str, reason: str, place: Position | None) -> None:
        self.ledger.counts["resets"] += 1
        self.resets.append((channel, reason, self.runs[channel].place if channel in self.runs else UNBORN))
        if place:
            self.runs[channel] = Run(place)
        else:
            self.runs.pop(channel, None)

    def _take(self, channel: str, position: Position, data: str) -> None:
        self.ledger.counts["deliveries"] += 1
        run = self.runs.get(channel)
        if run is None:  # the first of a poll's answer, just after a reset
            run = self.runs[channel] = Run(Position(position.offset - 1, 1))
        else:
            assert self.ledger.follows(run.place, position, data), f"{channel}: {position} came after {run.place}"
        assert data not in run.known, f"{channel}: {data[:40]!r} came twice"
        run.known.add(data)
        run.events.append((position, data))
        run.place = position


def _app(**config: Any) -> Flask:
    """Return an app whose own view answers with the channels that the query names."""
    app = Flask("chaos")
    app.config.from_mapping({"SSE_HEARTBEAT": 3, **config})
    sse = SSE(app)

    @app.get("/own")
    def own() -> Response:
        return sse.subscribe(*request.args.getlist("name"))

    return app


class Cluster:
    """Two workers over one Redis, with their clients."""

    def __init__(self, redis: CrashingRedis, *, url: str | None = None, workers: int = 2, ring: int = 1000) -> None:
        self.redis = redis
        self.ledger = Ledger()
        self.clients: list[Client] = []
        self.apps = [_app(SSE_REDIS_URL=url or redis.url, SSE_RING=ring) for _ in range(workers)]
        self.services: list[Service] = [app.extensions["sse"] for app in self.apps]
        for service in self.services:
            self.ledger.watch(service.store)
        self._numbers = itertools.count(1)

    def client(
        self, *channels: str, worker: int | None = 0, rng: random.Random | None = None, **options: Any
    ) -> Client:
        """Start a client of one worker, or of both in turn if no worker is given."""
        services = self.services if worker is None else [self.services[worker]]
        client = Client(self.ledger, [service.hub for service in services], channels, rng=rng, **options)
        client.start()
        self.clients.append(client)
        wait_until(lambda: len(client.runs) == len(channels) or self.ledger.faults, 10, what=f"{client.name} is on")
        return client

    def event(self, channel: str, size: int = 20, key: bool = True) -> Publication:
        number = next(self._numbers)
        data = f"{channel} {number} ".ljust(size, "x")
        return Publication(channel, Event(data), f"test:{number}" if key else None)

    def publish(self, channel: str, count: int = 1, *, worker: int = 0, size: int = 20) -> list[str]:
        """Publish events one by one, repeat each until it is stored, and return their data."""
        publications = [self.event(channel, size) for _ in range(count)]
        for publication in publications:
            assert self.ledger.publish(self.services[worker].store, [publication]) == 1
        return [publication.event.data for publication in publications]

    def behind(self) -> list[str]:
        """Return the clients that are not at the newest entry of a channel."""
        return [
            f"{client.name} stands at {client.place(channel)} in {channel}, the newest is {top}"
            for channel in sorted({channel for client in self.clients for channel in client.channels})
            for top in [self.redis.top(channel)]
            for client in self.clients
            if channel in client.channels and (top is None or client.place(channel) != top)
        ]

    def settle(self, timeout: float = 12) -> None:
        """Wait until every client has all events, and check all that each received on the way."""
        deadline = time.monotonic() + timeout
        while (behind := self.behind()) and not self.ledger.faults and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not self.ledger.faults, self.ledger.faults
        assert not behind, behind
        for ack in self.ledger.acks:
            if ack.epoch != self.ledger.epoch:
                continue  # a later fault may have lost it, and then its clients were reset
            for client in self.clients:
                run = client.runs.get(ack.channel)
                if run and ack.position.offset > run.start.offset:
                    assert ack.data in run.known, f"{client.name} never got {ack}, nor a reset after it"

    def close(self) -> None:
        for client in self.clients:
            client.end()
        # An event wakes the waiting clients, which is sooner than their next heartbeat.
        last = [self.event(channel) for channel in {channel for client in self.clients for channel in client.channels}]
        self.ledger.publish(self.services[0].store, last, tries=1)
        for client in self.clients:
            client.join(15)
        left = [client.name for client in self.clients if client.is_alive()]
        left += [f"{service.hub.subscribers} subscribers" for service in self.services if service.hub.subscribers]
        for service in self.services:
            service.close()
        assert not left, f"left behind: {left}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
