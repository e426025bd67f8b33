"""The fast lane gives the same answers as Flask, and does the same to the store, the limits, the seats and the log.

Two services alike get random requests, see twins.py: one answers through Flask, the other through the lane. Every 250
requests two others are made, with other settings. A request that the lane leaves to Flask must not have been counted.
The long form: FUZZ=1000000 pytest -o faulthandler_timeout=3600 tests/test_lane_differential.py
"""

from __future__ import annotations

import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import pytest
from flask import Flask, abort, request
from flask.sessions import SecureCookieSessionInterface

from sse import SSE
from sse.errors import StoreUnavailable
from sse.event import Event
from sse.stores.base import nonce
from tests.fuzzed_requests import COUNT, ENDED, Fuzzer
from tests.servers import RedisServer
from tests.tokens import KEY, SECRET, jwk_set
from tests.twins import POINTS, Answer, Clock, Environ, LaneTwin, Nonces, Pair, Twin, TwinHub
from tests.writing import Run

PER_WORLD = 250  # requests until two other services are made
NEWS = "the private news"
# The lane has to meet with all of these, lest requests gone blunt are taken for a lane that is right.
ITEMS = """HookedStream PresentStream HookedPoll PresentPoll bad_batch bad_json bad_request busy ended forbidden gone
    invalid_channel invalid_data invalid_event invalid_idempotency_key memory_store not_found too_large
    too_many_requests token_claims token_early token_expired token_invalid token_revoked unauthorized
    unsupported_media""".split()
ITEMS.append("breaks off")
STATUSES = {
    "stream": (200, 204, 400, 401, 403, 410, 503),
    "poll": (200, 400, 401, 403, 503),
    "publish": (201, 400, 401, 403, 404, 409, 413, 415, 422, 429, 503),
    "raw": (201, 400, 401, 403, 404, 409, 413, 429, 503),
}


class Still(NamedTuple):
    """What would go on by itself, and stands still while both twins answer."""

    clock: Clock
    nonces: Nonces


