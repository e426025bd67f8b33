"""What streams and waiting polls stand on: the time of their token, and that nothing of it has been revoked."""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, cast

from sse.access.token import LEEWAY, Grant
from sse.errors import StoreUnavailable
from sse.event import plain_str
from sse.log import warn
from sse.stores import Revocation, Store

_log = logging.getLogger("sse")

WARNING: Final = 60
"""Seconds before a token's exp at which its streams tell their pages."""

TAKEN_AFTER: Final = 2 * LEEWAY + 1
"""Seconds after a revocation from which on what is issued to the same is taken again, whatever clock it goes by."""

_LOOK_EVERY: Final = 1.0
_PRUNE_EVERY: Final = 60.0

_MAX_ITEM: Final = 65_536  # characters; no token has a longer subject or id, nor is a channel's name so long

_TOKEN: Final = re.compile(r"eyJ[\w-]*\.[\w-]*\.[\w-]*")

Kind = Literal["sub", "channel", "token"]


class Revoked(NamedTuple):
    """When something was last revoked, in seconds since 1970, and the number of that revocation here."""

    at: float
    number: int


Since = Mapping[tuple[str, str], Revoked]
"""By kind and value."""


class Permit:
    """The right of one stream or poll: to `granted` channels by a token until that ends, to `ruled` by the app's rule.

    :param grant: the token's, where a channel is read by it.
    :param decided: how many revocations were known when the rule was asked.
    """

    __slots__ = ("_revocations", "decided", "ended", "ends_at", "grant", "granted", "ruled", "wake", "warn_at")

    def __init__(
        self,
        revocations: Revocations,
        grant: Grant | None,
        granted: Sequence[str],
        ruled: Sequence[str] = (),
        decided: float = math.inf,
    ) -> None:
        self._revocations = revocations
        self.grant = grant
        self.granted = granted
        self.ruled = ruled
        self.decided = decided
        self.ends_at = grant.ends_at if grant else math.inf
        """When it ends, in seconds since 1970."""
        self.warn_at = self.ends_at - LEEWAY - WARNING
        """When its client is to be told that it will end; infinity once that is done."""
        self.ended = False
        """Whether it has been revoked."""
        self.wake: Callable[[], None] | None = None

    @property
    def due_in(self) -> float:
        """Seconds until there is something to say or to end."""
        return min(self.warn_at, self.ends_at) - time.time()

    @property
    def ends_in(self) -> float:
        """Seconds until it ends."""
        return self.ends_at - time.time()

    @property
    def is_over(self) -> bool:
        self.ended = self.ended or self._revocations.has_ended(self)
        return self.ended or time.time() >= self.ends_at

    def begin(self, wake: Callable[[], None]) -> None:
        """From now on, have `wake` called when it is revoked; `end` has to follow."""
        self.wake = wake
        self._revocations.hold(self)

    def notice(self) -> int | None:
        """Return in how many seconds it ends, once, when it is time to tell its client; else None."""
        now = time.time()
        if now < self.warn_at:
            return None
        self.warn_at = math.inf
        return max(round(self.ends_at - LEEWAY - now), 0)

    def revoke(self) -> None:
        self.ended = True
        wake = self.wake  # once: `end` may come in between
        if wake:
            wake()

    def end(self) -> None:
        wake, self.wake = self.wake, None
        if wake:  # else it has not begun, or has ended, and nothing is waited for, as in `Hub.detach`
            self._revocations.let_go(self)


