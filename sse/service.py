"""The service of one app: its settings, its keys, and the store, hub, revocations and runs of this process."""

from __future__ import annotations

import _thread
import contextlib
import os
import threading
import weakref
from _thread import RLock  # never patched by gevent, so that any thread may take it
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar, cast

from sse.access.keys import PublishKeys
from sse.access.revocations import Kind, Revocations
from sse.access.token import Tokens
from sse.config import Config
from sse.connection_log import set_rate
from sse.errors import Ended, SSEError, StoreUnavailable, TooLarge, Unavailable
from sse.event import DEFAULT_TYPE, Event, Position, check_channel, check_idempotency_key
from sse.hub.hub import Hub
from sse.log import use_json
from sse.owner import OwnerThread
from sse.stores import Publication, Receipt, Receipts, Store, connect
from sse.stores.presence import Attendance
from sse.transports.items import Breaker
from sse.work.presence import FindCall, Happening, Presence
from sse.work.run import Runs
from sse.work.sources import Match, Sources
from sse.work.writer import MakeEvent, Writer

_EXTRA_SECONDS: Final = 2.0  # that a call from another thread may take beyond its wait for Redis
_A_WRITE_SECONDS: Final = 86_400.0  # that a writer in another thread waits for Redis
_CLOSE_SECONDS: Final = 30.0  # that another thread waits for `close`

P = ParamSpec("P")
T = TypeVar("T")
_services: weakref.WeakSet[Service] = weakref.WeakSet()


def living() -> list[Service]:
    """Return the services of all apps of this process, also of apps that are wrapped in other WSGI apps."""
    return [service for service in _services if service.serves]


