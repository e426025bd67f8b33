"""Rings in Redis, one stream key a channel, shared by all workers and machines.

A stream entry's id is the event's position. `XRANGE sse:{news} 58-… +` in redis-cli shows what a client at that
position has missed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import random
import re
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import islice
from typing import Any, Final, NamedTuple, cast

import redis
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError

from sse.errors import StoreUnavailable
from sse.event import UNBORN, Entry, Position
from sse.log import warn
from sse.spread import PAUSE
from sse.stores import faults, fitness
from sse.stores.base import (
    ONCE_TTL,
    PAGE,
    PAGE_BYTES,
    READ_AT_ONCE,
    UNBORN_TTL,
    Feed,
    Notice,
    Page,
    Publication,
    Receipt,
    Revocation,
    Store,
    conflict,
    nonce,
)
from sse.stores.peers import AT_MOST, LIFE, Peers
from sse.stores.pool import Pool
from sse.wire import MAX_PAYLOAD, decode_payload, encode_payload

_log = logging.getLogger("sse")
_chance: Final = random.SystemRandom()

_CONNECTIONS: Final = 8
_RANDOM_ONCE_TTL: Final = 30  # seconds; longer than a publish and its repetitions can take, by SSE_REDIS_TIMEOUT
_PING_AFTER: Final = 5.0
_LOST_AFTER: Final = 12.0
_REVOKED_AT_ONCE: Final = 512
_SUBSCRIBED_AT_ONCE: Final = 500
_LOOK_EVERY: Final = 60.0  # seconds between two looks at whether Redis is still fit
_LOOK_LATE: Final = 10.0  # seconds after which a publish looks where no feed has
_EACH: Final = 0.001  # seconds that each of many commands may take beyond the timeout
_NO_CHANNEL: Final = "sse.check"  # no channel starts so
_REVOKED: Final = "sse.revoked"
_SETTINGS: Final = "sse.settings"
_MILLISECONDS: Final = re.compile(rb"[0-9]{1,15}")
_KEPT_LONGER: Final = 86_400  # seconds that the list of revocations is kept beyond need, whatever a clock says
_CLOCKS_DIFFER: Final = 5.0  # seconds between this machine's clock and Redis's that the log tells of


class _Clocks(NamedTuple):
    """Redis's clock, and then this process's, as one round trip showed them, in seconds since 1970.

    `here` is read after `redis`, so that a time of Redis's is never taken for an earlier one of this process's.
    """

    redis: float
    here: float


class RedisStore(Store):
    """A store in the Redis at `url`, 7.0 or newer, through a small pool of connections."""

    def __init__(self, url: str, *, ring: int, ring_ttl: int, namespace: str = "sse", timeout: float = 5.0) -> None:
        self._pool = Pool(url, _CONNECTIONS)
        self._scheme = url.partition(":")[0]
        self._timeout = timeout
        self._namespace = namespace
        self._database = self._pool.database
        self._max_events = ring
        self._ttl = ring_ttl
        self._publish_script = _Script("publish.lua")
        self._ensure_script = _Script("ensure.lua")
        self._clock_trouble = ""  # what the log told last of Redis's clock
        self._told = ""  # the last fault of Redis itself in the log
        self._peers = Peers((ring, ring_ttl))
        self._has_feed = False  # it serves readers
        self._look_at = math.inf  # when Redis is looked at again, by `time.monotonic`
        self._before_script = _Script("before.lua")
        self._read_script = _Script("read.lua")
        self._checked = False
        self._checking: _Checking | None = None
        self._check_lock = threading.Lock()  # held while nothing waits
        self._jobs: list[_Job] = []
        self._led = False
        self._publish_lock = threading.Lock()  # held while nothing waits

    def publish(self, publications: Sequence[Publication]) -> list[Receipt | StoreUnavailable]:
        # One job at a time leads: it publishes for all that wait, so publishes that come together share a round trip.
        deadline = self._deadline()
        before: dict[str, str] = {}
        job = _Job([])
        for publication in publications:
            call = self._prepare(publication, before.get(publication.channel))
            before[publication.channel] = call[2]
            job.calls.append(call)
        if len(publications) > 1 and any(publication.key for publication in publications):
            self._check_keys(publications, job.calls, deadline)
        with self._publish_lock:
            self._jobs.append(job)
            follows, self._led = self._led, True
        self._await(job, follows, deadline)
        if job.outcome is None:
            self._lead(deadline)
        if isinstance(job.outcome, StoreUnavailable):
            raise StoreUnavailable(job.outcome.message, job.outcome.hint)  # one of its own for each who shares it
        if time.monotonic() >= self._look_at + _LOOK_LATE:
            self._look(deadline)  # there is no feed that does
        return [
            _receipt(reply, publication.channel, call)
            for reply, publication, call in zip(cast("list[Any]", job.outcome), publications, job.calls, strict=True)
        ]

    def newest(self, channels: Sequence[str], *, prolong: bool = False) -> list[Position | StoreUnavailable | None]:
        deadline = self._deadline(len(channels))
        positions = self._before([(channel, 0) for channel in channels], deadline)
        if prolong:
            self._execute(
                (
                    ("EXPIRE", self._key(channel), self._ttl if position.offset else UNBORN_TTL, "GT")
                    for channel, position in zip(channels, positions, strict=True)
                    if isinstance(position, Position)
                ),
                deadline,
            )
        return positions

    def ensure(self, channels: Sequence[str]) -> list[Position | StoreUnavailable]:
        calls = [(1, self._key(channel), _nonce(), self._ttl, UNBORN_TTL) for channel in channels]
        replies = self._evaluate(self._ensure_script, calls, self._deadline(len(channels)))
        return [_newest_id(reply, channel) for channel, reply in zip(channels, replies, strict=True)]

    def read(
        self, positions: Sequence[tuple[str, Position]], limit: int = PAGE, max_bytes: int = PAGE_BYTES
    ) -> list[Page | StoreUnavailable]:
        deadline = self._deadline(len(positions))
        # Each place first has an equal share. What is too large for that is read after it, one place after another.
        alone = len(positions) == 1
        read = self._pages(
            positions, limit, max_bytes // max(len(positions), 1), at_least=int(alone), deadline=deadline
        )
        left = max_bytes - sum(size for _, size in read)
        for index, (page, _) in enumerate(read):
            if not alone and limit and left > 0 and isinstance(page, Page) and page.more and not page.entries:
                read[index] = self._pages([positions[index]], limit, left, at_least=1, deadline=deadline)[0]
                left -= read[index][1]
        return [page for page, _ in read]

    def before(self, channels: Sequence[tuple[str, int]]) -> list[Position | StoreUnavailable | None]:
        return self._before(channels, self._deadline(len(channels)))

    def revoke(self, what: str, ttl: int) -> None:
        key = self._key(_REVOKED)
        now, deadline = time.time(), self._deadline()
        _, clocks = self._execute_timed([], deadline)
        # Entries' ids are times of Redis's clock. The earlier of both clocks decides which entries are too old, so that
        # neither clock alone, if it is fast, deletes what still counts.
        oldest = int((min(clocks.redis if clocks else now, now) - ttl - _KEPT_LONGER) * 1000)
        commands = [
            ("XADD", key, "MINID", "~", max(oldest, 0), "*", "d", what, "at", int(now * 1000)),
            ("EXPIRE", key, ttl + _KEPT_LONGER),
        ]
        for reply in self._execute(commands, deadline):
            if isinstance(reply, Exception):
                raise _refusal(reply, _REVOKED)

    def revoked(self, after: str = "") -> list[Revocation]:
        [reply], clocks = self._execute_timed(
            [("XRANGE", self._key(_REVOKED), after or "-", "+", "COUNT", _REVOKED_AT_ONCE)]
        )
        if isinstance(reply, Exception):
            raise _refusal(reply, _REVOKED)
        found = [
            Revocation(id.decode(), _revoked_at(id, fields, clocks), _field(fields, b"d").decode(errors="replace"))
            for id, fields in reply
        ]
        if after and not (found and found[0].id == after):
            return self.revoked()
        return found[1:] if after else found

    def feed(self) -> Feed:
        self._has_feed = True
        return _RedisFeed(self, self._pool.connection(), self._scheme, self._timeout)

    def close(self) -> None:
        self._pool.close()

    def check(self, deadline: float | None = None) -> None:
        """Make sure, once, that this Redis can be used. One asks at a time, and who waits for that shares the outcome.

        :param deadline: when to give up, by the monotonic clock; without one, after the store's timeout.
        :raises StoreUnavailable: if it is older than 7.0, a Cluster or a Sentinel, may evict rings, or lacks a command.
        """
        deadline = deadline or self._deadline()
        while not self._checked:
            with self._check_lock:
                checking = self._checking
                if checking is None:
                    mine = self._checking = _Checking()
            if checking is None:
                try:
                    self._check(deadline)
                    self._checked = True
                except StoreUnavailable as error:
                    mine.fault = error
                    raise
                finally:
                    self._checking = None
                    mine.done.set()
                self._look_later()
                self._compare(deadline)
            elif not checking.done.wait(max(deadline - time.monotonic(), 0)):
                raise self._too_late()
            elif checking.fault:
                raise StoreUnavailable(checking.fault.message, checking.fault.hint)

    def look_soon(self) -> None:
        """Have the next `look_in_time` look."""
        self._look_at = 0.0

    def look_in_time(self) -> None:
        """If the last look was a minute ago, ask again whether Redis is fit; the log tells what has changed."""
        if time.monotonic() >= self._look_at:
            self._look(self._deadline())

    def _look(self, deadline: float) -> None:
        self._look_later()
        with contextlib.suppress(StoreUnavailable):  # an absence is told by those who need it
            fault, drawback = self._judge(deadline)
            self._tell(fault or drawback)
        self._compare(deadline)

    def _look_later(self) -> None:
        self._look_at = time.monotonic() + _LOOK_EVERY * _chance.uniform(0.9, 1.1)

    def _compare(self, deadline: float) -> None:
        """Have the log tell of others on this namespace that keep other rings. That never fails, nor refuses anything.

        Each publisher trims a ring to its own SSE_RING. A process with readers puts its settings on record for others.
        """
        key = self._key(_SETTINGS)
        with contextlib.suppress(RedisError, OSError):
            [entries] = self._pool.ask([("XREVRANGE", key, "+", "-", "COUNT", AT_MOST)], deadline)
            if isinstance(entries, Exception):
                return
            for ring, ttl in self._peers.look(entries):
                _log.warning(
                    "SSE_RING is %d and SSE_RING_TTL %d here, but %d and %d elsewhere on namespace %s: each cuts the "
                    "rings of both to its own; set them alike, or give each service an SSE_NAMESPACE of its own; after "
                    "a change, this ends with the old processes",
                    *(self._max_events, self._ttl, ring, ttl, self._namespace),
                )
            if self._has_feed and self._peers.is_due:
                mine = f"{self._max_events} {self._ttl}"
                added, _ = self._pool.ask(
                    [("XADD", key, "MAXLEN", "=", AT_MOST, "*", "d", mine), ("EXPIRE", key, LIFE)], deadline
                )
                if isinstance(added, bytes):
                    self._peers.added(added)

    def _check(self, deadline: float) -> None:
        fault, drawback = self._judge(deadline)
        if fault:
            raise fault
        self._tell(drawback)

    def _judge(self, deadline: float) -> tuple[StoreUnavailable | None, StoreUnavailable | None]:
        """Why Redis cannot be used, and what is wrong with it beside that."""
        key = self._key(_NO_CHANNEL)
        asked_at = time.time()
        with faults.translated(self._scheme, is_known=self._checked):
            time_reply, *replies = self._pool.ask(
                [("TIME",), *fitness.questions(key, self.announcements(_NO_CHANNEL))], deadline
            )
        fault = fitness.judge(replies)
        if not fault:
            self._clocks(time_reply, asked_at)  # the right to ask for it is not required
        return fault, fitness.drawback(replies)

    def _tell(self, fault: StoreUnavailable | None) -> None:
        """Have the log tell what is wrong with a Redis that is used all the same, once for each change."""
        told, self._told = self._told, str(fault or "")
        if fault and self._told != told:
            _log.warning("Redis is not fit, but still in use: %s", fault)
        elif told and not fault:
            _log.warning("Redis is fit again")

    def announcements(self, channel: str) -> str:
        """The pub/sub channel of a channel; it has the database's number, which pub/sub itself disregards."""
        return f"{self._namespace}:{self._database}:{{{channel}}}"

    def _key(self, channel: str) -> str:
        return f"{self._namespace}:{{{channel}}}"

    def _prepare(self, publication: Publication, before: str | None) -> tuple[Any, ...]:
        """The script's arguments: made once, so that a repetition after a lost reply is known for what it is."""
        channel, event, once = publication
        key = self._key(channel)
        random = nonce()
        keys = [key, f"{key}:once:{once or random}", *([before] if before else [])]
        return (
            len(keys),
            *keys,
            random,
            self._max_events + 1,
            self._ttl,
            ONCE_TTL if once else _RANDOM_ONCE_TTL,
            "PUBLISH",
            self.announcements(channel),
            encode_payload(event),
        )

    def _check_keys(
        self, publications: Sequence[Publication], calls: Sequence[tuple[Any, ...]], deadline: float
    ) -> None:
        """Refuse a batch before any of it is stored.

        Where another uses the same key at this very moment, the script refuses that one publication.
        """
        used: dict[str, bytes] = {}
        replies = self._execute((("GET", call[2]) for call in calls), deadline)
        for publication, call, reply in zip(publications, calls, replies, strict=True):
            digest = hashlib.sha1(call[-1], usedforsecurity=False).hexdigest().encode()
            done = reply.partition(b" ")[2] if isinstance(reply, bytes) else used.setdefault(call[2], digest)
            if done != digest:
                raise conflict(publication.channel)

    def _await(self, job: _Job, follows: bool, deadline: float) -> None:
        """Wait until the job is done or is to lead. If its time or its greenlet ends meanwhile, another leads.

        :raises StoreUnavailable: when its time is over; another may still be publishing it.
        """
        is_told = False
        try:
            if not follows or job.turn.wait(max(deadline - time.monotonic(), 0)):
                if job.outcome is None:
                    time.sleep(0)  # whoever is about to publish can come along, and a loop of publishes leaves room
                is_told = True
        finally:
            if not is_told:
                with self._publish_lock:
                    if job in self._jobs:
                        self._jobs.remove(job)
                        if not follows or job.turn.is_set():
                            self._hand_on()
        if not is_told and (job.outcome is None or not job.turn.is_set()):
            raise self._too_late()

    def _hand_on(self) -> None:
        """Let the first of those who wait lead; under the lock."""
        self._led = bool(self._jobs)
        for job in self._jobs[:1]:
            job.turn.set()

    def _lead(self, deadline: float) -> None:
        """Publish all jobs that wait, and hand the lead to the first of those that have come meanwhile.

        If the store does not answer, all of these share that: were each to lead an attempt of its own, the last would
        wait for all of them.
        """
        with self._publish_lock:
            jobs, self._jobs = self._jobs, []
        for job in jobs:  # those who wait must not take the end of this thread or greenlet for success
            job.outcome = StoreUnavailable("publishing was interrupted", "publish again with the same key")
        try:
            calls = [call for job in jobs for call in job.calls]
            replies = iter(self._evaluate(self._publish_script, calls, deadline))
            for job in jobs:
                job.outcome = list(islice(replies, len(job.calls)))
        except StoreUnavailable as error:
            with self._publish_lock:
                jobs += self._jobs
                self._jobs = []
            for job in jobs:
                job.outcome = error
        finally:
            for job in jobs:
                job.turn.set()
            with self._publish_lock:
                self._hand_on()

    def _before(self, channels: Sequence[tuple[str, int]], deadline: float) -> list[Position | StoreUnavailable | None]:
        calls = [(1, self._key(channel), count) for channel, count in channels]
        positions: list[Position | StoreUnavailable | None] = []
        for (channel, count), reply in zip(channels, self._evaluate(self._before_script, calls, deadline), strict=True):
            position = None if reply is None else _newest_id(reply, channel)
            if count and isinstance(position, StoreUnavailable) and not isinstance(reply, Exception):
                position = UNBORN  # an entry that is not ours: a reader cannot go on from there, and is told so
            positions.append(position)
        return positions

    def _pages(
        self, positions: Sequence[tuple[str, Position]], limit: int, max_bytes: int, *, at_least: int, deadline: float
    ) -> list[tuple[Page | StoreUnavailable, int]]:
        """For each place, the page after it, and the bytes of its data. `max_bytes` bounds each by itself."""
        calls = [
            (1, self._key(channel), str(position), limit, max_bytes, at_least, MAX_PAYLOAD)
            for channel, position in positions
        ]
        replies = self._evaluate(self._read_script, calls, deadline)
        return [_page(reply, position, channel) for (channel, position), reply in zip(positions, replies, strict=True)]

    def _evaluate(self, script: _Script, calls: Sequence[tuple[Any, ...]], deadline: float) -> list[Any]:
        # The first of several brings the script along: were only some of them repeated for want of it, because another
        # client brings it meanwhile, their order would be lost.
        replies = self._execute(
            (
                ("EVAL", script.text, *call) if index == 0 < len(calls) - 1 else ("EVALSHA", script.sha, *call)
                for index, call in enumerate(calls)
            ),
            deadline,
        )
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        repeated = self._execute((("EVAL", script.text, *calls[index]) for index in unknown), deadline)
        for index, reply in zip(unknown, repeated, strict=True):
            replies[index] = reply
        return replies

    def _execute(self, commands: Iterable[tuple[Any, ...]], deadline: float | None = None) -> list[Any]:
        """The replies of all commands, in one round trip; an error reply stands as a value in its place.

        :param deadline: when to give up, by the monotonic clock; without one, after the store's timeout.
        :raises StoreUnavailable: if there is no reply by then.
        """
        commands = list(commands)
        if not commands:
            return []
        deadline = deadline or self._deadline()
        self.check(deadline)
        with faults.translated(self._scheme, is_known=True):
            replies = self._pool.ask(commands, deadline)
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            self._pool.renew()  # the primary has moved
        return replies

    def _execute_timed(
        self, commands: Iterable[tuple[Any, ...]], deadline: float | None = None
    ) -> tuple[list[Any], _Clocks | None]:
        """The replies of all commands, and the clocks at that moment; None if Redis does not tell its time."""
        asked_at = time.time()
        reply, *replies = self._execute([("TIME",), *commands], deadline)
        return replies, self._clocks(reply, asked_at)

    def _clocks(self, reply: Any, asked_at: float) -> _Clocks | None:
        """The clocks, by the reply to a TIME. The log tells once if they differ, or if there is no such reply."""
        here = time.time()
        clocks = None if isinstance(reply, Exception) else _Clocks(int(reply[0]) + int(reply[1]) / 1_000_000, here)
        trouble = ""
        if clocks is None:
            trouble = "Redis does not tell its time, so revocations count by its clock and the revoking machine's alone"
        elif here - clocks.redis < -_CLOCKS_DIFFER:
            trouble = "the clock here is behind Redis's"
        elif asked_at - clocks.redis > _CLOCKS_DIFFER:
            trouble = "the clock here is ahead of Redis's"
        if trouble != self._clock_trouble:
            self._clock_trouble = trouble
            if clocks is None:
                _log.warning("%s: %s; grant +time with ACL SETUSER", trouble, reply)
            elif trouble:
                _log.warning("%s by %.0f s; set both to the right time", trouble, abs(here - clocks.redis))
            else:
                _log.warning("the clock here and Redis's agree again")
        return clocks

    def _deadline(self, commands: int = 0) -> float:
        """When to give up what takes so many commands, by the monotonic clock."""
        return time.monotonic() + self._timeout + commands * _EACH

    def _too_late(self) -> StoreUnavailable:
        return StoreUnavailable(f"Redis has not answered for {self._timeout:g} s", "see that it runs and is reachable")


