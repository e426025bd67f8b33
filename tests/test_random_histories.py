"""Random histories of rings and clients, over both stores, compared with a plain list of what was published.

Every client checks every block: an event must follow the client's position, a reset must be due, and an id must claim
no more than was sent. So a loss, a duplicate or a wrong order fails the test. Silence fails too: `settle` waits until
all clients are at the newest event.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, get_args

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sse.config import Config
from sse.errors import Ended, IdempotencyConflict
from sse.event import EndReason, Event, Piece
from sse.hub.hub import Hub
from sse.hub.subscriber import Start
from sse.service import Service
from sse.stores import MemoryStore, Publication, Store, connect
from sse.stores.base import Standing
from sse.wire import BARE_HEARTBEAT, HEARTBEAT
from tests.client import Parser
from tests.judging_clients import LOST, BareClient, Client, Over, Refused, Request, Rings, Site, entries
from tests.writing import Run

CHANNELS = ("a", "b", "c")
RUN = "r"  # a channel of runs
ALARM = "alarm"  # a channel that every hub listens to, to be woken by
RING = 3
RING_TTL = 60
RUN_TTL = 60
QUIET = 0.002
FORMS: dict[str, dict[str, str]] = {"": {}, "delta": {"ids": "delta"}, "bare": {"form": "bare"}, "cut": {"end": "cut"}}
PATIENCE = 15.0  # well above the 5 s after which a hub looks for what no announcement told of

channels = st.sampled_from(CHANNELS)
all_channels = st.sampled_from([*CHANNELS, RUN, RUN])
data = st.one_of(
    st.text("a\n\r: \0\ufeffé🎈", max_size=6),
    st.binary(max_size=3),
    st.dictionaries(st.text("kéy", max_size=2), st.integers() | st.none(), max_size=2),
)
types = st.sampled_from(["message", "note", "data:", "été"])
number = st.integers(0, 10**6)


def shown(value: Any) -> str:
    """Return the text that a reader gets for published data."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n")
    if isinstance(value, bytes):
        return f"data:application/octet-stream;base64,{base64.b64encode(value).decode()}"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


OWN = 1  # the number of the worker whose channels are read through a view of the app


class Clock:
    """The real clock, plus the time that was skipped."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped


class Worker(Service):
    """A service with its own hub, on a given store."""

    def __init__(self, config: Config, store: Store, clock: Clock) -> None:
        super().__init__(config)
        self._store = store
        self._hub = Hub(store, max_subscribers=1000, clock=clock)
        self.alarm = self._hub.attach({ALARM: Start()}, 5)

    @property
    def store(self) -> Store:
        return self._store

    @property
    def hub(self) -> Hub:
        return self._hub

    def close(self) -> None:
        """The store goes on, as Redis does when a worker ends."""
        self._hub.detach(self.alarm)
        left = self._hub.subscribers
        self._hub.close()
        assert left == 0
        if not isinstance(self._store, MemoryStore):
            self._store.close()


class Lives(Rings):
    """The rings of each channel, one after the other. The last one may still exist."""

    def __init__(self) -> None:
        self.positions: dict[tuple[str, str], tuple[list[str], int]] = {}  # (channel, position) → its life, its index
        self.events: dict[tuple[str, str], tuple[str, str, str]] = {}
        self.alive: dict[str, list[str]] = {}
        self.touched: dict[str, float] = {}
        self.reasons: dict[tuple[str, str], str] = {}
        self.textless = False  # the run has ended, and its ring is gone
        self.was_textless = False

    def born(self, channel: str, anchor: str) -> None:
        if channel == RUN and channel in self.alive:
            self.was_textless = True  # a hub may know the run before, and see that its text is gone
        self.alive[channel] = [anchor]
        self.positions[channel, anchor] = (self.alive[channel], 0)

    def grow(self, channel: str, position: str, type: str, data: str) -> None:
        life = self.alive[channel]
        assert int(position.split("-")[0]) == len(life)
        life.append(position)
        self.positions[channel, position] = (life, len(life) - 1)
        self.events[channel, position] = (position, type, data)

    def die(self, channel: str) -> None:
        self.alive.pop(channel, None)
        if channel == RUN:
            self.textless = False
            self.was_textless = True  # a hub may know of the end, and see that the text is gone

    def lose_text(self) -> None:
        """Leave nothing of the run's channel but its end."""
        self.textless = self.was_textless = True

    def reason(self, channel: str, position: str) -> str | None:
        return self.reasons.get((channel, position))

    def may_be_empty(self, channel: str, reason: str) -> bool:
        # Any run of the channel counts, because a hub may be behind.
        return any(
            name == channel and at.startswith("1-") and self.reasons[name, at] == reason for name, at in self.reasons
        )

    def loses_texts(self, channel: str) -> bool:
        return channel == RUN and self.was_textless

    @property
    def may_be_behind(self) -> bool:
        return True

    def top(self, channel: str) -> str | None:
        return self.alive[channel][-1] if channel in self.alive else None

    def after(self, channel: str, position: str) -> tuple[str, str, str] | None:
        life, index = self.positions.get((channel, position), ([], 0))
        return self.events[channel, life[index + 1]] if index + 1 < len(life) else None

    def before(self, channel: str, position: str) -> str:
        life, index = self.positions[channel, position]
        return life[index - 1]

    def is_top(self, channel: str, position: str) -> bool:
        return self.top(channel) == position

    def keeps(self, channel: str, position: str) -> bool:
        life = self.alive.get(channel, [])
        if channel == RUN:
            return position in (life[-2:] if self.textless else life)
        return position in life[-RING - 1 :]

    def knows(self, channel: str, position: str) -> bool:
        life, index = self.positions.get((channel, position), ([], 0))
        if channel == RUN and life and life is self.alive.get(RUN):
            # A text has no middle. A hub may not know yet that the text is gone.
            return index == 0 or (self.textless and index == len(life) - 2)
        # A ring that a hub has ensured shows up in the store before this model looks there again.
        return (channel, position) in self.positions or position.startswith("0-")

    def starts(self, channel: str, position: str, replay: int) -> bool:
        # A hub may be behind the store, so it may put a client further back than asked, never further on.
        life, index = self.positions.get((channel, position), ([], 0))
        if channel == RUN:
            return self.knows(channel, position)
        return self.knows(channel, position) and (
            life is not self.alive.get(channel) or len(life) - 1 - index >= min(replay, RING, len(life) - 1)
        )


