"""Two services alike, of which one answers through Flask alone and the other one through the fast lane.

Both get the same requests, the same random numbers and the same time. So everything that comes of a request is to be
the same: the answer, the positions, the store, the counts of the limits, the seats and the lines of the log.
test_lane_differential.py makes the requests.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Any, NamedTuple

import redis
from flask import Flask

from sse import log
from sse.errors import StoreUnavailable
from sse.hub.hub import Hub
from sse.service import Service
from sse.stores import Store
from sse.stores.memory import MemoryStore
from sse.transports.body import Body
from sse.transports.items import ItemStream
from sse.transports.poll import Poll
from sse.transports.probe import ProbeStream
from sse.transports.stream import Cut, Stream
from sse.web.admission import Prepared
from sse.web.lane import Lane, Reply
from sse.web.presence import PresentPoll, PresentStream
from tests.conftest import SECRETS
from tests.fuzzed_requests import Broken

REST_WITHIN = 30.0  # seconds until a hub has taken in what is in its store
POINTS = ("publish", "read", "newest", "attach", "enter", "count")
"""The steps of a request at which a fault can strike."""

_BUSY = re.compile(rb"(: )?retry: |retry: [0-9]+\n")
_NUMBER = re.compile(rb"[0-9]+")

Environ = dict[str, Any]


class Clock:
    """A clock that stands still while both twins answer, in place of the module `time` of the limits."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.tick()

    def tick(self, seconds: float = 0.0) -> None:
        """Go on to the time of now, and leap by some seconds, from which limits recover."""
        self.ahead += seconds
        self.real = time.time()
        self._steady = time.monotonic()

    def time(self) -> float:
        return self.real + self.ahead

    def monotonic(self) -> float:
        return self._steady + self.ahead


class Nonces:
    """The random numbers of positions, in place of `stores.base.nonce`: the same for both twins after `begin`."""

    def __init__(self) -> None:
        self._random = random.Random()

    def begin(self, seed: object) -> None:
        self._random.seed(str(seed))

    def __call__(self) -> str:
        return f"{self._random.getrandbits(128):032x}"


class TwinHub(Hub):
    """A hub whose thread is the test's own. It takes its turns when a subscriber waits for it, or by `rest`."""

    fault: Callable[[str], None] = staticmethod(lambda _: None)

    def __init__(self, store: Store, **options: Any) -> None:
        super().__init__(store, **options)
        follower = self._follower
        self.store = store
        self.feed = store.feed()
        follower._thread = SimpleNamespace(ident=None)  # type: ignore[assignment] # so that none is started
        follower._patience = lambda: 0.0  # type: ignore[method-assign]
        follower.wake = self.rest  # type: ignore[method-assign]

    def attach(self, *arguments: Any, **options: Any) -> Any:
        self.fault("attach")
        return super().attach(*arguments, **options)

    def rest(self) -> None:
        """Take turns until this hub has all that is in its store."""
        until = time.monotonic() + REST_WITHIN
        upkeep = self._follower.upkeep
        upkeep.checks.postpone(self._clock())  # they would come at a time of their own
        while True:
            self._follower._turn(self.feed)
            if not (upkeep.is_behind or self._follower.arrivals or self._is_late()):
                return
            assert time.monotonic() < until, "the hub does not come to rest"

    def _is_late(self) -> bool:
        with self.lock:
            channels = [
                channel
                for channel in self._channels.values()
                if channel.listened and not channel.fault and (channel.wanted or not channel.unborn)
            ]
        newest = self.store.newest([channel.name for channel in channels])
        return any(
            channel.ring is None or (position is not None and channel.ring.newest != position)
            for channel, position in zip(channels, newest, strict=True)
        )

    def close(self) -> None:
        super().close()
        self.feed.close()


