"""The subjects, channels and tokens that have been revoked.

The store keeps the list of revocations. A thread reads its new entries every second, so each process that shares the
store knows a revocation within about a second. It then checks every right that is in use, and each right that has been
revoked wakes its stream or poll, which ends.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol, cast

from sse.access.token import LEEWAY, Grant
from sse.errors import StoreUnavailable
from sse.event import plain_str
from sse.log import warn
from sse.stores import Revocation, Store

_log = logging.getLogger("sse")

TAKEN_AFTER: Final = 2 * LEEWAY + 1
"""Seconds after a revocation from which on a new token is accepted, even if its issuer's clock is LEEWAY slow."""

_LOOK_EVERY: Final = 1.0
_PRUNE_EVERY: Final = 60.0

_MAX_ITEM: Final = 65_536  # characters; no token has a longer subject or id, nor is a channel's name so long

_TOKEN: Final = re.compile(r"eyJ[\w-]*\.[\w-]*\.[\w-]*")

Kind = Literal["sub", "channel", "token"]


class Revoked(NamedTuple):
    """The last revocation of something: when, in seconds since 1970, and its number in this process."""

    at: float
    number: int


Since = Mapping[tuple[str, str], Revoked]
"""The last revocation of each subject, channel and token, by kind and value."""


class Revocable(Protocol):
    """A right that may be revoked while it is in use."""

    def check(self) -> None:
        """Wake the stream or poll that holds the right, if the right has been revoked."""