class Visitor:
    """A client, and its stream if it has one."""

    def __init__(self, rings: Lives, names: list[str]) -> None:
        self.client = BareClient(rings, Request(tuple(("channel", name) for name in names)), dict.fromkeys(names))
        self.delta = False
        self.bare = False
        self.worker = 0
        self._chunks: Iterator[bytes] | None = None
        self._parser = Parser()

    @property
    def is_connected(self) -> bool:
        return self._chunks is not None

    def request(self, by_header: bool, extra: dict[str, str], *, of_view: bool = False) -> Request:
        """Come back with what is held. A channel without an entry is lost by header, and new by parameter.

        At a view of the app, which names the channels itself, it is lost in both cases.
        """
        held = self.client.held
        for channel, place in self.client.places.items():
            if channel not in entries(held):
                assert place in (None, LOST), f"{held} has lost {channel}"
                self.client.places[channel] = LOST if (by_header or of_view) and held else None
        query = self.client.first.query + tuple(extra.items())
        if by_header:
            # An EventSource's URL may still say where its page began.
            return Request((*query, ("last_event_id", "a=1-1")) if held and "replay" in extra else query, held or None)
        return Request((*query, ("last_event_id", held)) if held else query)

    def connect(self, site: Site, worker: int, request: Request, form: str = "") -> None:
        self.worker, self.delta, self.bare = worker, form == "delta", form == "bare"
        self._parser = self.client.connect(request)
        if not self.bare:
            self._parser = Client.connect(self.client, request)
        self._chunks = self._taken_in(site, request)

    def read(self) -> None:
        """All until the stream falls quiet."""
        assert self._chunks is not None
        for chunk in self._chunks:
            self._feed(chunk)
            if chunk in (HEARTBEAT, BARE_HEARTBEAT):
                return
        self._chunks = None  # closed by the service: too slow, or a bare one that cannot go on

    def _taken_in(self, site: Site, request: Request) -> Iterator[bytes]:
        """The chunks of a stream, or none where it is refused; then the client knows from where to go on."""
        chunks = site.stream(request)
        try:
            yield from chunks
        except Refused as refused:
            assert self.bare
            self.client.take_refusal(refused.answer, request)
        except Over as over:
            if self.bare:
                self.client.take_over(over)
            for place in self.client.places.values():
                is_judged = self.bare and place is None  # by `take_over`
                assert is_judged or self.client.rings.reason(RUN, str(place)), "there is more to come"

    def cut(self, count: int) -> None:
        """Read one more chunk, and only some bytes of it; then the connection is gone."""
        assert self._chunks is not None
        chunk = next(self._chunks, b"")
        self._feed(chunk[: count % (len(chunk) + 1)])
        self.disconnect()

    def disconnect(self) -> None:
        if self._chunks is not None:
            self._chunks.close()  # type: ignore[attr-defined]
            self._chunks = None

    def poll(self, site: Site, request: Request, timeout: int, lost: bool) -> None:
        if timeout and self.client.has_all:
            timeout = 0  # nothing would come, so it would wait to no end
        answer = site.poll(request, timeout)
        if not lost:
            self.client.connect(request)
            self.client.take_answer(answer, request)

    def _feed(self, chunk: bytes) -> None:
        client = self.client
        for block in self._parser.feed(chunk):
            if self.delta:  # as a script does with ids=delta
                held = entries(client.held) | entries(block.own_id or "")
                block = dataclasses.replace(block, id="~".join(f"{name}={held[name]}" for name in held))
            if self.bare:
                client.take(block)
            else:
                Client.take(client, block)