class World:
    """Two services alike with random settings, and the requests to them.

    :param seed: of everything in it.
    :param redis_url: of an empty Redis; None for the memory store.
    """

    def __init__(self, still: Still, folder: Path, seed: str, redis_url: str | None) -> None:
        self.random = random.Random(seed)
        self.clock = still.clock
        self.settings = self._settings(folder)
        self.secret_key = self.pick(None, None, "the-secret-key-of-the-app")
        self.rule, self.name = self.one_of(4, self._rule), self.one_of(4, self._name)
        self.multiprocess = bool(self.one_of(20, lambda: True))
        self.shares_limits = bool(self.one_of(2, lambda: True))
        self.hands_off = not self.one_of(20, lambda: True)
        self.faults = bool(self.one_of(3, lambda: True))
        # The bytes of new rings are counted when they are stored, so publishes that come together may get in by more.
        self.gathers = not self.settings["SSE_LIMIT_PUBLISH_BYTES"] and self.pick(True, False)
        self._redis_url = redis_url
        flask, lane = Twin(self._app("flask"), self.clock), LaneTwin(self._app("lane"), self.clock)
        lane.submits = self.gathers or self.pick(True, False)
        self.pair = Pair(flask, lane, still.nonces, seed)
        (private, ended), _ = self.pair.each(self._begin)
        self.fuzzer = Fuzzer(self.random.randrange(2**32), private)
        self.fuzzer.stored |= ended
        self.pair.compare_all()

    def one_of(self, count: int, make: Callable[[], Any]) -> Any:
        """Return, once in `count` times, what `make` returns; else None."""
        return make() if not self.random.randrange(count) else None

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def _settings(self, folder: Path) -> dict[str, object]:
        pick = self.pick
        settings = {
            "SSE_PUBLIC": pick("", "", "", "own/*", "*", "own/a,own/done"),
            "SSE_SECRET": SECRET,
            "SSE_JWKS": str(folder / "jwks"),
            "SSE_PUBLISH_KEYS_FILE": str(folder / "keys"),
            "SSE_ORIGINS": pick("https://a.example", "https://a.example", "*", "https://b.example", ""),
            "SSE_PROXIES": pick(0, 1, 1, 2),
            "SSE_RING": pick(3, 5, 5, 1000),
            "SSE_QUERY_TOKENS": pick(0, 0, 1),
            "SSE_DOCTOR": pick(0, 0, 0, 1),
            "SSE_PRESENCE": pick("", "", "own/*", "own/a"),
            "SSE_PREFIX": pick("/sse", "/sse", "/push/v1"),
            "SSE_LOG_RATE": 100_000,
            "SSE_LIMIT_SUBSCRIBE": pick("", "9999999/minute", "9999999/minute", "30/minute"),
            "SSE_LIMIT_NEW_CHANNELS": pick("", "6000/minute", "5/minute"),
            "SSE_LIMIT_PUBLISH": pick("", "", "20/minute"),
            "SSE_LIMIT_CHANNEL": pick("", "", "10/minute"),
            "SSE_LIMIT_PUBLISH_BYTES": pick("", "", "20000/minute"),
            "SSE_MAX_SUBSCRIBERS": pick(10_000, 10_000, 2, 0 + 1),
            "SSE_MAX_CHANNELS": pick(50, 50, 1),
            "SSE_MAX_EVENT_BYTES": pick(65_536, 65_536, 30),
            "SSE_RETRY": pick(3000, 1),
            "SSE_HEARTBEAT": pick(15, 3),
            "SSE_POLL_TIMEOUT": pick(25, 25, 0),
        }
        if self.one_of(6, lambda: True):  # no tokens, and perhaps no keys
            del settings["SSE_SECRET"], settings["SSE_JWKS"]
            if self.one_of(2, lambda: True):
                del settings["SSE_PUBLISH_KEYS_FILE"]
        return settings

    def _rule(self) -> Callable[[str], Any]:
        answers = self.pick({"own/a": True}, {"own/a": 403, "own/b": True}, {"own/b": "yes"}, {"own/a": 503}, {})

        def may_read(channel: str) -> Any:
            answer = answers.get(channel, False)
            assert request.path, "a rule may ask for the request"
            if type(answer) is int:
                abort(answer)
            return answer

        return may_read

    def _name(self) -> Callable[[], Any]:
        answer = self.pick("bob", None, 5, "raise")

        def reader() -> Any:
            if answer == "raise":
                raise RuntimeError(request.path)
            return answer

        return reader

    def _app(self, name: str) -> Flask:
        sse = SSE()
        if self.rule:
            sse.authorize(self.rule)
        if self.name:
            sse.identify(self.name)
        redis = {"SSE_REDIS_URL": self._redis_url, "SSE_NAMESPACE": name} if self._redis_url else {}
        if self._redis_url and self.shares_limits:
            redis["SSE_LIMITS_URL"] = self._redis_url
        app = Flask("tests")
        app.config.from_mapping(self.settings | redis, SECRET_KEY=self.secret_key)
        sse.init_app(app)
        app.extensions["sse"].store.url_of_the_tests = self._redis_url
        self.session = "x"
        if serializer := SecureCookieSessionInterface().get_signing_serializer(app):
            self.session = str(serializer.dumps({"_permanent": True}))  # Flask renews it with each answer
        app.test_client().get(f"{self.settings['SSE_PREFIX']}/health")  # each worker's first request is Flask's
        assert app.extensions["sse.lane"].rule.why_off() == ""
        return app

    def _begin(self, twin: Twin) -> tuple[str, dict[str, list[str]]]:
        """Store what is there before the first request.

        Return the newest position of the channel `private`, and all positions of channels that have ended.
        """
        service = twin.service
        if service.tokens.configured:
            service.revoke("token", "revoked")
            service.revoke("sub", "revoked")
        ended = {}
        for channel in ENDED:
            run = Run(service.store, channel)
            reason: Any = channel.removeprefix("own/")
            ended[channel] = [*map(str, run.write("the text")), str(run.end(reason))]
        service.publish_one("private", Event(NEWS), None)
        return str(service.store.newest(["private"])[0]), ended

    # The requests

    def environ(self) -> tuple[Environ, str | None]:
        """Return a request of the fuzzer, with more that a client or a server may give; and the way that it goes."""
        given = self.fuzzer.request()
        environ = {**given.environ}
        one_of, pick = self.one_of, self.pick
        path, prefix = environ["PATH_INFO"], str(self.settings["SSE_PREFIX"])
        environ["PATH_INFO"] = prefix + path.removeprefix("/sse") if path.startswith("/sse") else path
        environ["REMOTE_ADDR"] = pick("192.0.2.1", "192.0.2.1", "192.0.2.2", "127.0.0.1", "::1", "2001:db8::7", "")
        environ["SERVER_PROTOCOL"] = pick(*["HTTP/1.1"] * 19, "HTTP/1.0")
        environ["SERVER_SOFTWARE"] = "gunicorn/0.0.0"
        environ["wsgi.url_scheme"] = pick("http", "https")
        environ["wsgi.multiprocess"] = self.multiprocess
        environ["wsgi.file_wrapper"] = iter
        environ["RAW_URI"] = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        environ["sse.gone"] = bool
        if self.hands_off:
            environ["sse.can_hand_off"] = True
        if not one_of(40, lambda: True):
            environ.setdefault("HTTP_HOST", pick("push.example", "push.example:8000", "a.example"))
        one_of(8, lambda: environ.update(HTTP_X_REQUEST_ID=pick("id-7", "eyJhbGciOi", "a b", "x" * 200)))
        one_of(8, lambda: environ.update(HTTP_ACCEPT=pick("*/*", "text/event-stream", "text/html;q=x", "")))
        one_of(30, lambda: environ.update(HTTP_USER_AGENT="x/1", HTTP_REFERER="https://a.example/\xe9"))
        one_of(30, lambda: environ.update(HTTP_COOKIE=f"session={self.session}; {environ.get('HTTP_COOKIE', '')}"))
        one_of(60, lambda: environ.update(HTTP_UPGRADE=pick("websocket", "h2c"), HTTP_CONNECTION="upgrade"))
        if not one_of(40, lambda: True):  # a server gives none of these if the client has sent none
            for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                if environ.get(name) == "" or (name == "CONTENT_LENGTH" and given.body == b"" and given.way != "raw"):
                    environ.pop(name, None)
        query = [environ["QUERY_STRING"]]
        if given.way == "poll" and self.hands_off and one_of(2, lambda: True):
            query = [re.sub("(^|&)timeout=0(?=&|$)", pick("", r"\1timeout=20"), query[0])]
            one_of(2, lambda: environ.update(HTTP_LAST_EVENT_ID=self.newest(query[0])))
        one_of(6, lambda: query.append(pick("client=page-0001", "client=page-0002", "client=x", "client=")))
        one_of(40, lambda: query.append(pick("probe=1", "probe=1&id=abcdefabcdefabcdef", "x=y", "&&", "=", "%ff", "a")))
        environ["QUERY_STRING"] = "&".join(query)
        return environ, given.way

    def newest(self, query: str) -> str:
        """Return the newest position of each channel in a query, from which a poll has to wait."""
        channels = dict.fromkeys(value for name, value in parse_qsl(query) if name == "channel")
        stored = [(channel, self.fuzzer.stored.get(channel)) for channel in channels if channel.isascii()]
        return "~".join(f"{channel}={positions[-1]}" for channel, positions in stored if positions)

    def strike(self) -> Callable[[str], None]:
        """Return a fault for the next request, which strikes at one step of it or at none."""
        point, error = self.pick(*POINTS), self.pick(RuntimeError("a fault"), StoreUnavailable("away", "wait"))
        after = self.random.randrange(2)
        came: Counter[str] = Counter()

        def strike(at: str) -> None:
            came[at] += 1
            if at == point and came[at] > after:
                raise type(error)(*error.args)

        return strike

    def run(self, count: int, met: Counter[object]) -> None:
        """Send so many requests, and compare what comes of each; count in `met` what there was."""
        drains_at = self.random.randrange(count) if self.one_of(5, lambda: True) else count
        gathered: list[tuple[Environ, str | None]] = []
        for number in range(count):
            if number == drains_at:
                self.pair.each(_drain)
            self.clock.tick(70.0 if self.one_of(50, lambda: True) else 0.0)
            gathered.append(self.environ())
            is_publish = gathered[-1][0]["PATH_INFO"].startswith(f"{self.settings['SSE_PREFIX']}/publish")
            if is_publish and self.gathers and len(gathered) < 5 and self.random.randrange(3):
                continue  # several publishes come together
            last = gathered.pop()
            if gathered and not is_publish:
                self.ask(gathered, met)
                gathered = []
            self.ask([*gathered, last], met)
            gathered = []
            if self.one_of(4, lambda: True):
                met["came later"] += self.pair.step(self.random)
            if number % 50 == 49:
                self.pair.compare_all()
        self.pair.close()
        self.pair.compare_all()

    def ask(self, given: Sequence[tuple[Environ, str | None]], met: Counter[object]) -> None:
        """Have both services answer these requests, at one of which a fault may strike."""
        strikes = self.faults and len(given) == 1 and self.one_of(10, lambda: True)
        seed = self.random.randrange(2**32)
        try:
            for twin in self.pair.twins:
                if strikes:
                    self.random.seed(seed)
                    twin.strike_at = self.strike()
            answers = self.pair.ask(*[environ for environ, _ in given])
        except Exception as fault:
            fault.add_note(f"{'struck: ' if strikes else ''}{given}")
            fault.add_note(f"settings {self.settings}, rule {bool(self.rule)}, name {bool(self.name)}")
            raise
        for twin in self.pair.twins:
            twin.strike_at = None
        for (_, way), (flask, lane) in zip(given, answers, strict=True):
            self._note(way, flask, lane, met)
        met["together"] += len(given) > 1

    def _note(self, way: str | None, flask: Answer, lane: Answer, met: Counter[object]) -> None:
        status = int(flask.status[:3])
        met[lane.by, way, status] += 1
        met[lane.by] += 1
        if isinstance(flask.body, bytes):
            for code in re.findall(rb'"code":"([a-z_]+)"', flask.body[:300]):
                met[lane.by, code.decode()] += 1
            if flask.breaks_off:
                met[lane.by, "breaks off"] += 1
        else:
            met[lane.by, type(flask.body).__name__] += 1
        if status == 201 and way in ("publish", "raw") and isinstance(flask.body, bytes):
            for id in re.findall(r"own/[^=\"]*=[0-9-]+", flask.body.decode()):
                channel, _, position = id.partition("=")
                self.fuzzer.stored[channel].append(position)