class _Job:
    """The calls of one `publish`, and their replies; `turn` is set when that is known, or it is to lead."""

    __slots__ = ("calls", "outcome", "turn")

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls = calls
        self.outcome: list[Any] | StoreUnavailable | None = None
        self.turn = threading.Event()


class _Checking:
    """A check that is under way; its `fault` is known when it is `done`."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.fault: StoreUnavailable | None = None


class _Script:
    def __init__(self, name: str) -> None:
        self.text = resources.files(__package__).joinpath(name).read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class _RedisFeed(Feed):
    """One pub/sub connection. Only `read` connects and reads. Any thread may send: what is queued while one sends, that
    one sends too.
    """

    def __init__(self, store: RedisStore, connection: Any, scheme: str, timeout: float) -> None:
        self._store = store
        self._connection = connection
        self._scheme = scheme
        self._timeout = timeout
        self._lock = threading.Lock()  # held while nothing waits
        self._socket: Any = None  # None while there is no connection
        self._unsent: list[tuple[str, ...]] = []
        self._is_sending = False
        self._closed = False
        self._channels: dict[str, str] = {}  # by their name in pub/sub
        self._heard = self._pinged = 0.0
        self._awake = False  # `read` is not to wait
        self._has_connected = False

    def subscribe(self, channels: Iterable[str]) -> None:
        names = {self._store.announcements(channel): channel for channel in channels}
        self._channels.update(names)
        self._send("SUBSCRIBE", *names)

    def unsubscribe(self, channels: Iterable[str]) -> None:
        names = [self._store.announcements(channel) for channel in channels]
        for name in names:
            self._channels.pop(name, None)
        self._send("UNSUBSCRIBE", *names)

    def read(self, timeout: float) -> list[Notice]:
        notices: list[Notice] = []
        size = 0
        self._connect()
        self._store.look_in_time()
        try:
            wait = 0 if self._awake else min(timeout, _PING_AFTER)
            self._awake = False
            while len(notices) < READ_AT_ONCE and size < PAGE_BYTES:
                notice = self._notice(self._connection.read_response(timeout=wait, disconnect_on_error=False))
                self._heard = time.monotonic()
                if notice:
                    notices.append(notice)
                    size += len(notice.entry.event.data) if notice.entry else 0
                wait = 0
        except redis.TimeoutError:
            self._ping()
        except (RedisError, OSError, ValueError) as error:
            # Any fault leaves the connection in doubt. What was read still counts.
            self._disconnect()
            if not notices and not self._closed:
                raise faults.unreachable(error, self._scheme, is_known=True) from error
        return notices

    def wake(self) -> None:
        self._awake = True
        self._send("PING")

    def close(self) -> None:
        self._closed = True
        self._disconnect()

    def _connect(self) -> None:
        if self._socket is not None:
            return
        self._disconnect()
        self._connection.deadline = time.monotonic() + self._timeout
        self._store.check(self._connection.deadline)
        with faults.translated(self._scheme, is_known=True):
            self._connection.connect()
        if self._has_connected:
            self._store.look_soon()  # it may be another Redis now, or have another configuration
        self._has_connected = True
        with self._lock:
            self._heard = self._pinged = time.monotonic()
            self._socket, self._unsent = self._connection._sock, []
        names = list(self._channels)
        for start in range(0, len(names), _SUBSCRIBED_AT_ONCE):
            self._send("SUBSCRIBE", *names[start : start + _SUBSCRIBED_AT_ONCE])
            time.sleep(PAUSE)
        if self._closed:
            self._disconnect()

    def _disconnect(self) -> None:
        with self._lock:
            self._socket = None
        self._connection.disconnect()

    def _send(self, command: str, *names: str) -> None:
        """Send a command, or have the thread that is sending send it too; without a connection, do nothing.

        A new connection subscribes to everything anyway.
        """
        with self._lock:
            if self._socket is None or not (names or command == "PING"):
                return
            self._unsent.append((command, *names))
        while True:
            with self._lock:
                sock, commands = self._socket, self._unsent
                if self._is_sending or sock is None or not commands:
                    return
                self._is_sending, self._unsent = True, []
            is_sent = False
            try:
                for part in self._connection.pack_commands(commands):
                    sock.sendall(part)
                is_sent = True
            except OSError:
                pass
            finally:
                if not is_sent:  # half a command may have gone out: `read` finds the connection dead, and begins anew
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
                with self._lock:
                    self._is_sending = False

    def _ping(self) -> None:
        now = time.monotonic()
        if now - self._heard > _LOST_AFTER:
            self._disconnect()
            raise StoreUnavailable("Redis has fallen silent", "the feed connects again")
        if now - max(self._heard, self._pinged) > _PING_AFTER:
            self._pinged = now
            self._send("PING")

    def _notice(self, reply: Any) -> Notice | None:
        if not isinstance(reply, list) or len(reply) != 3:
            return None  # the answer to a PING
        kind, name, message = reply
        channel = self._channels.get(name.decode())
        if channel is None:
            return None
        if kind == b"subscribe":
            return Notice(channel)
        if kind != b"message":
            return None
        head, _, payload = message.partition(b"\n")
        previous, _, position = head.partition(b" ")
        try:
            before = _position(previous)
            entry = Entry(_position(position), decode_payload(payload))
            return Notice(channel, before, _following(entry, before.offset))
        except ValueError as error:
            warn("channel %s: an announcement is not ours, so its ring is read instead: %s", channel, error)
            return Notice(channel)


def _refusal(error: object, channel: str) -> StoreUnavailable:
    return faults.refusal(error, f"the ring of channel {channel}")


def _newest_id(reply: Any, channel: str) -> Position | StoreUnavailable:
    try:
        return _refusal(reply, channel) if isinstance(reply, Exception) else _position(reply)
    except ValueError as error:
        return _refusal(error, channel)


def _revoked_at(id: bytes, fields: Sequence[bytes], clocks: _Clocks | None) -> float:
    """When something was revoked, in seconds since 1970, by the clock of this process.

    Two clocks say it: Redis's, in the entry's id, moved by what it differs from the clock here; and that of the process
    that revoked. The later one counts, so that one wrong clock loses no revocation; but nothing is later than now, so
    that a clock that was fast refuses nobody for long. "Now" is the later of both clocks here, for the same reason.
    """
    stored = int(id.partition(b"-")[0]) / 1000
    told = _field(fields, b"at")  # older versions wrote none
    by_revoker = int(told) / 1000 if _MILLISECONDS.fullmatch(told) else 0.0
    if clocks is None:
        return max(stored, by_revoker)
    return min(max(stored + clocks.here - clocks.redis, by_revoker), max(clocks))


def _nonce() -> int:
    return int(nonce()[:13], 16) + 1


def _position(text: bytes) -> Position:
    position = Position.parse(text.decode())
    if position is None:
        raise ValueError(f"{text!r} is not a position")
    return position


def _receipt(reply: Any, channel: str, call: tuple[Any, ...]) -> Receipt | StoreUnavailable:
    if not isinstance(reply, list):
        return faults.refusal(reply, f"to store into {call[1]}")
    id, outcome, trouble = reply
    if outcome == b"conflict":
        raise conflict(channel)
    if trouble:
        told = trouble.decode(errors="replace")
        _log.warning("stored %s in %s but could not announce it: %s", id.decode(errors="replace"), call[1], told)
    try:
        return Receipt(_position(id), outcome.decode())
    except ValueError as error:  # after an entry, or in an idempotency key, that was written by hand
        return StoreUnavailable(f"the ring {call[1]} is not ours: {error}", "see the key in redis-cli")


def _page(reply: Any, position: Position, channel: str) -> tuple[Page | StoreUnavailable, int]:
    """The page that read.lua found after a position, and the bytes of its data.

    It ends before the first entry that is not ours, or does not follow. From there, nothing can be continued.
    """
    if isinstance(reply, Exception):
        return _refusal(reply, channel), 0
    found, *rest = reply
    if not found:
        return _reason(rest, position, channel), 0
    more, size, *flat = rest
    entries: list[Entry] = []
    try:
        for id, data in zip(flat[::2], flat[1::2], strict=True):
            entries.append(_following(Entry(_position(id), decode_payload(data)), position.offset + len(entries)))
    except ValueError as error:
        if entries:
            return Page(entries, more=True), size
        warn("channel %s cannot be continued after %s: %s", channel, position, error)
        return Page([], reason="diverged"), 0
    return Page(entries, more=bool(more)), size


def _following(entry: Entry, offset: int) -> Entry:
    if entry.position.offset != offset + 1:
        raise ValueError(f"{entry.position} does not follow offset {offset}")
    return entry


def _field(fields: Sequence[bytes], name: bytes) -> bytes:
    """The value of a field of a stream's entry, whose fields and values alternate; empty where there is none."""
    return dict(zip(fields[::2], fields[1::2], strict=False)).get(name, b"")


def _reason(ends: Sequence[bytes], position: Position, channel: str) -> Page | StoreUnavailable:
    """Why a position cannot be continued in a ring with these ids at its `ends`, which are none without a ring."""
    if not ends:
        return Page([], reason="unknown")
    oldest, newest = (_newest_id(id, channel) for id in ends)
    if isinstance(newest, StoreUnavailable):
        return newest
    if isinstance(oldest, StoreUnavailable):  # the newest entry is ours, the oldest is not
        return Page([], reason="diverged")
    if oldest.offset > position.offset and position != UNBORN:  # where nobody ever was, nothing was missed
        return Page([], reason="trimmed", missed=newest.offset - position.offset)
    return Page([], reason="diverged")