class Lines(logging.Filter):
    """Keeps the lines that one twin logs, with their exceptions, and has them go nowhere else: there are very many."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str, str]] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if record.threadName != "MainThread":
            return True
        text, fault = record.getMessage(), record.exc_info[1] if record.exc_info else None
        whole = text + ("".join(traceback.format_exception(fault)) if fault else "")
        assert not [secret for secret in SECRETS if secret in whole], f"a secret is logged: {whole}"
        # Of a request that has failed, Flask knows only that the app answered 500.
        text = text.partition("is busy, because")[0]
        self.lines.append((record.levelname, text, repr(fault) if fault else ""))
        return False

    def take(self) -> list[tuple[str, str, str]]:
        lines, self.lines = self.lines, []
        return lines


class Answer(NamedTuple):
    """An answer, whoever gave it. The body is a stream or poll if that goes on."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes | Body | ItemStream | ProbeStream
    breaks_off: bool = False
    """Whether the connection is to break off after the body, without the end that HTTP prescribes."""
    by: str = "flask"
    """The way that it was given on: `flask` or `lane`."""


class Twin:
    """One of two services alike, over a store of its own."""

    def __init__(self, app: Flask, clock: Clock) -> None:
        self.app = app
        self.service: Service = app.extensions["sse"]
        self.service.tokens._clock = lambda: clock.real
        self.log = Lines()
        self.entered: list[object] = []
        """The connections that presence was told of, and their ends."""
        self.strike_at: Callable[[str], None] | None = None
        """Called with each of POINTS that a request comes to. It may raise a fault."""
        self._watch()

    @property
    def hub(self) -> TwinHub:
        hub = self.service.hub
        assert isinstance(hub, TwinHub)
        return hub

    @property
    def limits(self) -> Any:
        return self.app.extensions["sse.views"].admission._limits

    def answer(self, environ: Environ) -> Answer:
        """Return what this service answers to a request that our worker passes on."""
        return through_flask(self.app, environ)

    def answer_together(self, environs: Sequence[Environ]) -> list[Answer]:
        """Return the answers to several publishes that come at the same time."""
        return [self.answer(environ) for environ in environs]

    def strikes(self, point: str) -> None:
        if self.strike_at:
            self.strike_at(point)

    def _watch(self) -> None:
        store, presence, limits = self.service.store, self.service.presence, self.limits
        self._strike_before(store, "publish", "publish_each")
        self._strike_before(store, "read", "read")
        self._strike_before(store, "newest", "standing", "ensure", "before")
        self._strike_before(limits, "count", "_count")
        self.hub.fault = self.strikes  # type: ignore[method-assign]
        enter = presence.enter

        def note(*arguments: Any, **options: Any) -> Callable[[], None]:
            self.strikes("enter")
            self.entered.append((arguments, options))
            leave, number = enter(*arguments, **options), len(self.entered)

            def end() -> None:
                self.entered.append(("left", number))
                leave()

            return end

        presence.enter = note  # type: ignore[method-assign, assignment]

    def _strike_before(self, owner: Any, point: str, *names: str) -> None:
        for name in names:
            if function := getattr(owner, name, None):

                def call(*arguments: Any, _function: Any = function, **options: Any) -> Any:
                    try:
                        self.strikes(point)
                    except StoreUnavailable as fault:
                        if point == "publish":
                            return [fault for _ in arguments[0]]
                        raise
                    return _function(*arguments, **options)

                setattr(owner, name, call)

    # What there is to compare, beside the answers

    def seats(self) -> tuple[object, ...]:
        """Return what a request must leave behind only as long as it is open."""
        hub = self.hub
        return hub.subscribers, hub._seats, hub.channels, len(self.service.revocations._watched)

    def counts(self) -> object:
        """Return the counts of the limits in this process's memory."""
        return dict(getattr(self.limits._counts, "_windows", {}))

    def stored(self) -> object:
        """Return all that is in the store, but for times."""
        store: Any = self.service.store
        names = sorted({*getattr(store, "_rings", ())})
        if not isinstance(store, MemoryStore):
            return _in_redis(store, self.service.config.namespace)
        return (
            {name: (ring.base, ring.after(ring.base)) for name in names if (ring := store._rings.get(name))},
            {key: entry.position for key, (entry, _) in store._once.items()},
            [item._replace(at=0.0) for item, _ in store._revoked],
            repr(store.standing(names)),
        )


