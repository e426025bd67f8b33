"""The script calls by which the Redis store publishes, and the receipts in their replies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from sse.errors import Ended, StoreUnavailable, TooLarge
from sse.event import Position
from sse.stores import faults
from sse.stores.base import ONCE_TTL, Publication, Receipt, Receipts, nonce
from sse.stores.refusals import conflict, ended, too_large
from sse.stores.scripts import Script
from sse.wire import encode_payload

_log = logging.getLogger("sse")

_RANDOM_ONCE_TTL: Final = 30  # seconds; a publish and its repetitions take less, by SSE_REDIS_TIMEOUT

Arguments = tuple[Any, ...]


class PublishCall(NamedTuple):
    """The script call of one `publish`. `rings` are the keys of the publications' rings."""

    script: Script
    arguments: Arguments
    publications: Sequence[Publication]
    rings: Sequence[str]

    def outcome(self, reply: Any) -> Receipts | Exception:
        """Return what `publish` returns or raises after this reply."""
        try:
            return self._receipts(reply)
        except Exception as error:  # noqa: BLE001 - raised for its own call
            return error

    def _receipts(self, reply: Any) -> Receipts:
        if len(self.publications) == 1:
            replies = [reply]
        elif isinstance(reply, Exception):
            replies = [reply] * len(self.publications)
        elif reply and reply[0] in (b"conflict", b"ended"):
            channel = self.publications[reply[1] - 1].channel
            raise conflict(channel) if reply[0] == b"conflict" else ended(channel)
        else:
            replies = reply
        receipts = [
            _receipt(each, publication.channel, ring)
            for each, publication, ring in zip(replies, self.publications, self.rings, strict=True)
        ]
        first = receipts[0]
        if isinstance(first, Ended) and all(isinstance(receipt, Ended) for receipt in receipts):
            raise first
        return receipts


class PublishCalls:
    """Makes the script calls of one store.

    :param key: returns the key of a channel's ring.
    :param announcements: returns the name of a channel's pub/sub channel.
    :param ring: events that a ring keeps.
    :param ring_ttl: seconds that a ring outlives its last event.
    """

    def __init__(
        self, key: Callable[[str], str], announcements: Callable[[str], str], *, ring: int, ring_ttl: int
    ) -> None:
        self._key = key
        self._announcements = announcements
        self._entries = ring + 1
        self._ttl = ring_ttl
        self._single = Script("publish.lua", stores=True)
        self._batch = Script("publish_batch.lua", stores=True, publish="publish.lua")

    def make(self, publications: Sequence[Publication]) -> PublishCall | Receipts | Exception:
        """Return the call that publishes these, or their outcome if nothing has to be sent."""
        if not publications:
            return []
        try:
            if len(publications) == 1:
                call = self._arguments(publications[0], None)
                return PublishCall(self._single, call, publications, call[1:2])
            before: dict[str, str] = {}
            calls = []
            for publication in publications:
                call = self._arguments(publication, before.get(publication.channel))
                before[publication.channel] = call[2]
                calls.append(call)
            return PublishCall(self._batch, _join(publications, calls), publications, [call[1] for call in calls])
        except Exception as error:  # noqa: BLE001 - raised for its own call
            return error

    def _arguments(self, publication: Publication, before: str | None) -> Arguments:
        """Return the arguments of publish.lua for a publication.

        They include a key, random if the publication has none. They are made once, so that the script recognizes a
        repetition after a lost reply.

        :param before: the idempotency key, in Redis, of the event before it in the same channel and call.
        """
        channel, event, once = publication
        key = self._key(channel)
        random = nonce()
        keys = [key, f"{key}:once:{once or random}", *([before] if before else [])]
        return (
            len(keys),
            *keys,
            random,
            self._entries,
            self._ttl,
            ONCE_TTL if once else _RANDOM_ONCE_TTL,
            "PUBLISH",
            self._announcements(channel),
            encode_payload(event),
        )


def _join(publications: Sequence[Publication], calls: Sequence[Arguments]) -> Arguments:
    """Return the arguments of publish_batch.lua for several publications."""
    keys: list[Any] = []
    arguments: list[Any] = []
    for publication, (count, *rest) in zip(publications, calls, strict=True):
        keys += rest[:count]
        arguments += [count, *rest[count:], int(bool(publication.key))]
    return (len(keys), *keys, *arguments)


def _receipt(reply: Any, channel: str, ring: str) -> Receipt | StoreUnavailable | Ended | TooLarge:
    if not isinstance(reply, list):
        return faults.refusal(reply, f"to store into {ring}")
    id, outcome, fault, *bound = reply
    if outcome == b"conflict":
        raise conflict(channel)
    if outcome == b"ended":
        return ended(channel)
    if outcome == b"large":
        return too_large(channel, int(id), int(fault), int(bound[0]))
    text = id.decode(errors="replace")
    if fault:
        _log.warning("stored %s in %s but could not announce it: %s", text, ring, fault.decode(errors="replace"))
    position = Position.parse(text)
    if position is None:  # another program wrote the entry before it, or the idempotency key
        return StoreUnavailable(
            f"another program wrote into the ring {ring}: {id!r} is not a position", "see the key in redis-cli"
        )
    return Receipt(position, "again" if outcome == b"again" else "new")