class Machine(RuleBasedStateMachine):
    redis_url: ClassVar[str | None] = None

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.rings = Lives()
        self.keys: dict[str, tuple[str, Any, str, str, float]] = {}
        self.visitors: list[Visitor] = []
        self.run: Run | None = None  # the live one
        config = Config.load({"SSE_PUBLIC": "*", "SSE_REDIS_URL": self.redis_url})
        self.config = dataclasses.replace(config, heartbeat=QUIET, poll_timeout=1, ring=RING)
        self.store = (
            self.make_store()
            if self.redis_url
            else MemoryStore(ring=RING, ring_ttl=RING_TTL, run_ttl=RUN_TTL, clock=self.clock)
        )
        if self.redis_url:
            self.redis = redis.Redis.from_url(self.redis_url)
            self.redis.flushdb()
        self.workers = [self.make_worker(), self.make_worker()]
        self.sites = [self.make_site(which) for which in range(2)]
        self.publish("a", "first", "message", 0)
        for who, names in enumerate(("abc", "bc", "r", "rb")):
            self.come(list(names))
            self.connect(who, who, by_header=True, form="", replay=who)
            self.read(who)

    def make_store(self) -> Store:
        return connect(self.redis_url, ring=RING, ring_ttl=RING_TTL, run_ttl=RUN_TTL)

    def make_site(self, which: int) -> Site:
        """Return a worker's routes. At the second worker, a view of the app answers in their place."""
        return Site(self.workers[which], own=which == OWN)

    def make_worker(self) -> Worker:
        return Worker(self.config, self.make_store() if self.redis_url else self.store, self.clock)

    # Publishing

    @rule(channel=channels, data=data, type=types, worker=number)
    def publish(self, channel: str, data: Any, type: str, worker: int, key: str | None = None) -> None:
        position = str(self.workers[worker % 2].publish([Publication(channel, Event(data, type), key)])[0])
        self.note(channel, position, type, data)
        if key:
            self.keys[key] = (channel, data, type, position, self.clock() + 300)

    @rule(channel=channels, count=st.integers(1, RING + 2), worker=number, size=st.sampled_from([1, 1, 300, 2000]))
    def publish_many(self, channel: str, count: int, worker: int, size: int) -> None:
        """Enough at once to trim away a client's place, or to fill a small answer."""
        self.publish(channel, "first", "message", worker)
        batch = [Publication(channel, Event(str(place) * size)) for place in range(count)]
        for place, position in enumerate(self.workers[worker % 2].publish(batch)):
            self.note(channel, str(position), "message", str(place) * size)

    @rule(channel=channels, data=data, type=types, worker=number)
    def publish_with_key(self, channel: str, data: Any, type: str, worker: int) -> None:
        self.publish(channel, data, type, worker, key=f"key-{len(self.keys)}")

    @precondition(lambda self: self.keys)
    @rule(which=number, worker=number, same=st.booleans())
    def publish_again(self, which: int, worker: int, same: bool) -> None:
        key = list(self.keys)[which % len(self.keys)]
        channel, data, type, position, until = self.keys[key]
        event = Event(data if same else f"{data!r} other", type)
        if until < self.clock():
            self.publish(channel, event.data, type, worker, key)
        elif same:
            assert [str(self.workers[worker % 2].publish([Publication(channel, event, key)])[0])] == [position]
        else:
            with pytest.raises(IdempotencyConflict):
                self.workers[worker % 2].publish([Publication(channel, event, key)])

    # Runs

    @rule(restart=st.booleans())
    def start_run(self, restart: bool) -> None:
        (standing,) = self.store.standing([RUN])
        assert isinstance(standing, Standing)
        if standing.run and not restart:
            assert self.store.leases.start(RUN, "another") == "exists"
            return
        self.run = Run(self.store, RUN, restart=restart)
        (newest,) = self.store.newest([RUN])
        if [str(newest)] != self.rings.alive.get(RUN):
            self.rings.textless = False
            self.rings.born(RUN, str(newest))

    def live_run(self) -> Run:
        """Return the live run. If there is none, begin one."""
        # Whether a run has been begun may depend on how fast a hub is. So no precondition of a rule asks for it.
        if self.run is None:
            self.start_run(restart=True)
        assert self.run
        return self.run

    @rule(items=st.lists(st.text("ab\n: é", min_size=1, max_size=6) | st.just({"n": 1}), min_size=1, max_size=5))
    def write(self, items: list[str | dict[str, int]]) -> None:
        for item in items:
            event = Piece(item) if isinstance(item, str) else Event(item)
            (position,) = self.live_run().write(event)
            self.rings.grow(RUN, str(position), event.type, event.data)

    @rule(data=data, worker=number)
    def publish_amid_a_run(self, data: Any, worker: int) -> None:
        self.live_run()
        self.publish(RUN, data, "message", worker)

    @rule(reason=st.sampled_from(get_args(EndReason)), worker=number)
    def end_run(self, reason: EndReason, worker: int) -> None:
        position = str(self.live_run().end(reason))
        self.run = None
        self.rings.grow(RUN, position, "sse.end", reason)
        self.rings.reasons[RUN, position] = reason
        with pytest.raises(Ended):
            self.workers[worker % 2].publish([Publication(RUN, Event("too late"))])

    def note(self, channel: str, position: str, type: str, data: Any) -> None:
        if position.startswith("1-"):
            anchor = str(self.store.before([(channel, 1000)])[0])
            if channel in self.rings.alive:
                assert self.rings.alive[channel] == [anchor]
            else:
                self.rings.born(channel, anchor)
        self.rings.grow(channel, position, type, shown(data))
        self.rings.touched[channel] = self.clock()

    # Listening

    @precondition(lambda self: len(self.visitors) < 5)
    @rule(names=st.lists(all_channels, min_size=1, unique=True))
    def come(self, names: list[str]) -> None:
        self.visitors.append(Visitor(self.rings, names))

    @rule(
        who=number,
        worker=number,
        by_header=st.booleans(),
        form=st.sampled_from(list(FORMS)),
        replay=st.integers(0, RING + 1),
    )
    def connect(self, who: int, worker: int, by_header: bool, form: str, replay: int) -> None:
        visitor = self.visitor(who)
        visitor.disconnect()
        if form == "delta" and by_header:
            form = ""
        extra = ({"replay": str(replay)} if replay else {}) | FORMS[form]
        request = visitor.request(by_header, extra, of_view=worker % 2 == OWN)
        visitor.connect(self.sites[worker % 2], worker % 2, request, form)

    @rule(who=number)
    def read(self, who: int) -> None:
        visitor = self.visitor(who)
        if visitor.is_connected:
            visitor.read()

    @rule(who=number, count=number)
    def cut(self, who: int, count: int) -> None:
        visitor = self.visitor(who)
        if visitor.is_connected:
            visitor.cut(count)

    @rule(who=number)
    def disconnect(self, who: int) -> None:
        self.visitor(who).disconnect()

    @rule(
        who=number,
        worker=number,
        by_header=st.booleans(),
        timeout=st.integers(0, 1),
        replay=st.integers(0, RING),
        lost=st.booleans(),
        max_bytes=st.sampled_from([0, 0, 1024, 2500]),
    )
    def poll(
        self, who: int, worker: int, by_header: bool, timeout: int, replay: int, lost: bool, max_bytes: int
    ) -> None:
        visitor = self.visitor(who)
        visitor.disconnect()
        extra = ({"replay": str(replay)} if replay else {}) | ({"max_bytes": str(max_bytes)} if max_bytes else {})
        request = visitor.request(by_header, extra, of_view=worker % 2 == OWN)
        visitor.poll(self.sites[worker % 2], request, timeout, lost)

    @rule(who=number, which=number, how=st.sampled_from(["soon", "", "0-0", "2-7", "77-7", None]))
    def spoil(self, who: int, which: int, how: str | None) -> None:
        """A client that comes back with a damaged last event id."""
        visitor = self.visitor(who)
        visitor.disconnect()
        held = entries(visitor.client.held)
        if held and "" not in held:
            channel = list(held)[which % len(held)]
            held.pop(channel)
            visitor.client.places[channel] = None
            if how is not None:
                held[channel] = how
                visitor.client.places[channel] = LOST
            visitor.client.held = "~".join(f"{name}={held[name]}" for name in held)

    def visitor(self, who: int) -> Visitor:
        return self.visitors[who % len(self.visitors)]

    # Events in the life of workers and rings

    @rule(which=number)
    def restart(self, which: int) -> None:
        which %= 2
        for visitor in self.visitors:
            if visitor.worker == which:
                visitor.disconnect()
        self.workers[which].close()
        self.workers[which] = self.make_worker()
        self.sites[which] = self.make_site(which)

    @rule(seconds=st.sampled_from([6, 6, 6, RING_TTL + 1, 301]))
    def pass_time(self, seconds: int) -> None:
        """The hubs' checks come due; in the memory store, rings and keys expire."""
        self.clock.skipped += seconds
        self.look(may_expire=self.redis_url is None)
        if self.redis_url:
            self.keys = {key: (*known[:4], known[4] + seconds) for key, known in self.keys.items()}
        self.store.publish([Publication(ALARM, Event(""))])

    @precondition(lambda self: self.redis_url)
    @rule(channel=channels, later=st.booleans())
    def lose_ring(self, channel: str, later: bool) -> None:
        self.look()
        if later:
            self.redis.pexpire(f"sse:{{{channel}}}", 1)
            time.sleep(0.003)
        self.redis.delete(f"sse:{{{channel}}}")  # also after it should have expired: a hub may just have renewed it
        self.rings.die(channel)

    @precondition(lambda self: self.redis_url)
    @rule()
    def lose_text(self) -> None:
        (standing,) = self.store.standing([RUN])
        assert isinstance(standing, Standing)
        if standing.run and standing.run.end and standing.newest:
            self.redis.delete(f"sse:{{{RUN}}}")
            self.rings.lose_text()

    @precondition(lambda self: self.redis_url)
    @rule()
    def lose_everything(self) -> None:
        self.look()
        self.redis.flushall()
        self.keys.clear()
        for channel in (*CHANNELS, RUN):
            self.rings.die(channel)
        self.run = None

    @precondition(lambda self: self.redis_url)
    @rule(channel=channels, count=st.integers(0, RING + 2))
    def lose_announcements(self, channel: str, count: int) -> None:
        self.redis.client_kill_filter(_type="pubsub")
        for place in range(count):
            self.publish(channel, f"unheard {place}", "message", place)

    @invariant()
    def look(self, may_expire: bool = False) -> None:
        """Check that the store has the rings of the model, and those that hubs have ensured."""
        if not hasattr(self, "store"):
            return
        names = (*CHANNELS, RUN)
        for channel, (newest, run) in zip(names, self.store.standing(names), strict=True):  # type: ignore[misc]
            if run and run.end and newest is None:
                if not self.rings.textless:
                    assert may_expire, "the text went by itself"
                    self.rings.lose_text()
                continue
            if channel == RUN and self.run and run is None:
                assert may_expire, "the run went by itself"
                self.run = None
            if channel in self.rings.alive and str(newest) != self.rings.top(channel):
                assert may_expire or self.rings.textless, f"the ring of {channel} went by itself"
                assert channel == RUN or self.clock() >= self.rings.touched.get(channel, 0) + RING_TTL
                self.rings.die(channel)
            if channel not in self.rings.alive and newest is not None:
                assert newest.offset == 0
                self.rings.born(channel, str(newest))

    @rule()
    def settle(self) -> None:
        """Everybody hears everything, and then one event more."""
        for visitor in self.visitors:
            if not visitor.is_connected:
                visitor.connect(self.sites[0], 0, visitor.request(True, {}))
            visitor.read()
        for channel in CHANNELS:
            self.publish(channel, "is that all?", "message", 0)
        if self.run is None:
            self.start_run(restart=False)
        if self.run:  # else it has ended, and the end is the last event
            self.write(["is ", "that ", "all?"])
        deadline = time.monotonic() + PATIENCE
        waiting = list(self.visitors)
        while waiting:
            for visitor in waiting:
                if not visitor.is_connected:
                    visitor.connect(self.sites[0], 0, visitor.request(True, {}))
                visitor.read()
            waiting = [visitor for visitor in waiting if not visitor.client.has_all]
            places = [visitor.client.places for visitor in waiting]
            assert time.monotonic() < deadline, f"tops {self.rings.alive}, places {places}"

    def teardown(self) -> None:
        if not hasattr(self, "workers"):
            return
        try:
            if sys.exc_info()[0] is None:
                self.settle()
        finally:
            for visitor in self.visitors:
                visitor.disconnect()
            for worker in self.workers:
                worker.close()
            self.store.close()
            if self.redis_url:
                self.redis.close()