class LaneTwin(Twin):
    """The twin that asks the fast lane first.

    :param submits: whether publishes take the way on which several wait for one round trip to the store.
    """

    submits = False

    @property
    def lane(self) -> Lane:
        lane: Lane = self.app.extensions["sse.lane"]
        return lane

    def answer(self, environ: Environ) -> Answer:
        assert self.lane.rule.why_off() == ""
        route = self.lane.route(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if route and route.is_publish and self.submits:
            return self.answer_together([environ])[0]
        request = self.lane.request(environ)
        may_ask_app = route and self.lane.may_ask_app(route, request)
        self.log.take()  # it has looked at the token, whose fault is logged again
        log._last_logged.clear()
        assert "sse.counted" not in environ, "nothing is counted yet"
        reply = self.lane.reply(route, request) if route else None
        if reply is None:
            is_late = "sse.counted" in environ and not may_ask_app and not self.strike_at
            assert not is_late, "a request is left to Flask that was counted, and is not the app's to decide"
            return super().answer(environ)
        return _answer(reply)

    def answer_together(self, environs: Sequence[Environ]) -> list[Answer]:
        assert self.lane.rule.why_off() == ""
        answers: dict[int, Answer] = {}
        waiting: dict[int, tuple[Any, Prepared]] = {}

        def store() -> None:
            outcomes: Sequence[Any] = ()
            try:
                if waiting:
                    outcomes = self.lane.publish_each([prepared.publications for _, prepared in waiting.values()])
            except Exception as fault:
                outcomes = [fault] * len(waiting)
            for (number, (request, prepared)), outcome in zip(waiting.items(), outcomes, strict=True):
                answers[number] = _answer(self.lane.published(request, prepared, outcome))
            waiting.clear()

        for number, environ in enumerate(environs):
            route = self.lane.route(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            request = self.lane.request(environ)
            prepared = self.lane.prepare(route, request) if route else None
            if prepared is None:
                store()
                answers[number] = super().answer(environ)
            elif isinstance(prepared, Reply):
                answers[number] = _answer(prepared)
            else:
                waiting[number] = request, prepared
        store()
        return [answers[number] for number in range(len(environs))]


def _answer(reply: Reply) -> Answer:
    assert isinstance(reply.body, bytes) or not reply.breaks_off
    return Answer(reply.status, list(reply.headers), reply.body, reply.breaks_off, "lane")


def _fields(answer: Answer) -> list[tuple[str, str]]:
    """Return the headers, without the time in a session's cookie."""
    return [(name, text.partition("=")[0] if name == "Set-Cookie" else text) for name, text in answer.headers]


def _without_waits(answer: Answer) -> Answer:
    """Return an answer without the random time for which it has a stream wait, if it does.

    When a view has failed, Flask has its answer replaced twice, so it draws more random numbers.
    """
    if not isinstance(answer.body, bytes) or not (_BUSY.match(answer.body) or answer.status.startswith("503")):
        return answer
    headers = [(name, "" if name in ("Content-Length", "Retry-After") else text) for name, text in answer.headers]
    return answer._replace(headers=headers, body=_NUMBER.sub(b"0", answer.body))


def through_flask(app: Flask, environ: Environ) -> Answer:
    """Return the answer of the app, called as our worker calls it."""
    told: list[Any] = []
    body: Any = app(environ, lambda *answer: told.append(answer[:2]))
    status, headers = told[-1]
    if body is environ.get("sse.body", told) and isinstance(body, Body | ItemStream | ProbeStream):
        return Answer(status, headers, body)
    chunks: list[bytes] = []
    breaks_off = False
    try:
        chunks.extend(body)
    except Cut:
        breaks_off = True
        chunks = [*chunks] or [b""]
    finally:
        if hasattr(body, "close"):
            body.close()
    return Answer(status, headers, b"".join(chunks), breaks_off)


class Pair:
    """Both twins, and the connections that are open at both."""

    def __init__(self, flask: Twin, lane: LaneTwin, nonces: Nonces, seed: object) -> None:
        self.twins = (flask, lane)
        self._nonces = nonces
        self._seed = seed
        self._steps = 0
        self.open: list[tuple[Open, Open]] = []

    def each(self, act: Callable[[Twin], Any]) -> list[Any]:
        """Have both do the same, with the same random numbers; return what each returns, which is the same."""
        self._steps += 1
        results = []
        for twin in self.twins:
            random.seed(f"{self._seed} {self._steps}")
            self._nonces.begin(f"{self._seed} {self._steps}")
            with logging_to(twin.log):
                results.append(act(twin))
        return results

    def ask(self, *given: Environ) -> list[tuple[Answer, Answer]]:
        """Have both answer a request, or several publishes that come together.

        Keep what is held open, and compare all that can be compared quickly.
        """
        environs = [[copied(environ) for environ in given] for _ in self.twins]
        of = dict(zip(map(id, self.twins), environs, strict=True))
        if len(given) > 1:
            answers = self.each(lambda twin: twin.answer_together(of[id(twin)]))
        else:
            answers = self.each(lambda twin: [twin.answer(of[id(twin)][0])])
        pairs = list(zip(*answers, strict=True))
        for pair, both in zip(pairs, zip(*environs, strict=True), strict=True):
            self._compare(*pair, *both)
        self.compare(in_order=len(given) == 1)
        return pairs

    def _compare(self, flask: Answer, lane: Answer, flask_environ: Environ, lane_environ: Environ) -> None:
        if self.twins[0].strike_at:
            flask, lane = _without_waits(flask), _without_waits(lane)
        alike(flask.status, lane.status, "the status")
        if "sse.probe" in flask_environ and "sse.probe" in lane_environ:  # the doctor's answers have marks of their own
            alike([name for name, _ in flask.headers], [name for name, _ in lane.headers], "the names of headers")
            for answer in (flask, lane):
                if not isinstance(answer.body, bytes):
                    answer.body.close()
            return
        alike(_fields(flask), _fields(lane), "the headers")
        alike(flask.breaks_off, lane.breaks_off, "whether the body breaks off")
        if isinstance(flask.body, Body) and isinstance(lane.body, Body):
            opened = Open(flask.body), Open(lane.body)
            by = dict(zip(map(id, self.twins), opened, strict=True))
            texts = self.each(lambda twin: by[id(twin)].begin())
            alike(*texts, "the beginning of what is held open")
            alike(*[each.facts() for each in opened], "what is held open")
            if not opened[0].is_over:
                self.open.append(opened)
        else:
            alike(flask.body, lane.body, "the body")
        alike(unread(flask_environ), unread(lane_environ), "the bytes of the body that are left unread")

    def step(self, chance: random.Random) -> int:
        """Have all that is open take what has come. Close some of it. Return the bytes that came."""
        size = 0
        for pair in [*self.open]:
            by = dict(zip(map(id, self.twins), pair, strict=True))
            texts = self.each(partial(_next, by))
            alike(*texts, "what comes after the beginning")
            size += len(texts[0] or b"")
            if pair[0].is_over or chance.random() < 0.3:
                self.each(partial(_close, by))
                self.open.remove(pair)
        self.compare()
        return size

    def close(self) -> None:
        """Close all that is open."""
        for pair in self.open:
            by = dict(zip(map(id, self.twins), pair, strict=True))
            self.each(partial(_close, by))
        self.open = []

    def compare(self, *, in_order: bool = True) -> None:
        """Compare what the twins have told and counted since the last time, and how many seats are taken.

        :param in_order: whether the lines of the log are to come in the same order.
        """
        flask, lane = self.twins
        lines = [twin.log.take() for twin in self.twins]
        alike(*(lines if in_order else map(sorted, lines)), "the lines of the log")
        alike(flask.entered, lane.entered, "those who are there")
        flask.entered.clear()
        lane.entered.clear()
        alike(flask.seats(), lane.seats(), "the seats")

    def compare_all(self) -> None:
        """Compare the stores and the counts of the limits as well, which takes longer."""
        self.compare()
        flask, lane = self.twins
        alike(flask.counts(), lane.counts(), "the counts of the limits")
        alike(flask.stored(), lane.stored(), "the store")


def _next(by: dict[int, Open], twin: Twin) -> bytes | None:
    twin.hub.rest()
    return by[id(twin)].next()


def _close(by: dict[int, Open], twin: Twin) -> None:
    by[id(twin)].close()


class Open:
    """A stream or poll that one twin holds open, driven as the worker's loop drives it."""

    def __init__(self, body: Body) -> None:
        assert isinstance(body, Stream | Poll)
        self.body = body
        self.is_over = False
        self._part: Any = None
        self._facts: list[object] = []

    def begin(self) -> bytes:
        """Open it, as on the way to the loop; return its first bytes."""
        body = self.body
        opening = b""
        if isinstance(body, Stream):
            try:
                opening = body.open()
            except (RuntimeError, StoreUnavailable) as fault:  # that has struck
                self._facts = [repr(fault)]
                self.is_over = True
                body.close()
                return b""
            if body.ended:
                self._facts = [body.ended, body.cuts, body.end_reason]
                self.is_over = True
                body.log_end()
                body.close()
                return opening
        self._facts = [body.request_id, getattr(body, "dialect", None), body.subscriber.positions_by_name]
        self._part = body.hand_off()
        return opening

    def facts(self) -> object:
        """Return what can be told of it from outside."""
        body, permit = self.body, self._part.permit if self._part else None
        return (
            [each for each in (Stream, Poll, PresentStream, PresentPoll) if isinstance(body, each)],
            self._facts,
            None if self._part is None else _about(self._part.deadline - time.monotonic()),
            None if self._part is None else len(self._part.closing),
            permit and (permit.grant, permit.by_grant, permit.by_rule, permit.seen, permit.ends_at, bool(permit.wake)),
        )

    def next(self) -> bytes | None:
        """Return what has come."""
        body = self.body
        if isinstance(body, Poll):
            text = body.answer()
            self.is_over = text is not None
            return text
        chunk = body.next_bytes_at_hand({})
        if chunk is None:
            chunk = body.next_bytes()
        body.begin_write(len(chunk))
        body.mark_written(time.monotonic())
        self.is_over = body.ended
        return body.farewell(chunk) if body.ended else chunk

    def close(self) -> None:
        """End it, as the loop does when its client has gone or it is over."""
        self.body.close()
        if self._part.permit:
            self._part.permit.end()
        for done in self._part.closing:
            done()


def alike(flask: object, lane: object, what: str) -> None:
    """Fail if a thing differs between the twins."""
    if isinstance(flask, dict) and isinstance(lane, dict):  # show no more than what differs
        names = [name for name in {**flask, **lane} if flask.get(name, ...) != lane.get(name, ...)]
        flask, lane = ({name: each.get(name, ...) for name in names} for each in (flask, lane))
    assert flask == lane, f"{what} differs: through Flask {flask!r:.2000}, through the lane {lane!r:.2000}"


def _about(seconds: float) -> float:
    """Return seconds that are the same if they differ by the time that the twins took."""
    return inf if seconds == inf else round(seconds / 60)


def copied(environ: Environ) -> Environ:
    """Return the environ with a body of its own."""
    body = environ["wsgi.input"]
    own = io.BytesIO(body.getvalue()) if isinstance(body, io.BytesIO) else io.BufferedReader(Broken())
    return {**environ, "wsgi.input": own, "wsgi.errors": io.StringIO()}


def unread(environ: Environ) -> int | None:
    """Return the bytes of a body that were not read: the worker would take them for the next request."""
    body = environ["wsgi.input"]
    return len(body.read()) if isinstance(body, io.BytesIO) else None


@contextlib.contextmanager
def logging_to(lines: Lines) -> Iterator[None]:
    """Have one twin log in this block, and each of its warnings as if it were the first."""
    log._last_logged.clear()
    log._once.clear()
    loggers = [logging.getLogger(name) for name in ("sse", "tests")]
    for logger in loggers:
        logger.addFilter(lines)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(lines)


def _in_redis(store: Any, namespace: str) -> object:
    """Return what is in Redis in a namespace, without the entries whose ids are times."""
    with redis.Redis(connection_pool=redis.ConnectionPool.from_url(store.url_of_the_tests)) as client:
        readers: dict[bytes, Callable[[bytes], object]] = {
            b"stream": client.xrange,
            b"hash": client.hgetall,
            b"string": client.get,
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"set": client.smembers,
        }
        found = {}
        for key in sorted(client.scan_iter(f"{namespace}*", count=1000)):
            name = key.removeprefix(namespace.encode())
            if b"sse.settings" in name or b"sse.revoked" in name or b":present" in name or name.endswith(b":run"):
                continue
            found[name] = readers[client.type(key)](key)
        return found
