"""The leases of sources and runs in Redis, and the markers of runs.

Beside its ring `sse:{CHANNEL}`, a channel has these keys as long as they are needed:

- `sse:{CHANNEL}:lease`, a string: the token that holds the lease;
- `sse:{CHANNEL}:run`, a hash: the marker of a run. `token` is that of the run. The run has written `written` bytes, the
  last of them with `key` at `last`. The ring begins at `anchor` and holds `held` bytes of at most `max`. After the
  `end`, its position is `at`, and `before` is the one before it;
- `sse:{CHANNEL}:source`, a hash: the record of a source. It is `up` or `down` (`state`) `since` a time. Its lease has
  been taken `attempts` times, and can be taken when it is `due`. The newest write, with `key`, is the entry `last` of
  the `writer` (a token), and was `written` at a time. All times are milliseconds of Redis's clock, but `written`, which
  is seconds;
- `sse:{CHANNEL}:workers`, a sorted set: the workers that listen to a source, by the time at which they are forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from sse.errors import StoreUnavailable
from sse.event import END_REASONS, End, EndReason, Event, Position
from sse.stores import faults
from sse.stores.base import Run, Standing, nonce
from sse.stores.leases import (
    DELIVERED,
    LEASE_SECONDS,
    MAX_WAIT,
    SOURCE_TTL,
    STEADY_SECONDS,
    Answer,
    Ask,
    Leases,
    Start,
    State,
    weight,
)
from sse.stores.refusals import incomplete, lease_lost, over_bound, stopped
from sse.stores.scripts import Script
from sse.wire import encode_payload

_log = logging.getLogger("sse")

_LEASE_MS: Final = int(LEASE_SECONDS * 1000)
_WAIT_MS: Final = int(MAX_WAIT * 1000)
_STEADY_MS: Final = int(STEADY_SECONDS * 1000)

RunScript = Callable[[Script, Sequence[tuple[Any, ...]]], list[Any]]
"""Runs a script with each of these arguments, in one round trip; returns the replies."""


class RedisLeases(Leases):
    """The leases and markers of a `RedisStore`, whose ways to ask Redis it uses.

    :param run: runs a script within the store's timeout.
    :param run_soon: runs a script on a connection of its own, within 1.5 s.
    :param execute: sends commands in one round trip, and returns the replies.
    :param key: returns the key of a channel's ring.
    :param announcements: returns the name of a channel's pub/sub channel.
    :param ring: events that an ordinary ring keeps.
    :param ring_ttl: seconds that an ordinary ring outlives its last event, and a marker its ring.
    :param run_bytes: bytes that the ring of a run may hold.
    :param run_ttl: seconds that the ring of a run outlives its end.
    """

    def __init__(
        self,
        *,
        run: RunScript,
        run_soon: RunScript,
        execute: Callable[[Sequence[tuple[Any, ...]]], list[Any]],
        key: Callable[[str], str],
        announcements: Callable[[str], str],
        ring: int,
        ring_ttl: int,
        run_bytes: int,
        run_ttl: int,
    ) -> None:
        self._run = run
        self._run_soon = run_soon
        self._execute = execute
        self._key = key
        self._announcements = announcements
        self._max_events = ring
        self._ring_ttl = ring_ttl
        self._run_bytes = run_bytes
        self._run_ttl = run_ttl
        self._life = run_ttl + ring_ttl  # seconds that a live run's ring and marker outlive its last renewal
        self._source_ttl = max(SOURCE_TTL, ring_ttl)
        self._start_script = Script("start_run.lua")
        self._write_run_script = Script("write_run.lua", stores=True)
        self._end_script = Script("end_run.lua", stores=True)
        self._renew_script = Script("renew_run.lua")
        self._ask_script = Script("ask_source.lua")
        self._write_source_script = Script("write_source.lua", stores=True)
        self._release_script = Script("release_source.lua")
        self._note_script = Script("note_source.lua")

    def start(self, channel: str, token: str, *, restart: bool = False) -> Start:
        call = (
            *self._keys_of_run(channel),
            int(nonce()[:13], 16) + 1,
            token,
            int(restart),
            self._run_bytes,
            _LEASE_MS,
            self._life,
            *self._sending(channel),
        )
        return cast("Start", self._ask(self._start_script, call, channel).decode())

    def write(self, channel: str, token: str, event: Event, *, key: str, written: int | None = None) -> Position:
        if written is None:
            return self._write_of_source(channel, token, event, key)
        size = weight(event)
        call = (
            *self._keys_of_run(channel),
            nonce(),
            token,
            key,
            encode_payload(event),
            size,
            written,
            _LEASE_MS,
            self._life,
            *self._sending(channel),
        )
        id, outcome, *rest = self._ask(self._write_run_script, call, channel)
        if outcome == b"stopped":
            raise stopped(channel)
        if outcome == b"incomplete":
            raise incomplete(channel)
        if outcome == b"large":
            raise over_bound(channel, size, int(rest[0]), int(rest[1]))
        return _stored(id, rest[0], channel)

    def end(self, channel: str, reason: EndReason, *, token: str | None = None) -> Position | None:
        call = (
            *self._keys_of_run(channel),
            nonce(),
            token or "",
            reason,
            encode_payload(End(channel, reason)),
            self._run_ttl,
            self._life,
            *self._sending(channel),
        )
        id = self._ask(self._end_script, call, channel)
        return None if id is None else _stored(id, b"", channel)

    def renew(self, held: Sequence[tuple[str, str]]) -> list[bool | StoreUnavailable]:
        calls = [(*self._keys_of_run(channel), token, _LEASE_MS, self._life) for channel, token in held]
        replies = self._run_soon(self._renew_script, calls)
        return [
            _refusal(reply, channel) if isinstance(reply, Exception) else reply == 1
            for (channel, _), reply in zip(held, replies, strict=True)
        ]

    def ask(self, questions: Sequence[Ask]) -> list[Answer | StoreUnavailable]:
        calls = []
        for channel, worker, listens, token in questions:
            key = self._key(channel)
            keys = (4, f"{key}:source", f"{key}:workers", f"{key}:lease", f"{key}:run")
            times = (_LEASE_MS, self._source_ttl, _STEADY_MS, _WAIT_MS)
            calls.append((*keys, worker, int(listens), token or "", *times))
        replies = self._run_soon(self._ask_script, calls)
        return [_answer(reply, question.channel) for question, reply in zip(questions, replies, strict=True)]

    def release(self, channel: str, token: str, *, wait: float = 0.0) -> None:
        call = (*self._keys_of_source(channel), token, round(min(wait, MAX_WAIT) * 1000), self._source_ttl)
        self._ask(self._release_script, call, channel)

    def note(self, channel: str, token: str, state: State) -> None:
        call = (*self._keys_of_source(channel), token, state, self._source_ttl, *self._sending(channel))
        self._ask(self._note_script, call, channel)

    def states(self, channels: Sequence[str]) -> list[State | StoreUnavailable | None]:
        replies = self._execute([("HMGET", f"{self._key(channel)}:source", "state") for channel in channels])
        return [
            _refusal(reply, channel) if isinstance(reply, Exception) else _state(reply[0])
            for channel, reply in zip(channels, replies, strict=True)
        ]

    def ages(self, channels: Sequence[str]) -> list[float | StoreUnavailable | None]:
        commands: list[tuple[Any, ...]] = [("TIME",)]
        for channel in channels:
            key = self._key(channel)
            commands += [("HMGET", f"{key}:source", "writer", "written"), ("GET", f"{key}:lease")]
        time, *replies = self._execute(commands)
        return [
            _age(time, source, holder, channel)
            for channel, source, holder in zip(channels, replies[::2], replies[1::2], strict=True)
        ]

    def _write_of_source(self, channel: str, token: str, event: Event, key: str) -> Position:
        ring = self._key(channel)
        call = (
            3,
            ring,
            f"{ring}:source",
            f"{ring}:lease",
            nonce(),
            token,
            key,
            encode_payload(event),
            self._max_events + 1,
            self._ring_ttl,
            self._source_ttl,
            *self._sending(channel),
            DELIVERED,
        )
        id, outcome, fault = self._ask(self._write_source_script, call, channel)
        if outcome == b"lost":
            raise lease_lost(channel)
        return _stored(id, fault, channel)

    def _ask(self, script: Script, call: tuple[Any, ...], channel: str) -> Any:
        """Return the reply to one call.

        :raises StoreUnavailable: if it is an error.
        """
        (reply,) = self._run(script, [call])
        if isinstance(reply, Exception):
            raise _refusal(reply, channel)
        return reply

    def _keys_of_run(self, channel: str) -> tuple[Any, ...]:
        key = self._key(channel)
        return (3, key, f"{key}:run", f"{key}:lease")

    def _keys_of_source(self, channel: str) -> tuple[Any, ...]:
        key = self._key(channel)
        return (2, f"{key}:source", f"{key}:lease")

    def _sending(self, channel: str) -> tuple[str, str]:
        return ("PUBLISH", self._announcements(channel))


def standing_of_run(reply: Sequence[Any], channel: str) -> Standing | StoreUnavailable:
    """Return the standing that before.lua has found for a channel with a marker."""
    newest, anchor, end, *places, held = reply
    ended_at, before_end = (Position.parse(place.decode()) for place in places)
    begin, last = Position.parse(anchor.decode()), Position.parse(newest.decode())
    reason = cast("EndReason", end.decode()) if end.decode() in END_REASONS else None
    is_whole = (reason is None) == (ended_at is None) == (before_end is None)
    if begin is None or (newest and last is None) or bool(end) != (reason is not None) or not is_whole:
        return _refusal("another program wrote into it", channel)
    return Standing(last, Run(begin, reason, ended_at, before_end, bool(held)))


def _stored(id: bytes, fault: bytes, channel: str) -> Position:
    """Return the position of an entry that a script has stored, and log why it was not announced.

    :raises StoreUnavailable: if another program wrote the entry before it.
    """
    if fault:
        _log.warning("stored %s on channel %s but could not announce it: %s", id.decode(), channel, fault.decode())
    position = Position.parse(id.decode(errors="replace"))
    if position is None:
        raise _refusal(f"{id!r} is not a position", channel)
    return position


def _answer(reply: Any, channel: str) -> Answer | StoreUnavailable:
    if isinstance(reply, Exception):
        return _refusal(reply, channel)
    is_held, listeners, attempts, state, is_taken = reply
    return Answer(bool(is_held), listeners, int(attempts), _state(state), bool(is_taken))


def _state(text: bytes | None) -> State | None:
    return "up" if text == b"up" else "down" if text == b"down" else None


def _age(time: Any, source: Any, holder: Any, channel: str) -> float | StoreUnavailable | None:
    fault = next((reply for reply in (time, source, holder) if isinstance(reply, Exception)), None)
    if fault is not None:
        return _refusal(fault, channel)
    writer, written = source
    if writer is None or not (written or b"").isdigit():
        return None
    return 0.0 if writer == holder else max(float(time[0]) - float(written), 0.0)


def _refusal(error: object, channel: str) -> StoreUnavailable:
    return faults.refusal(error, f"the keys of the run or source on channel {channel}")