def test_random_lives_agree_with_the_model(store_url: str | None) -> None:
    machine = type("Machine", (Machine,), {"redis_url": store_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            stateful_step_count=40,
            # Not shrunk: against a real Redis that takes longer than a test may.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )


@contextmanager
def played(store_url: str | None) -> Iterator[Machine]:
    """Give a machine that has begun, for a history that is written down; at its end everybody hears everything."""
    machine: Machine = type("Machine", (Machine,), {"redis_url": store_url})()
    machine.begin()
    try:
        yield machine
    finally:
        machine.teardown()


OF_RUN, OF_BOTH = 2, 4  # the visitor that hears RUN alone, and one that comes for RUN and "b"


def come_without_position(machine: Machine) -> None:
    machine.spoil(OF_RUN, 0, how=None)
    machine.come([RUN, "b"])


@pytest.mark.parametrize("worker", [0, OWN])
def test_a_bare_reader_of_a_channel_that_has_had_no_event_hears_the_next_one(
    store_url: str | None, worker: int
) -> None:
    with played(store_url) as machine:
        come_without_position(machine)
        for who in (OF_RUN, OF_BOTH):
            machine.connect(who, worker, by_header=False, form="bare", replay=0)
            machine.read(who)
            assert machine.visitors[who].client.places[RUN] is None  # nothing has had an id
        machine.settle()
        for who in (OF_RUN, OF_BOTH):
            assert machine.visitors[who].is_connected  # by the same stream
            assert machine.visitors[who].client.places[RUN] == machine.rings.top(RUN)


@pytest.mark.parametrize("reason", get_args(EndReason))
def test_a_bare_reader_without_a_position_hears_that_a_run_without_events_has_ended(
    store_url: str | None, reason: EndReason
) -> None:
    with played(store_url) as machine:
        come_without_position(machine)
        machine.connect(OF_RUN, 0, by_header=False, form="bare", replay=0)
        machine.connect(OF_BOTH, 0, by_header=False, form="bare", replay=0)
        machine.read(OF_RUN)
        machine.read(OF_BOTH)
        machine.end_run(reason, 0)
        heard = [machine.visitors[who].client for who in (OF_RUN, OF_BOTH)]
        deadline = time.monotonic() + PATIENCE
        while any(client.empty != {RUN: reason} for client in heard):  # a comment, which has no id
            assert time.monotonic() < deadline
            machine.read(OF_RUN)
            machine.read(OF_BOTH)
        assert not machine.visitors[OF_RUN].is_connected
        assert heard[0].places == {RUN: None}
        machine.publish("b", "goes on", "message", 0)
        while not heard[1].has_all:  # the id of that event claims the end
            assert time.monotonic() < deadline
            machine.read(OF_BOTH)
        machine.connect(OF_RUN, 0, by_header=False, form="bare", replay=0)
        machine.read(OF_RUN)  # 204, or 410 with the reason
        assert heard[0].empty == {RUN: reason}


def test_a_reader_without_a_position_may_be_told_that_the_text_of_the_run_before_is_gone() -> None:
    for _ in range(20):  # whether the hub is that far behind differs
        with played(None) as machine:
            machine.end_run("done", 0)
            machine.come([RUN])
            machine.publish_amid_a_run({}, 1)
            machine.poll(0, 0, by_header=False, lost=False, max_bytes=0, replay=0, timeout=0)
            machine.start_run(restart=True)
            machine.poll(4, 0, by_header=False, lost=False, max_bytes=0, replay=0, timeout=1)
            assert machine.visitors[4].client.places[RUN]