class Service:
    """The store, hub and revocations of one app in this process.

    Without an app, as in a `Publisher`, it is not among the `living` ones, of which servers take care.

    They are made when they are first used, because a server may fork, or gevent may replace the standard library's
    locks, after the app has been made. They are closed when the service is garbage-collected together with its app.

    :param serves: it belongs to an app.
    :raises ConfigError: if a file that the settings name cannot be used.
    """

    def __init__(self, config: Config, *, serves: bool = True) -> None:
        self.config = config
        self.serves = serves
        self.tokens = Tokens(config)
        self.keys = PublishKeys(config)
        self.at_first_use: Callable[[], None] | None = None
        """Called once, at the first use: before the service makes the store, or refuses a request."""
        self.admit: Callable[[], None] | None = None
        """Called before events are stored, to wait while the server is late in sending earlier events."""
        self.is_ending = False
        """Set by the server when this process begins to end. `/readyz` says so, and new clients are to go elsewhere."""
        self.breaker: Breaker | None = None
        """Set by a server whose threads can be interrupted while they wait, see `work.run`."""
        self.find_call: FindCall | None = None
        """Finds the app's function to call when somebody has joined or left a channel."""
        self.source_rules: SourceRules | None = None
        """Set by the extension: the sources of the app."""
        self._has_sources = False
        self._made: _Made | None = None  # None until the first use in this process
        self._finalizer: weakref.finalize[..., Service] | None = None  # closes `_made`
        self._owner = OwnerThread()
        self._max_subscribers = config.max_subscribers
        self._also_closed: list[Callable[[], None]] = []
        self._lock = RLock()  # never held while waiting
        _services.add(self)
        if serves:
            use_json(is_json=config.log == "json")
            set_rate(config.log_rate)

    @property
    def store(self) -> Store:
        return self._parts().store

    @property
    def hub(self) -> Hub:
        return self._parts().hub

    @property
    def revocations(self) -> Revocations:
        return self._parts().revocations

    @property
    def runs(self) -> Runs:
        return self._parts().runs

    @property
    def presence(self) -> Presence:
        return self._parts().presence

    @property
    def sources(self) -> Sources:
        return self._parts().sources

    @property
    def is_working(self) -> bool:
        """True if runs of this process have not ended. This does not make a store."""
        return bool(self._made and self._made.runs.is_busy)

    @property
    def is_full(self) -> bool:
        """True if all seats for subscribers are taken. This does not make a store."""
        return bool(self._made and self._made.hub.is_full)

    @property
    def shared(self) -> bool:
        """True if other processes see the events that are published here."""
        return self.config.redis_url is not None

    def check_workers(self, multiprocess: bool) -> None:
        """Refuse a server of several processes with the memory store, of which each would see only its own events.

        :raises Unavailable: if `multiprocess`, and the store is not shared.
        """
        if multiprocess and not self.shared:
            raise Unavailable(
                "the memory store is for one process, and this server runs several",
                "set SSE_REDIS_URL, or run one worker",
                code="memory_store",
            )

    def check(self, event: Event) -> Event:
        """Return the event if it is small enough.

        :raises TooLarge: if its data is over SSE_MAX_EVENT_BYTES.
        """
        size = len(event.data.encode())
        if size > self.config.max_event_bytes:
            raise TooLarge(
                f"data has {size} bytes, SSE_MAX_EVENT_BYTES is {self.config.max_event_bytes}",
                "send less, or a link to it",
            )
        return event

    def count_new(self, channels: Iterable[str]) -> int:
        """Return how many of these channels have had no event yet, or none within SSE_RING_TTL.

        :raises StoreUnavailable: if the store does not answer.
        """
        newest = self.store.newest(list(dict.fromkeys(channels)))
        return sum(position is None or (isinstance(position, Position) and position.offset == 0) for position in newest)

    def publish(self, publications: Sequence[Publication]) -> list[Position]:
        """Store and announce events; return the position of each. Any thread may call this.

        :raises IdempotencyConflict: if a key was used before for another event. Nothing is stored, see `Store.publish`.
        :raises StoreUnavailable: if one or more may not be stored. Publish all of them again with the same keys.
        :raises Ended: if a channel has ended. Its `ids` tell which events are stored nevertheless.
        :raises TooLarge: with the code `run_full`, if an event does not fit into the ring of a run. Events before it
            may be stored.
        """
        [outcome] = self.publish_each([publications])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def publish_each(self, calls: Sequence[Sequence[Publication]]) -> list[list[Position] | Exception]:
        """Carry out several calls of `publish` in one round trip, in this order and as if each had come alone.

        Return the positions of each call, or the error that `publish` would raise. Any thread may call this.

        :raises StoreUnavailable: if this is the fate of all.
        """
        if self._owner.is_other_thread:
            return self._run_in_owner(self.config.redis_timeout + _EXTRA_SECONDS, self.publish_each, calls)
        if self.admit:
            self.admit()
        outcomes = self.store.publish_each(calls)
        return [_positions(*each) for each in zip(calls, outcomes, strict=True)]

    def publish_one(self, channel: str, event: Event, idempotency_key: str | None) -> str:
        """Store and announce an event of the app; return its id. For the parameters and errors see `SSE.publish`."""
        key = None if idempotency_key is None else f"app:{check_idempotency_key(idempotency_key)}"
        channel = check_channel(channel)
        [position] = self.publish([Publication(channel, event, key)])
        return f"{channel}={position}"

    def revoke(self, kind: Kind, value: str) -> None:
        """Revoke the rights of a subject, channel or token that were given until now; end their streams and polls.

        Any thread may call this.

        :raises StoreUnavailable: if other processes may not know of it.
        """
        if self._owner.is_other_thread:
            return self._run_in_owner(4 * self.config.redis_timeout + _EXTRA_SECONDS, self.revoke, kind, value)
        return self.revocations.revoke(kind, value)

    def run(
        self,
        channel: str,
        iterable: Iterable[object],
        make_event: MakeEvent,
        *,
        restart: bool,
        context: Callable[[], AbstractContextManager[object]],
        daemon: bool,
    ) -> bool:
        """Begin a run in the background, see `SSE.run`. Any thread may call this."""
        if self._owner.is_other_thread:
            again = partial(self.run, restart=restart, context=context, daemon=daemon)
            return self._run_in_owner(
                2 * self.config.redis_timeout + _EXTRA_SECONDS, again, channel, iterable, make_event
            )
        return self.runs.begin(
            check_channel(channel),
            iterable,
            make_event,
            restart=restart,
            context=context,
            breaker=self.breaker,
            daemon=daemon or self.breaker is not None,
        )

    def writing(self, channel: str, make_event: MakeEvent, *, restart: bool) -> AbstractContextManager[Writer]:
        """Begin a run that the caller writes, see `SSE.writing`. Any thread may call this."""
        channel = check_channel(channel)
        if self._owner.is_other_thread:
            return self._writing_elsewhere(channel, make_event, restart)
        return self.runs.writing(channel, make_event, restart=restart)

    @contextlib.contextmanager
    def _writing_elsewhere(self, channel: str, make_event: MakeEvent, restart: bool) -> Iterator[Writer]:
        """Begin a run, and yield a writer whose calls are carried out by the thread that the store belongs to."""

        def in_owner(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
            return self._run_in_owner(_A_WRITE_SECONDS, work, *args, **options)

        # An event is made in this thread, which has the app's context.
        begin = partial(self.writing, channel, lambda event, _type: cast("Event", event), restart=restart)
        writing = in_owner(begin)
        writer = in_owner(writing.__enter__)
        try:
            yield cast("Writer", _WriterElsewhere(writer, make_event, in_owner))
        except BaseException as error:
            in_owner(writing.__exit__, type(error), error, error.__traceback__)
            raise
        else:
            in_owner(writing.__exit__, None, None, None)

    def stop(self, channel: str) -> bool:
        """End a run of any process, see `SSE.stop`. Any thread may call this."""
        if self._owner.is_other_thread:
            return self._run_in_owner(self.config.redis_timeout + _EXTRA_SECONDS, self.stop, channel)
        return self.runs.stop(check_channel(channel))

    def count(self, channel: str) -> int:
        """Return the number of connections to a channel, see `SSE.count`. Any thread may call this."""
        if self._owner.is_other_thread:
            return self._run_in_owner(3 * self.config.redis_timeout + _EXTRA_SECONDS, self.count, channel)
        return self.presence.count(check_channel(channel))

    def attendance(self, channel: str) -> Attendance:
        """Return who is connected to a channel, see `SSE.members`. Any thread may call this."""
        if self._owner.is_other_thread:
            return self._run_in_owner(3 * self.config.redis_timeout + _EXTRA_SECONDS, self.attendance, channel)
        return self.presence.read(check_channel(channel))

    def leave(self) -> None:
        """Tell the other processes that all connections of this one have gone. This makes no store."""
        if made := self._made:
            made.presence.close()

    def finish(self, seconds: float) -> None:
        """Give the runs of this process so many seconds, and end the rest as `interrupted`; end its sources at once.

        This makes no store.
        """
        if made := self._made:
            made.sources.finish()
            made.runs.finish(seconds)

    def use_sources(self) -> None:
        """Have the hub ask for sources from now on, because the app has some."""
        self._has_sources = True
        if made := self._made:
            made.hub.began, made.hub.is_fresh = made.sources.began, made.sources.fresh

    def _run_in_owner(self, seconds: float, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Have the thread that the store belongs to call `work`; return its result. Only other threads call this.

        :param seconds: how long to wait for the result.
        :raises StoreUnavailable: if that thread does not begin within SSE_REDIS_TIMEOUT, or end within `seconds`.
        """
        return self._owner.run(partial(work, *args, **options), begin=self.config.redis_timeout, end=seconds)

    def _parts(self) -> _Made:
        if self._owner.is_other_thread:
            self._owner.check()
        return self._made or self._make()

    def begin(self) -> None:
        """Call `at_first_use`, unless it has been called."""
        with self._lock:
            call, self.at_first_use = self.at_first_use, None
        if call:
            call()

    def also_close(self, close: Callable[[], None]) -> None:
        """Call `close` when this service is closed or garbage-collected. `close` must not refer to the service."""
        self._also_closed.append(close)

    def close(self) -> None:
        """Close this process's hub, revocations and store, see `SSE.close`. The next use makes new ones."""
        if self._owner.is_other_thread:
            return self._run_in_owner(_CLOSE_SECONDS, self.close)
        with self._lock:
            made, self._made = self._made, None
            if self._finalizer:
                self._finalizer.detach()
        if made:
            self._max_subscribers = made.hub.max_subscribers  # a server may have lowered it
        _close(made, self._also_closed)
        return None

    def _forget(self) -> None:
        """Forget the store and hub in a forked process. They belong to the process that made them."""
        self._lock = RLock()  # another thread may have held the old one
        self._owner = OwnerThread()
        self._made = None
        if self._finalizer:
            self._finalizer.detach()

    def _make(self) -> _Made:
        self._owner.check()
        self.begin()
        # The lock is not held, because redis-py switches greenlets here. If several are made at the same time, one is
        # kept. The others have neither connected nor started anything.
        store = connect(
            self.config.redis_url,
            ring=self.config.ring,
            ring_ttl=self.config.ring_ttl,
            run_bytes=self.config.run_bytes,
            run_ttl=self.config.run_ttl,
            namespace=self.config.namespace,
            timeout=self.config.redis_timeout,
        )
        hub = Hub(store, max_subscribers=self._max_subscribers, max_event_bytes=self.config.max_event_bytes)
        runs = Runs(
            store,
            write_every=self.config.write_every / 1000,
            max_bytes=self.config.max_event_bytes,
            answering_since=lambda: hub.answering_since,
        )
        hub.orphaned = runs.orphaned
        presence = Presence(
            store.presence,
            self.config.presence,
            partial(_find_call, weakref.ref(self)),
            most_lingering=self._max_subscribers,
        )
        revocations = Revocations(store, self.config.token_lifetime)
        ours = _Made(store, hub, revocations, runs, self._make_sources(store, hub), presence)
        with self._lock:
            if self._made is None:
                self._made = ours
                self._finalizer = weakref.finalize(self, _close_elsewhere, ours, self._also_closed)
                self._finalizer.atexit = False
            return self._made

    def _make_sources(self, store: Store, hub: Hub) -> Sources:
        this = weakref.ref(self)

        def rules() -> SourceRules:
            service = this()
            return service.source_rules if service and service.source_rules else _NO_SOURCES

        sources = Sources(
            store,
            hub,
            match=lambda channel: rules().match(channel),
            context=lambda: rules().context(),
            event_of=lambda value: rules().event_of(value),
            most=self.config.max_sources,
            breaker=lambda: service.breaker if (service := this()) else None,
        )
        if self._has_sources:
            hub.began, hub.is_fresh = sources.began, sources.fresh
        return sources


class SourceRules(NamedTuple):
    """The sources of an app.

    :param match: finds the source of a channel.
    :param context: makes a context of the app.
    :param event_of: makes a checked event of a value, in that context.
    """

    match: Match
    context: Callable[[], AbstractContextManager[object]]
    event_of: Callable[[object], Event]


_NO_SOURCES: Final = SourceRules(lambda _: None, contextlib.nullcontext, Event)


class _WriterElsewhere:
    """A writer for a thread that the store does not belong to, see `OwnerThread`."""

    def __init__(self, writer: Writer, make_event: MakeEvent, in_owner: Callable[..., Any]) -> None:
        self._writer = writer
        self._make_event = make_event
        self._in_owner = in_owner

    def write(self, text: str) -> Any:
        return self._in_owner(self._writer.write, text)

    def publish(self, data: object, type: str = DEFAULT_TYPE) -> Any:
        return self._in_owner(self._writer.publish, self._make_event(data, type), type)

    def flush(self) -> None:
        self._in_owner(self._writer.flush)

    def confirm(self) -> None:
        self._in_owner(self._writer.confirm)


def _find_call(
    service: weakref.ref[Service], happening: Happening, channel: str, sub: str
) -> Callable[[], object] | None:
    living = service()
    return living.find_call(happening, channel, sub) if living and living.find_call else None


def _positions(publications: Sequence[Publication], outcome: Receipts | Exception) -> list[Position] | Exception:
    """Return the position of each publication, or the error to raise for their call."""
    if isinstance(outcome, Exception):
        return outcome
    positions = [receipt.position for receipt in outcome if isinstance(receipt, Receipt)]
    return positions if len(positions) == len(outcome) else _refusal(publications, outcome)


def _refusal(publications: Sequence[Publication], receipts: Sequence[Receipt | SSEError]) -> SSEError:
    """Return the error to raise for a call of which some events were refused.

    An event that may be stored comes first, because only the caller can find out, by publishing all events again.
    """
    faults = [receipt for receipt in receipts if isinstance(receipt, SSEError)]
    fault = min(faults, key=lambda fault: (not isinstance(fault, StoreUnavailable), not isinstance(fault, Ended)))
    if isinstance(fault, Ended):
        ids = [
            f"{publication.channel}={receipt.position}" if isinstance(receipt, Receipt) else None
            for publication, receipt in zip(publications, receipts, strict=True)
        ]
        return Ended(fault.message, fault.hint, ids=ids if any(ids) else ())
    if isinstance(fault, TooLarge):  # by its code, a caller tells it from data that is too large for any channel
        return TooLarge(fault.message, fault.hint, code="run_full")
    return fault


class _Made(NamedTuple):
    """The parts of a service in one process.

    They refer neither to the service nor to functions of the app, which may hold the app: it would never be collected.
    """

    store: Store
    hub: Hub
    revocations: Revocations
    runs: Runs
    sources: Sources
    presence: Presence


def _close(made: _Made | None, others: Sequence[Callable[[], None]]) -> None:
    if made:
        made.sources.close()  # while the others still work
        made.runs.close()
        made.hub.close()
        made.revocations.close()
        made.presence.close()
        made.store.close()
    for close in others:
        close()


def _close_elsewhere(made: _Made, others: Sequence[Callable[[], None]]) -> None:
    """Close the parts of a service that was garbage-collected, in a thread of its own, without waiting for it.

    The collector calls this in any thread, which may hold any lock. To start a `threading.Thread` here takes locks, so
    a bare thread does that.
    """
    _thread.start_new_thread(_close_in_thread, (made, others))


def _close_in_thread(*arguments: object) -> None:
    # A `threading.Thread` closes them: `threading` would keep an entry of a bare thread that waits, for good.
    threading.Thread(target=_close, args=arguments, name="sse-close", daemon=True).start()


def _forget() -> None:
    for service in _services:
        service._forget()


os.register_at_fork(after_in_child=_forget)  # a child makes its own; os.getpid() at each use is a system call