def _drain(twin: Twin) -> None:
    twin.service.is_ending = True
    twin.hub.drain(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jwks").write_text(jwk_set("RS256"))
    (tmp_path / "keys").write_text(f"own {KEY} own/*\n")
    return tmp_path


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Iterator[Still]:
    """Have hubs step in the test's own thread, and the seed alone decide."""
    still = Still(Clock(), Nonces())
    monkeypatch.setattr("sse.service.Hub", TwinHub)
    monkeypatch.setattr("sse.hub.schedule.GATHER", 0.0)
    monkeypatch.setattr("sse.access.limits.time", still.clock)
    for name, module in [*sys.modules.items()]:  # but for presence, whose threads have their own time
        if name.startswith("sse.stores.") and not name.endswith("presence") and getattr(module, "nonce", 0) is nonce:
            monkeypatch.setattr(module, "nonce", still.nonces)
    for name in ("sse", "tests"):
        before = logging.getLogger(name).level
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield still
    for name in ("sse", "tests"):
        logging.getLogger(name).setLevel(before)


def run_worlds(
    still: Still, folder: Path, seed: str, count: int, redis_url: str | None = None, server: RedisServer | None = None
) -> Counter[object]:
    """Have `count` requests answered in all. Return what was met with."""
    met: Counter[object] = Counter()
    for number in range(max(count // PER_WORLD, 1)):
        try:
            world = World(still, folder, f"{seed} {number}", redis_url)
            world.run(min(PER_WORLD, count), met)
        except Exception as fault:
            fault.add_note(f"world {number} of seed {seed}")
            raise
        for twin in world.pair.twins:
            twin.service.close()
        if server:
            with server.client() as client:
                client.flushall()
    return met


def test_the_lane_answers_as_flask_does(still: Still, folder: Path, request: pytest.FixtureRequest) -> None:
    seed = str(request.config.option.hypothesis_seed)
    met = run_worlds(still, folder, seed, COUNT)
    assert met["lane"] > COUNT / 2, met
    # Otherwise what is alike would say little.
    assert not {item for item in ITEMS if not met["lane", item]}, met
    assert not {(way, status) for way, codes in STATUSES.items() for status in codes if not met["lane", way, status]}
    assert met["together"] > COUNT / 100, met
    assert met["came later"] > COUNT, met


def test_the_same_holds_over_redis(
    still: Still, folder: Path, redis_url: str, shared_redis: RedisServer, request: pytest.FixtureRequest
) -> None:
    seed = str(request.config.option.hypothesis_seed)
    met = run_worlds(still, folder, seed, COUNT // 10, redis_url, shared_redis)
    assert met["lane"] > COUNT / 20, met
    ways = [("stream", 200), ("poll", 200), ("publish", 201), ("raw", 201), ("publish", 409)]
    assert not {item for item in ways if not met["lane", *item]}, met