class _ListRead:
    """A reading of the list, whose outcome all callers that wait for `done` share: it has succeeded, or has a `fault`.

    It has neither if the thread or greenlet that was reading has been killed.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.done = threading.Event()
        self.has_succeeded = False
        self.fault: StoreUnavailable | None = None


class Revocations:
    """The revocations that this process knows, and the rights that are in use and may be revoked.

    Revoking a subject or channel refuses the tokens that were issued until then. A token is revoked by its id (`jti`).

    :param ttl: seconds for which a revocation is kept.
    """

    def __init__(self, store: Store, ttl: int) -> None:
        self._store = store
        self._ttl = ttl
        self._lock = threading.Lock()  # nothing waits while it is held
        self._reading: _ListRead | None = None  # the reading under way
        self._readings = 0
        self._failed_at = -math.inf
        self._last = ""
        self._has_read = False  # True once the whole list has been read
        self.since: dict[tuple[str, str], Revoked] = {}
        """The revocations that are known here. It is read without a lock."""
        self._read: dict[int, float] = {}  # the time of each entry in effect, by a hash of its id and text
        self._count = 0  # number of revocations that have been read
        self._checked = 0  # the count for which the watched rights were checked last
        self._pruned_at = time.monotonic()
        self._ahead = time.time() - time.monotonic()  # how far the wall clock has been ahead of the steady one, at most
        self._watched: set[Revocable] = set()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def revoke(self, kind: Kind, value: str) -> None:
        """Revoke the rights of this subject, channel or token, in every process, that were given until now.

        :raises StoreUnavailable: if the revocation may not have been stored.
        """
        self._store.revoke(json.dumps({kind: value}, ensure_ascii=True, separators=(",", ":")), self._ttl)
        self._look()

    def count(self) -> int:
        """Return the number of revocations that this process has read.

        :raises StoreUnavailable: if the list has never been read.
        """
        self._start()
        if not self._has_read:
            self._read_first()
        return self._count

    def refuses(self, grant: Grant, channels: Iterable[str] = ()) -> bool:
        """Return True if the grant is revoked as a whole, or for one of these channels.

        :raises StoreUnavailable: if the list has never been read.
        """
        self.count()
        return is_revoked(grant, channels, self.since)

    def watch(self, right: Revocable) -> None:
        """Check a right now, and after each new revocation, until `unwatch`."""
        self._start()
        with self._lock:
            self._watched.add(right)
        right.check()

    def unwatch(self, right: Revocable) -> None:
        # One atomic step without the lock, because the garbage collector may call this in a thread that holds the lock.
        self._watched.discard(right)

    def close(self) -> None:
        """End the thread that reads new entries."""
        self._closed.set()
        if self._thread and self._thread.is_alive():
            self._thread.join(5)

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="sse-revocations", daemon=True)
            with self._lock:
                is_first = self._thread is None and not self._closed.is_set()
                if is_first:
                    self._thread = thread
            if is_first:
                try:
                    thread.start()  # waits until it runs
                except RuntimeError:  # no thread can be had now
                    self._thread = None
                    raise

    def _run(self) -> None:
        while not self._closed.wait(_LOOK_EVERY):
            try:
                self._look()
            except StoreUnavailable as error:
                warn("new revocations take effect only when the store is back: %s", error)
            except Exception:  # noqa: BLE001 - logged; the thread has to run as long as the process
                _log.exception("the list of revocations could not be read; trying again")

    def _read_first(self) -> None:
        """Read the list for the first time, or wait for the reading that is under way.

        For a second after a failed reading, requests are refused without another try.
        """
        try:
            if time.monotonic() - self._failed_at < _LOOK_EVERY:
                raise StoreUnavailable("it was asked a moment ago")
            self._look(fresh=False)
        except StoreUnavailable as error:
            warn("requests are refused until the store has given the list of revocations: %s", error)
            raise StoreUnavailable("the store does not answer", "try again") from error

    def _look(self, *, fresh: bool = True) -> None:
        """Read the new entries of the list, and wake the rights that they revoke.

        Callers that wait for the same reading share its outcome.

        :param fresh: True if a reading that is under way will not do, because it may have missed the newest entry.
        :raises StoreUnavailable: if the store does not answer.
        """
        reading = self._next_reading(fresh=fresh)
        if reading is None:
            return
        try:
            self._read_on()
            reading.has_succeeded = True
        except StoreUnavailable as error:
            self._failed_at = time.monotonic()
            reading.fault = error
            raise
        finally:
            self._reading = None
            try:
                if self._checked != self._count:  # even if only some of the entries could be read
                    self._checked = self._count
                    self._check_watched()
            finally:
                reading.done.set()

    def _next_reading(self, *, fresh: bool) -> _ListRead | None:
        """Return a new reading for this caller to carry out; None if another caller's has succeeded meanwhile.

        :raises StoreUnavailable: if another caller's reading has failed.
        """
        came = self._readings
        while True:
            with self._lock:
                reading = self._reading
                if reading is None:
                    self._readings += 1
                    self._reading = _ListRead(self._readings)
                    return self._reading
            reading.done.wait()
            if reading.number > came or not fresh:
                if reading.fault:
                    raise StoreUnavailable(reading.fault.message, reading.fault.hint)
                if reading.has_succeeded:
                    return None

    def _read_on(self) -> None:
        now = time.time()
        ahead = now - time.monotonic()
        if ahead < self._ahead - LEEWAY:
            # The clock was fast, and has been set back. Entries that seemed too old may be in effect, so the list is
            # read from its start. No entry can be later than now.
            self._last, self._ahead = "", ahead
            self._read = {entry: min(at, now) for entry, at in self._read.items()}
            self.since = {item: old._replace(at=min(old.at, now)) for item, old in self.since.items()}
        self._ahead = max(ahead, self._ahead)
        while news := self._store.revoked(self._last):
            self._take(news)
        self._has_read = True

    def _take(self, news: Sequence[Revocation]) -> None:
        oldest = time.time() - self._ttl - 2 * LEEWAY
        if time.monotonic() - self._pruned_at > _PRUNE_EVERY:
            self._pruned_at = time.monotonic()
            for old in [item for item, revoked in self.since.items() if revoked.at <= oldest]:
                del self.since[old]
            self._read = {entry: at for entry, at in self._read.items() if at > oldest}
        for id, at, text in news:
            item = _item(text)
            # Ids may go back, and the list may be read from its start again, so an entry is known by its id and text.
            entry = hash((id, text))
            if item and at > oldest and entry not in self._read:
                before = self.since.get(item)
                self._read[entry] = at
                self.since[item] = Revoked(max(at, before.at if before else 0), self._count + 1)
                self._count += 1  # set last, so that a thread that sees the count sees all counted entries
        self._last = news[-1].id

    def _check_watched(self) -> None:
        with self._lock:
            rights = list(self._watched)
        for right in rights:
            try:
                right.check()
            except Exception:  # noqa: BLE001 - logged; one failure must not keep the others from waking
                _log.exception("a stream or poll whose right has been revoked could not be woken")


def one_revoked(**given: object) -> tuple[Kind, str]:
    """Return the kind and the value, a plain str, of the only argument that is not None: what is to be revoked.

    :raises ValueError: unless exactly one argument is given, and is a string that is not empty; or for a whole token
        in place of its id.
    """
    ((kind, value), *more) = [(kind, value) for kind, value in given.items() if value is not None] or [("", "")]
    if isinstance(value, str):
        value = plain_str(value)
    if more or value == "":
        raise ValueError(f"give one of {', '.join(given)}")
    if not isinstance(value, str):
        raise ValueError(f"{kind} is {value!a}; give a string")
    if kind == "token" and _TOKEN.fullmatch(value):
        raise ValueError("that is a whole token; give its id, the claim jti, if it has one")
    return cast("Kind", kind), value


def is_revoked(grant: Grant, channels: Iterable[str], since: Since) -> bool:
    """Return True if a grant is revoked as a whole, or for one of these channels."""
    if not since:
        return False
    named = [("sub", grant.sub), *(("channel", channel) for channel in channels)]
    return bool(grant.id and ("token", grant.id) in since) or any(
        grant.issued_at <= revoked.at + LEEWAY for item in named if (revoked := since.get(item))
    )


def _item(text: str) -> tuple[str, str] | None:
    """Return the kind and value that an entry of the list names; None if this version cannot read it."""
    if len(text) > _MAX_ITEM:
        return None
    try:
        value: Any = json.loads(text)
        ((kind, name),) = value.items()
    except (ValueError, AttributeError, RecursionError, MemoryError):
        return None
    return (kind, name) if kind in ("sub", "channel", "token") and name and isinstance(name, str) else None