class _Reading:
    """A reading of the list, for all who wait until it is `done`; then it has succeeded, has a `fault`, or neither.

    It has neither if the thread or greenlet that read was ended.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.done = threading.Event()
        self.has_succeeded = False
        self.fault: StoreUnavailable | None = None


class Revocations:
    """What is revoked, as all processes that share the store know within about a second.

    A subject or channel is revoked for whatever was issued until then; a token by its id (`jti`).
    """

    def __init__(self, store: Store, keep: int) -> None:
        self._store = store
        self._keep = keep
        self._lock = threading.Lock()  # held while nothing waits
        self._reading: _Reading | None = None  # the reading that is under way
        self._readings = 0
        self._failed_at = -math.inf
        self._last = ""
        self._known = False
        self._since: dict[tuple[str, str], Revoked] = {}
        self._read: dict[int, float] = {}  # all that counts, by a hash of its id and text, and its time
        self._count = self._ended = 0  # known, and acted upon
        self._pruned_at = time.monotonic()
        self._ahead = time.time() - time.monotonic()  # of the steady clock, at the most so far
        self._permits: set[Permit] = set()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def revoke(self, kind: Kind, value: str) -> None:
        """Refuse and end what was issued until now.

        :raises StoreUnavailable: if it may not be known to all.
        """
        self._store.revoke(json.dumps({kind: value}, ensure_ascii=True, separators=(",", ":")), self._keep)
        self._look()

    def count(self) -> int:
        """How many have been made, as far as is known.

        :raises StoreUnavailable: if what is revoked has never been read.
        """
        self._start()
        if not self._known:
            self._know()
        return self._count

    def refuses(self, grant: Grant, channels: Iterable[str] = ()) -> bool:
        """Whether the grant is revoked as a whole, or for one of these channels.

        :raises StoreUnavailable: if what is revoked has never been read.
        """
        self.count()
        return is_revoked(grant, channels, self._since)

    def has_ended(self, permit: Permit) -> bool:
        """Whether what a permit stands on has been revoked since it was decided on."""
        since = self._since
        ruled = [revoked for channel in permit.ruled if (revoked := since.get(("channel", channel)))]
        return any(revoked.number > permit.decided for revoked in ruled) or (
            permit.grant is not None and is_revoked(permit.grant, permit.granted, since)
        )

    def hold(self, permit: Permit) -> None:
        self._start()
        with self._lock:
            self._permits.add(permit)
        if self.has_ended(permit):
            permit.revoke()

    def let_go(self, permit: Permit) -> None:
        # One step, without the lock: the collector may call this in a thread that holds it.
        self._permits.discard(permit)

    def close(self) -> None:
        """End the thread that looks for news."""
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
                warn("what is revoked meanwhile is known only when the store is back: %s", error)
            except Exception:  # noqa: BLE001 - logged; what is revoked has to be known for as long as this process runs
                _log.exception("what is revoked could not be read; trying again")

    def _know(self) -> None:
        """Read the list for the first time, or wait for the reading that is under way.

        For a second after a failed reading, requests do not try again.
        """
        try:
            if time.monotonic() - self._failed_at < _LOOK_EVERY:
                raise StoreUnavailable("it was asked a moment ago")
            self._look(anew=False)
        except StoreUnavailable as error:
            warn("nobody is let in before the store has told what is revoked: %s", error)
            raise StoreUnavailable("the store does not answer", "try again") from error

    def _look(self, *, anew: bool = True) -> None:
        """Read what is new, and end what that revokes. One reads at a time; who waits for a reading shares its outcome.

        :param anew: whether it has to be a reading that begins after this call.
        :raises StoreUnavailable: if the store does not answer.
        """
        came = self._readings
        while True:
            with self._lock:
                reading = self._reading
                if reading is None:
                    self._readings += 1
                    mine = self._reading = _Reading(self._readings)
            if reading is None:
                break
            reading.done.wait()
            if reading.number > came or not anew:
                if reading.fault:
                    raise StoreUnavailable(reading.fault.message, reading.fault.hint)
                if reading.has_succeeded:
                    return
        try:
            self._read_on()
            mine.has_succeeded = True
        except StoreUnavailable as error:
            self._failed_at = time.monotonic()
            mine.fault = error
            raise
        finally:
            self._reading = None
            try:
                if self._ended != self._count:  # also where a part has been read
                    self._ended = self._count
                    self._end_revoked()
            finally:
                mine.done.set()

    def _read_on(self) -> None:
        now = time.time()
        ahead = now - time.monotonic()
        if ahead < self._ahead - LEEWAY:
            # The clock was fast, and has been set back: what it made too old may count, and nothing is later than now.
            self._last, self._ahead = "", ahead
            self._read = {entry: min(at, now) for entry, at in self._read.items()}
            self._since = {item: old._replace(at=min(old.at, now)) for item, old in self._since.items()}
        self._ahead = max(ahead, self._ahead)
        while news := self._store.revoked(self._last):
            self._take(news)
        self._known = True

    def _take(self, news: Sequence[Revocation]) -> None:
        oldest = time.time() - self._keep - 2 * LEEWAY
        if time.monotonic() - self._pruned_at > _PRUNE_EVERY:
            self._pruned_at = time.monotonic()
            for old in [item for item, revoked in self._since.items() if revoked.at <= oldest]:
                del self._since[old]
            self._read = {entry: at for entry, at in self._read.items() if at > oldest}
        for id, at, text in news:
            item = _item(text)
            # Times may go back, and a list may be read anew: what counts is whether it is another.
            entry = hash((id, text))
            if item and at > oldest and entry not in self._read:
                before = self._since.get(item)
                self._read[entry] = at
                self._since[item] = Revoked(max(at, before.at if before else 0), self._count + 1)
                self._count += 1  # afterwards: whoever sees it sees what it counts
        self._last = news[-1].id

    def _end_revoked(self) -> None:
        with self._lock:
            permits = list(self._permits)
        for permit in permits:
            try:
                if self.has_ended(permit):
                    permit.revoke()
            except Exception:  # noqa: BLE001 - logged; one that cannot be woken is in nobody's way
                _log.exception("a reader whose right has been revoked could not be woken")


def one_revoked(**given: object) -> tuple[Kind, str]:
    """The kind and the value, a plain str, of what is to be revoked.

    :raises ValueError: unless exactly one is given, a string and not empty; for a whole token in place of its id.
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
    """Whether a grant is revoked as a whole, or for one of these channels."""
    if not since:
        return False
    named = [("sub", grant.sub), *(("channel", channel) for channel in channels)]
    return bool(grant.id and ("token", grant.id) in since) or any(
        grant.issued_at <= revoked.at + LEEWAY for item in named if (revoked := since.get(item))
    )


def _item(text: str) -> tuple[str, str] | None:
    """The kind and value that an entry of the list names; None for what others wrote."""
    if len(text) > _MAX_ITEM:
        return None
    try:
        value: Any = json.loads(text)
        ((kind, name),) = value.items()
    except (ValueError, AttributeError, RecursionError, MemoryError):
        return None
    return (kind, name) if kind in ("sub", "channel", "token") and name and isinstance(name, str) else None
