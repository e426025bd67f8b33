"""The store in Redis, whose rings all workers and machines share.

The ring of a channel is one key, a stream of Redis. The id of a stream's entry is the event's position, so
`XRANGE sse:{news} 58-… +` in redis-cli shows the events that a client at that position has missed.

Each method sends its commands and scripts (`*.lua`) in one round trip, over a connection of the `Pool`. Publishes that
come at the same time share a round trip, see `RedisStore._send`. Before the first command, the store checks that this
Redis can keep the service's promises (`fitness`), and it repeats that about once a minute. Each feed has a pub/sub
connection of its own.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import re
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, cast

import redis
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError

from sse.errors import StoreUnavailable
from sse.event import UNBORN, Entry, Position
from sse.log import warn
from sse.spread import PAUSE
from sse.stores import faults, fitness
from sse.stores.base import (
    PAGE,
    PAGE_BYTES,
    READ_AT_ONCE,
    RUN_BYTES,
    RUN_TTL,
    UNBORN_TTL,
    Feed,
    Notice,
    Page,
    Publication,
    Receipts,
    Revocation,
    Standing,
    Store,
    nonce,
)
from sse.stores.peers import ENTRY_TTL, MAX_ENTRIES, Peers
from sse.stores.pool import Pool
from sse.stores.redis_leases import RedisLeases, standing_of_run
from sse.stores.redis_presence import RedisPresence
from sse.stores.redis_publish import PublishCall, PublishCalls
from sse.stores.scripts import Script
from sse.wire import MAX_PAYLOAD, decode_payload

_log = logging.getLogger("sse")
_system_random: Final = random.SystemRandom()

_MAX_CONNECTIONS: Final = 8
_UPKEEP_CONNECTIONS: Final = 2
_UPKEEP_SECONDS: Final = 1.5  # within which Redis has to answer a renewal; a lease lasts much longer
_PING_AFTER: Final = 5.0  # seconds of silence after which a feed asks Redis for a sign of life
_LOST_AFTER: Final = 12.0  # seconds of silence after which a feed takes its connection for dead
_REVOKED_AT_ONCE: Final = 512
_SUBSCRIBED_AT_ONCE: Final = 500
_LOOK_EVERY: Final = 60.0  # seconds between two looks at whether Redis is still fit
_LOOK_LATE: Final = 10.0  # seconds by which a look is late when a publish makes it, because no feed has
_SECONDS_PER_COMMAND: Final = 0.001  # added to the timeout for each of many commands
_CHECK_CHANNEL: Final = "sse.check"  # a channel's name cannot begin with `sse.`
_REVOKED_CHANNEL: Final = "sse.revoked"
_SETTINGS_CHANNEL: Final = "sse.settings"
_MILLISECONDS: Final = re.compile(rb"[0-9]{1,15}")
_EXTRA_TTL: Final = 86_400  # seconds that revocations are kept beyond their time, in case a clock is wrong
_CLOCK_TOLERANCE: Final = 5.0  # seconds; the log warns if this machine's clock and Redis's differ by more


class _Clocks(NamedTuple):
    """The times of Redis's clock and of this process's clock in one round trip, in seconds since 1970.

    `here` is read after `redis`, so that a time of Redis's clock is never converted into a time here that is too early.
    """

    redis: float
    here: float


class RedisStore(Store):
    """A store in the Redis at `url`, which has to be 7.0 or newer.

    :param ring: events that a ring keeps.
    :param ring_ttl: seconds that a ring outlives its last event.
    :param namespace: the first part of the names of all keys and pub/sub channels.
    :param timeout: seconds that a call may take when Redis does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        ring: int,
        ring_ttl: int,
        run_bytes: int = RUN_BYTES,
        run_ttl: int = RUN_TTL,
        namespace: str = "sse",
        timeout: float = 5.0,
    ) -> None:
        self._pool = Pool(url, _MAX_CONNECTIONS)
        self._upkeep_pool = Pool(url, _UPKEEP_CONNECTIONS)  # renewals of leases do not wait for other calls
        self._scheme = url.partition(":")[0]
        self._timeout = timeout
        self._namespace = namespace
        self._database = self._pool.database
        self._max_events = ring
        self._ttl = ring_ttl
        self.leases = RedisLeases(
            run=self._run_script,
            run_soon=self._run_script_soon,
            execute=self._execute,
            key=self._key,
            announcements=self.announcements,
            ring=ring,
            ring_ttl=ring_ttl,
            run_bytes=run_bytes,
            run_ttl=run_ttl,
        )
        self._publish_calls = PublishCalls(self._key, self.announcements, ring=ring, ring_ttl=ring_ttl)
        self._ensure_script = Script("ensure.lua")
        self._logged_clock_fault = ""  # the fault of the clocks that was logged last; empty if they agree
        self._logged_fault = ""  # the fault of Redis that was logged last; empty if it is fit
        self._peers = Peers((ring, ring_ttl))
        self._has_made_feed = False  # this process has readers, not only publishers
        self._next_look = math.inf  # when to ask again whether Redis is fit, by `time.monotonic`
        self._before_script = Script("before.lua")
        self._read_script = Script("read.lua")
        self._presence_script = Script("presence.lua")
        self.presence = RedisPresence(self._run_presence, self._execute, self._key)
        self._checked = False
        self._running_check: _RunningCheck | None = None
        self._check_lock = threading.Lock()  # never held while waiting
        self._pending: list[_PendingPublish] = []
        self._has_leader = False
        self._publish_lock = threading.Lock()  # never held while waiting

    def publish_each(self, calls: Sequence[Sequence[Publication]]) -> list[Receipts | Exception]:
        made = [self._publish_calls.make(publications) for publications in calls]
        replies = iter(self._send([call for call in made if isinstance(call, PublishCall)]))
        return [call.outcome(next(replies)) if isinstance(call, PublishCall) else call for call in made]

    def standing(self, channels: Sequence[str], *, prolong: bool = False) -> list[Standing | StoreUnavailable]:
        deadline = self._deadline(len(channels))
        calls = [(1, self._key(channel), 0) for channel in channels]
        replies = self._run_script(self._before_script, calls, deadline)
        standings = [_standing(reply, channel) for channel, reply in zip(channels, replies, strict=True)]
        if prolong:
            self._execute(
                (
                    ("EXPIRE", self._key(channel), self._ttl if standing.newest.offset else UNBORN_TTL, "GT")
                    for channel, standing in zip(channels, standings, strict=True)
                    if isinstance(standing, Standing) and standing.newest and not standing.run
                ),
                deadline,
            )
        return standings

    def ensure(self, channels: Sequence[str]) -> list[Position | StoreUnavailable]:
        calls = [(1, self._key(channel), _nonce(), self._ttl, UNBORN_TTL) for channel in channels]
        replies = self._run_script(self._ensure_script, calls, self._deadline(len(channels)))
        return [_position_or_fault(reply, channel) for channel, reply in zip(channels, replies, strict=True)]

    def read(
        self, positions: Sequence[tuple[str, Position]], limit: int = PAGE, max_bytes: int = PAGE_BYTES
    ) -> list[Page | StoreUnavailable]:
        deadline = self._deadline(len(positions))
        # At first, each position has an equal share of `max_bytes`. If its next entry is larger than that, the position
        # is read again by itself, as long as bytes are left.
        alone = len(positions) == 1
        read = self._read_pages(
            positions, limit, max_bytes // max(len(positions), 1), at_least=int(alone), deadline=deadline
        )
        left = max_bytes - sum(size for _, size in read)
        for index, (page, _) in enumerate(read):
            if not alone and limit and left > 0 and isinstance(page, Page) and page.more and not page.entries:
                read[index] = self._read_pages([positions[index]], limit, left, at_least=1, deadline=deadline)[0]
                left -= read[index][1]
        return [page for page, _ in read]

    def before(self, channels: Sequence[tuple[str, int]]) -> list[Position | StoreUnavailable | None]:
        calls = [(1, self._key(channel), count) for channel, count in channels]
        positions: list[Position | StoreUnavailable | None] = []
        replies = self._run_script(self._before_script, calls, self._deadline(len(channels)))
        for (channel, count), reply in zip(channels, replies, strict=True):
            if not count:
                standing = _standing(reply, channel)
                positions.append(standing if isinstance(standing, StoreUnavailable) else standing.newest)
                continue
            position = None if reply is None else _position_or_fault(reply, channel)
            if isinstance(position, StoreUnavailable) and not isinstance(reply, Exception):
                position = UNBORN  # another program wrote that entry: a reader cannot go on there, and gets a reset
            positions.append(position)
        return positions

    def revoke(self, what: str, ttl: int) -> None:
        key = self._key(_REVOKED_CHANNEL)
        now, deadline = time.time(), self._deadline()
        _, clocks = self._execute_with_clocks([], deadline)
        # Entries' ids are times of Redis's clock. The earlier of both clocks decides which entries are too old, so that
        # one clock that is fast does not delete revocations that are still in force.
        oldest = int((min(clocks.redis if clocks else now, now) - ttl - _EXTRA_TTL) * 1000)
        commands = [
            ("XADD", key, "MINID", "~", max(oldest, 0), "*", "d", what, "at", int(now * 1000)),
            ("EXPIRE", key, ttl + _EXTRA_TTL),
        ]
        for reply in self._execute(commands, deadline):
            if isinstance(reply, Exception):
                raise _ring_refusal(reply, _REVOKED_CHANNEL)

    def revoked(self, after: str = "") -> list[Revocation]:
        [reply], clocks = self._execute_with_clocks(
            [("XRANGE", self._key(_REVOKED_CHANNEL), after or "-", "+", "COUNT", _REVOKED_AT_ONCE)]
        )
        if isinstance(reply, Exception):
            raise _ring_refusal(reply, _REVOKED_CHANNEL)
        found = [
            Revocation(id.decode(), _revocation_time(id, fields, clocks), _field(fields, b"d").decode(errors="replace"))
            for id, fields in reply
        ]
        if after and not (found and found[0].id == after):
            return self.revoked()
        return found[1:] if after else found

    def feed(self) -> Feed:
        self._has_made_feed = True
        return _RedisFeed(self, self._pool.connection(), self._scheme, self._timeout)

    def close(self) -> None:
        self._pool.close()
        self._upkeep_pool.close()

    def check(self, deadline: float | None = None) -> None:
        """Check, until it has succeeded once, that this Redis can be used.

        One caller at a time asks Redis. Callers that come meanwhile wait for its outcome and share it.

        :param deadline: when to give up, by the monotonic clock; without one, after the store's timeout.
        :raises StoreUnavailable: if Redis does not answer, is older than 7.0, is a Cluster or a Sentinel, may evict
            rings, or refuses a command.
        """
        deadline = deadline or self._deadline()
        while not self._checked:
            with self._check_lock:
                checking = self._running_check
                if checking is None:
                    mine = self._running_check = _RunningCheck()
            if checking is None:
                try:
                    self._check_fitness(deadline)
                    self._checked = True
                except StoreUnavailable as error:
                    mine.fault = error
                    raise
                finally:
                    self._running_check = None
                    mine.done.set()
                self._schedule_look()
                self._compare_settings(deadline)
            elif not checking.done.wait(max(deadline - time.monotonic(), 0)):
                raise self._timed_out()
            elif checking.fault:
                raise StoreUnavailable(checking.fault.message, checking.fault.hint)

    def look_soon(self) -> None:
        """Have the next `look_in_time` ask Redis, however short ago that was done."""
        self._next_look = 0.0

    def look_in_time(self) -> None:
        """Ask Redis again whether it is fit if about a minute has passed, and log what has changed."""
        if time.monotonic() >= self._next_look:
            self._look_again(self._deadline())

    def _look_again(self, deadline: float) -> None:
        self._schedule_look()
        with contextlib.suppress(StoreUnavailable):  # calls that need Redis report that it is away
            fault, drawback = self._ask_fitness(deadline)
            self._log_fitness(fault or drawback)
        self._compare_settings(deadline)

    def _schedule_look(self) -> None:
        self._next_look = time.monotonic() + _LOOK_EVERY * _system_random.uniform(0.9, 1.1)

    def _compare_settings(self, deadline: float) -> None:
        """Log a warning if other processes on this namespace have another SSE_RING or SSE_RING_TTL.

        That matters because each publisher trims a ring to its own SSE_RING. A process with readers writes its settings
        into a record, which all processes read. This raises nothing, since a missing warning is no fault of the
        service.
        """
        key = self._key(_SETTINGS_CHANNEL)
        with contextlib.suppress(RedisError, OSError):
            [entries] = self._pool.ask([("XREVRANGE", key, "+", "-", "COUNT", MAX_ENTRIES)], deadline)
            if isinstance(entries, Exception):
                return
            for ring, ttl in self._peers.look(entries):
                _log.warning(
                    "SSE_RING is %d and SSE_RING_TTL %d here, but %d and %d elsewhere on namespace %s: each process "
                    "trims the rings of all to its own settings; set them alike, or give each service an "
                    "SSE_NAMESPACE of its own; after a change of the settings, this ends with the last old process",
                    *(self._max_events, self._ttl, ring, ttl, self._namespace),
                )
            if self._has_made_feed and self._peers.is_due:
                mine = f"{self._max_events} {self._ttl}"
                added, _ = self._pool.ask(
                    [("XADD", key, "MAXLEN", "=", MAX_ENTRIES, "*", "d", mine), ("EXPIRE", key, ENTRY_TTL)], deadline
                )
                if isinstance(added, bytes):
                    self._peers.added(added)

    def _check_fitness(self, deadline: float) -> None:
        fault, drawback = self._ask_fitness(deadline)
        if fault:
            raise fault
        self._log_fitness(drawback)

    def _ask_fitness(self, deadline: float) -> tuple[StoreUnavailable | None, StoreUnavailable | None]:
        """Ask Redis what it is. Return the fault for which it cannot be used, and the drawback if it can be used.

        :raises StoreUnavailable: if there is no reply.
        """
        key = self._key(_CHECK_CHANNEL)
        asked_at = time.time()
        with faults.translated(self._scheme, is_known=self._checked):
            time_reply, *replies = self._pool.ask(
                [("TIME",), *fitness.questions(key, self.announcements(_CHECK_CHANNEL))], deadline
            )
        fault = fitness.judge(replies)
        if not fault:
            self._compare_clocks(time_reply, asked_at)  # the user may lack the right to TIME
        return fault, fitness.drawback(replies)

    def _log_fitness(self, fault: StoreUnavailable | None) -> None:
        """Log what is wrong with a Redis that is used all the same, if that has changed since the last time."""
        previous, self._logged_fault = self._logged_fault, str(fault or "")
        if fault and self._logged_fault != previous:
            _log.warning("Redis is not fit, but still in use: %s", fault)
        elif previous and not fault:
            _log.warning("Redis is fit again")

    def announcements(self, channel: str) -> str:
        """Return the name of a channel's pub/sub channel.

        It contains the database's number, because the databases of a Redis share their pub/sub channels.
        """
        return f"{self._namespace}:{self._database}:{{{channel}}}"

    def _key(self, channel: str) -> str:
        return f"{self._namespace}:{{{channel}}}"

    def _send(self, calls: Sequence[PublishCall]) -> list[Any]:
        """Return the reply to each call.

        Of the callers that wait, one is the leader. It sends the calls of all of them in one round trip.

        :raises StoreUnavailable: if there is no reply.
        """
        if not calls:
            return []
        deadline = self._deadline(len(calls))
        pending = _PendingPublish(calls)
        with self._publish_lock:
            self._pending.append(pending)
            follows, self._has_leader = self._has_leader, True
        self._wait_for_turn(pending, follows, deadline)
        if pending.outcome is None:
            self._publish_pending(deadline)
        if isinstance(pending.outcome, StoreUnavailable):
            raise StoreUnavailable(pending.outcome.message, pending.outcome.hint)  # one error for each caller
        if time.monotonic() >= self._next_look + _LOOK_LATE:
            self._look_again(deadline)  # no feed of this process has done it
        return cast("list[Any]", pending.outcome)

    def _wait_for_turn(self, pending: _PendingPublish, follows: bool, deadline: float) -> None:
        """Wait until a publish has its outcome, or is the leader.

        If its time or its greenlet ends meanwhile, the publish is withdrawn, and another one becomes the leader. When
        its time is over, its outcome is that fault, although the leader may still be publishing its events.

        :param follows: False if it is the leader already, because no other publish was under way.
        """
        has_turn = False
        try:
            if not follows or pending.turn.wait(max(deadline - time.monotonic(), 0)):
                if pending.outcome is None:
                    time.sleep(0)  # greenlets that are about to publish join, and a loop of publishes lets others run
                has_turn = True
        finally:
            if not has_turn:
                with self._publish_lock:
                    if pending in self._pending:
                        self._pending.remove(pending)
                        if not follows or pending.turn.is_set():
                            self._appoint_leader()
        if not has_turn and (pending.outcome is None or not pending.turn.is_set()):
            pending.outcome = self._timed_out()

    def _appoint_leader(self) -> None:
        """Make the first of the publishes that wait the leader, if there are any. To be called under the lock."""
        self._has_leader = bool(self._pending)
        for pending in self._pending[:1]:
            pending.turn.set()

    def _publish_pending(self, deadline: float) -> None:
        """Send the events of all publishes that wait. Then make the first publish that came meanwhile the leader.

        If Redis does not answer, all of these share that fault, and so do publishes that came meanwhile. If each of
        them led an attempt of its own instead, the last one would wait for the timeouts of all before it.
        """
        with self._publish_lock:
            batch, self._pending = self._pending, []
        for pending in batch:  # holds if this thread or greenlet is ended: the others must not take that for success
            pending.outcome = StoreUnavailable("publishing was interrupted", "publish again with the same key")
        try:
            calls = [(call.script, call.arguments) for pending in batch for call in pending.calls]
            replies = iter(self._run_scripts(calls, deadline))
            for pending in batch:
                pending.outcome = [next(replies) for _ in pending.calls]
        except StoreUnavailable as error:
            with self._publish_lock:
                batch += self._pending
                self._pending = []
            for pending in batch:
                pending.outcome = error
        finally:
            for pending in batch:
                pending.turn.set()
            with self._publish_lock:
                self._appoint_leader()

    def _read_pages(
        self, positions: Sequence[tuple[str, Position]], limit: int, max_bytes: int, *, at_least: int, deadline: float
    ) -> list[tuple[Page | StoreUnavailable, int]]:
        """Return, for each (channel, position), the page after it and the bytes of its data.

        :param max_bytes: bytes of data of one page.
        :param at_least: entries of a page that are returned whatever their size.
        """
        calls = [
            (1, self._key(channel), str(position), limit, max_bytes, at_least, MAX_PAYLOAD)
            for channel, position in positions
        ]
        replies = self._run_script(self._read_script, calls, deadline)
        return [_page(reply, position, channel) for (channel, position), reply in zip(positions, replies, strict=True)]

    def _run_script_soon(self, script: Script, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._run_script(script, calls, time.monotonic() + _UPKEEP_SECONDS, self._upkeep_pool)

    def _run_script(
        self,
        script: Script,
        calls: Sequence[tuple[Any, ...]],
        deadline: float | None = None,
        pool: Pool | None = None,
    ) -> list[Any]:
        return self._run_scripts([(script, call) for call in calls], deadline or self._deadline(len(calls)), pool)

    def _run_scripts(
        self, calls: Sequence[tuple[Script, tuple[Any, ...]]], deadline: float, pool: Pool | None = None
    ) -> list[Any]:
        # Of several calls, the first of each script carries its text, so that Redis knows the script at the later ones.
        # If all used EVALSHA, the first ones could fail and later ones succeed, because another client loads the script
        # meanwhile. To repeat only the failed calls would then change the order.
        known: set[str] = set()
        commands: list[tuple[Any, ...]] = []
        for script, call in calls:
            is_first = script.sha not in known and len(calls) > 1
            known.add(script.sha)
            commands.append(("EVAL", script.text, *call) if is_first else ("EVALSHA", script.sha, *call))
        replies = self._execute(commands, deadline, pool)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        texts = [("EVAL", script.text, *call) for script, call in (calls[index] for index in unknown)]
        for index, reply in zip(unknown, self._execute(texts, deadline, pool), strict=True):
            replies[index] = reply
        return replies

    def _run_presence(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._run_script(self._presence_script, calls, self._deadline(len(calls)))

    def _execute(
        self, commands: Iterable[tuple[Any, ...]], deadline: float | None = None, pool: Pool | None = None
    ) -> list[Any]:
        """Send all commands in one round trip; return their replies, of which an error is a value like any other.

        :param deadline: when to give up, by the monotonic clock; without one, after the store's timeout.
        :param pool: whose connection is used; by default the one of most calls.
        :raises StoreUnavailable: if there is no reply by then.
        """
        commands = list(commands)
        pool = pool or self._pool
        if not commands:
            return []
        deadline = deadline or self._deadline()
        self.check(deadline)
        with faults.translated(self._scheme, is_known=True):
            replies = pool.ask(commands, deadline)
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            pool.renew()  # the primary has moved
        return replies

    def _execute_with_clocks(
        self, commands: Iterable[tuple[Any, ...]], deadline: float | None = None
    ) -> tuple[list[Any], _Clocks | None]:
        """Return the replies of all commands, and the clocks at that moment, or None if Redis refuses TIME."""
        asked_at = time.time()
        reply, *replies = self._execute([("TIME",), *commands], deadline)
        return replies, self._compare_clocks(reply, asked_at)

    def _compare_clocks(self, reply: Any, asked_at: float) -> _Clocks | None:
        """Return the clocks, by the reply to TIME. Log once if they differ, or if Redis refuses TIME.

        :param asked_at: when TIME was sent, by the clock here, in seconds since 1970.
        """
        here = time.time()
        clocks = None if isinstance(reply, Exception) else _Clocks(int(reply[0]) + int(reply[1]) / 1_000_000, here)
        fault = ""
        if clocks is None:
            fault = "Redis does not tell its time, so revocations count by its clock and the revoking machine's alone"
        elif here - clocks.redis < -_CLOCK_TOLERANCE:
            fault = "the clock here is behind Redis's"
        elif asked_at - clocks.redis > _CLOCK_TOLERANCE:
            fault = "the clock here is ahead of Redis's"
        if fault != self._logged_clock_fault:
            self._logged_clock_fault = fault
            if clocks is None:
                _log.warning("%s: %s; grant +time with ACL SETUSER", fault, reply)
            elif fault:
                _log.warning("%s by %.0f s; set both to the right time", fault, abs(here - clocks.redis))
            else:
                _log.warning("the clock here and Redis's agree again")
        return clocks

    def _deadline(self, commands: int = 0) -> float:
        """Return when to give up so many commands, by the monotonic clock."""
        return time.monotonic() + self._timeout + commands * _SECONDS_PER_COMMAND

    def _timed_out(self) -> StoreUnavailable:
        return StoreUnavailable(f"Redis has not answered for {self._timeout:g} s", "see that it runs and is reachable")


class _PendingPublish:
    """The script calls of one `publish_each`, and their outcome: the reply to each, or the fault of all.

    `turn` is set when the outcome is known, or when this publish is the leader.
    """

    __slots__ = ("calls", "outcome", "turn")

    def __init__(self, calls: Sequence[PublishCall]) -> None:
        self.calls = calls
        self.outcome: list[Any] | StoreUnavailable | None = None
        self.turn = threading.Event()


class _RunningCheck:
    """A check of Redis that is under way. When it is `done`, `fault` is its outcome; None if Redis can be used."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.fault: StoreUnavailable | None = None


class _RedisFeed(Feed):
    """A feed over one pub/sub connection.

    Only `read` connects, and only `read` reads. Any thread may send. Commands that come while a thread is sending are
    queued, and that thread sends them too.
    """

    def __init__(self, store: RedisStore, connection: Any, scheme: str, timeout: float) -> None:
        self._store = store
        self._connection = connection
        self._scheme = scheme
        self._timeout = timeout
        self._lock = threading.Lock()  # never held while waiting
        self._socket: Any = None  # None while there is no connection
        self._unsent: list[tuple[str, ...]] = []
        self._is_sending = False
        self._closed = False
        self._channels: dict[str, str] = {}  # by the names of their pub/sub channels
        self._heard_at = self._pinged_at = 0.0
        self._is_woken = False  # the next `read` does not wait
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
            wait = 0 if self._is_woken else min(timeout, _PING_AFTER)
            self._is_woken = False
            while len(notices) < READ_AT_ONCE and size < PAGE_BYTES:
                notice = self._parse_notice(self._connection.read_response(timeout=wait, disconnect_on_error=False))
                self._heard_at = time.monotonic()
                if notice:
                    notices.append(notice)
                    size += len(notice.entry.event.data) if notice.entry else 0
                wait = 0
        except redis.TimeoutError:
            self._ping()
        except (RedisError, OSError, ValueError) as error:
            # After any fault, the connection cannot be trusted. The notices that were read before it are good.
            self._disconnect()
            if not notices and not self._closed:
                raise faults.unreachable(error, self._scheme, is_known=True) from error
        return notices

    def wake(self) -> None:
        self._is_woken = True
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
            self._store.look_soon()  # this may be another Redis, or one with another configuration
        self._has_connected = True
        with self._lock:
            self._heard_at = self._pinged_at = time.monotonic()
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
        """Send a command, or have the thread that is sending send it too.

        Without a connection this does nothing, because a new connection subscribes to all channels anyway.
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
                if not is_sent:  # half a command may have been sent, so `read` is to find the connection dead
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
                with self._lock:
                    self._is_sending = False

    def _ping(self) -> None:
        now = time.monotonic()
        if now - self._heard_at > _LOST_AFTER:
            self._disconnect()
            raise StoreUnavailable(f"Redis has been silent for {_LOST_AFTER:g} s", "the feed connects again")
        if now - max(self._heard_at, self._pinged_at) > _PING_AFTER:
            self._pinged_at = now
            self._send("PING")

    def _parse_notice(self, reply: Any) -> Notice | None:
        if not isinstance(reply, list) or len(reply) != 3:
            return None  # the reply to a PING
        kind, name, message = reply
        channel = self._channels.get(name.decode())
        if channel is None:
            return None
        if kind == b"subscribe":
            return Notice(channel)
        if kind != b"message":
            return None
        if message == b"state":  # older versions take it for an announcement of another program, and read the ring
            return Notice(channel, state_changed=True)
        head, _, payload = message.partition(b"\n")
        previous, _, position = head.partition(b" ")
        try:
            before = _position(previous)
            entry = Entry(_position(position), decode_payload(payload))
            return Notice(channel, before, _require_next(entry, before.offset))
        except ValueError as error:
            warn("channel %s: another program wrote an announcement, so the ring is read instead: %s", channel, error)
            return Notice(channel)


def _ring_refusal(error: object, channel: str) -> StoreUnavailable:
    return faults.refusal(error, f"the ring of channel {channel}")


def _position_or_fault(reply: Any, channel: str) -> Position | StoreUnavailable:
    try:
        return _ring_refusal(reply, channel) if isinstance(reply, Exception) else _position(reply)
    except ValueError as error:
        return _ring_refusal(error, channel)


def _revocation_time(id: bytes, fields: Sequence[bytes], clocks: _Clocks | None) -> float:
    """Return the time of a revocation, in seconds since 1970, by the clock of this process.

    Two clocks tell that time. One is Redis's: the entry's id, corrected by the difference from the clock here. The
    other is that of the process that revoked. The later time counts, so that one wrong clock loses no revocation. But
    no time is later than now, so that a clock that was fast refuses nobody for long. "Now" is the later of Redis's time
    and the time here, for the same reason.
    """
    stored = int(id.partition(b"-")[0]) / 1000
    written = _field(fields, b"at")  # older versions wrote none
    by_revoker = int(written) / 1000 if _MILLISECONDS.fullmatch(written) else 0.0
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


def _standing(reply: Any, channel: str) -> Standing | StoreUnavailable:
    if isinstance(reply, list):
        return standing_of_run(reply, channel)
    position = None if reply is None else _position_or_fault(reply, channel)
    return position if isinstance(position, StoreUnavailable) else Standing(position)


def _page(reply: Any, position: Position, channel: str) -> tuple[Page | StoreUnavailable, int]:
    """Return the page that read.lua found after a position, and the bytes of its data.

    The page ends before the first entry that another program wrote, or whose offset is not the next one. The position
    before that entry cannot be continued.
    """
    if isinstance(reply, Exception):
        return _ring_refusal(reply, channel), 0
    is_found, *values = reply
    if not is_found:
        return _lost_page(values, position, channel), 0
    more, size, *flat = values
    entries: list[Entry] = []
    try:
        for id, data in zip(flat[::2], flat[1::2], strict=True):
            entries.append(_require_next(Entry(_position(id), decode_payload(data)), position.offset + len(entries)))
    except ValueError as error:
        if entries:
            return Page(entries, more=True), size
        warn("channel %s cannot be continued after %s: %s", channel, position, error)
        return Page([], reason="diverged"), 0
    return Page(entries, more=bool(more)), size


def _require_next(entry: Entry, offset: int) -> Entry:
    if entry.position.offset != offset + 1:
        raise ValueError(f"{entry.position} does not follow offset {offset}")
    return entry


def _field(fields: Sequence[bytes], name: bytes) -> bytes:
    """Return a field's value in a stream's entry, whose fields and values alternate; empty if it lacks the field."""
    return dict(zip(fields[::2], fields[1::2], strict=False)).get(name, b"")


def _lost_page(ends: Sequence[bytes], position: Position, channel: str) -> Page | StoreUnavailable:
    """Return the page that says why a position cannot be continued.

    :param ends: the ids of the oldest and the newest entry of the ring; empty if there is no ring.
    """
    if not ends:
        return Page([], reason="unknown")
    oldest, newest = (_position_or_fault(id, channel) for id in ends)
    if isinstance(newest, StoreUnavailable):
        return newest
    if isinstance(oldest, StoreUnavailable):  # another program wrote the oldest entry, but not the newest one
        return Page([], reason="diverged")
    if oldest.offset > position.offset and position != UNBORN:  # a client at UNBORN has had no event, so it missed none
        return Page([], reason="trimmed", missed=newest.offset - position.offset)
    return Page([], reason="diverged")
