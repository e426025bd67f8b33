"""Limits of rates: events and bytes of each publisher, events on each channel, and streams, polls and new channels of
each client.

A rate such as 600/minute is counted in fixed windows, which begin with the first count. Without SSE_LIMITS_URL each
process counts in its own memory (`Counts`). The library `limits` parses the rates, and counts in Redis.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import re
import time
from _thread import RLock  # never patched by gevent, whose locks cost more than what they would guard here
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, Final

from limits import RateLimitItem, parse
from limits.storage import RedisStorage
from redis.backoff import NoBackoff
from redis.retry import Retry

from sse.config import Config
from sse.errors import TooLarge, TooMany
from sse.log import warn
from sse.stores import faults

_TIMEOUT: Final = 0.5  # seconds that Redis has to answer
_RETRY_AFTER: Final = 5.0  # seconds without limits after Redis has failed
_SWEEP_EVERY: Final = 60.0
# An address with its port, as some proxies write it (RFC 7239, 6).
_WITH_PORT: Final = re.compile(r"\[([^]]*)\](?::\d+)?|([\d.]+):\d+")
_MAX_ADDRESS: Final = 60  # characters; a longer text is no address, and must not fill the cache
_PUBLISH_BYTES: Final = "SSE_LIMIT_PUBLISH_BYTES"
_NO_WINDOW: Final = (0, 0.0)
_RING_BYTES: Final = 1024  # bytes that a new ring counts as


class Limits:
    """The limits of one service, counted in this process's memory or in the Redis of SSE_LIMITS_URL.

    Nothing is limited while that Redis is away: an outage would be worse than a few requests too many.
    """

    def __init__(self, config: Config) -> None:
        self._subscribe, self._publish, self._publish_bytes, self._channel = (
            parse(rate) if rate else None
            for rate in (
                config.limit_subscribe,
                config.limit_publish,
                config.limit_publish_bytes,
                config.limit_channel,
            )
        )
        self._new_channels = parse(config.limit_new_channels) if config.limit_new_channels else None
        self._url = config.limits_url
        self._prefix = f"{config.namespace}.limits"
        self._away_until = 0.0

    @cached_property
    def _counts(self) -> Counts | RedisStorage:
        if self._url is None:
            return Counts()
        options: dict[str, Any] = {
            "socket_timeout": _TIMEOUT,
            "socket_connect_timeout": _TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
        }
        return RedisStorage(self._url, key_prefix=self._prefix, **options)

    def subscribe(self, address: str | None) -> None:
        """Count a new stream or poll of a client. Without an address, nothing is limited.

        :raises TooMany: if the client has begun too many in this window.
        """
        if address:
            self._count("SSE_LIMIT_SUBSCRIBE", self._subscribe, address, 1)

    def new_channels(self, client: str, count: int) -> None:
        """Count the channels that a client creates by listening, before they are created.

        :param client: an address, or the scope of a token.
        :raises TooMany: if the client has created too many in this window.
        """
        rate = self._new_channels
        # A request for more channels than the rate allows counts as a whole window. Otherwise it could never be served.
        self._count("SSE_LIMIT_NEW_CHANNELS", rate, client, min(count, rate.amount) if rate else count)

    def publish(self, publisher: str, channels: Sequence[str], size: int, count_new: Callable[[], int]) -> int:
        """Count events on these channels before they are stored, and return the number of new rings counted with them.

        The store knows which channels get a new ring, and asking it takes a round trip. So it is asked only near the
        limit, where the answer decides. Otherwise `count_new_rings` counts new rings after the events are stored.

        :param size: bytes that the events' data take in the store.
        :param count_new: asks the store how many of the channels have no event yet.
        :raises TooMany: if they exceed a limit in this window.
        :raises TooLarge: if they exceed a limit even in an empty window.
        """
        counted = [("SSE_LIMIT_PUBLISH", self._publish, publisher, len(channels))]
        per_channel = Counter(channels).items() if len(channels) > 1 else [(channel, 1) for channel in channels]
        counted += [("SSE_LIMIT_CHANNEL", self._channel, *item) for item in per_channel]
        for name, rate, _, cost in counted:
            if rate and cost > rate.amount:
                raise TooLarge(f"{cost} events at once, but {name} allows {rate}", "send smaller batches")
        name, rate, rings = _PUBLISH_BYTES, self._publish_bytes, len(set(channels))  # the largest number possible
        if rate and size + _RING_BYTES * rings > rate.amount:
            rings = count_new()
            if (cost := size + _RING_BYTES * rings) > rate.amount:
                raise TooLarge(f"{cost} bytes at once, but {name} allows {rate}", "send smaller events or batches")
        for each in counted:
            self._count(*each)
        if self._count(name, rate, publisher, size) >= _RING_BYTES * rings:
            return 0
        rings = count_new()
        self._count(name, rate, publisher, _RING_BYTES * rings)
        return rings

    def count_new_rings(self, publisher: str, rings: int) -> None:
        """Count the new rings of a publication. Its events are stored already, so this never refuses.

        :param rings: a negative number takes back what was counted too much, as when another publisher has begun a ring
            at the same time.
        """
        if rings:
            with contextlib.suppress(TooMany):
                self._count(_PUBLISH_BYTES, self._publish_bytes, publisher, _RING_BYTES * rings)

    def close(self) -> None:
        """Close the connections to Redis, and drop the counts in this process's memory. The next use starts afresh."""
        counts = vars(self).pop("_counts", None)
        if isinstance(counts, RedisStorage):
            # A connection that is in use now is closed when it is returned to the pool.
            counts.storage.connection_pool.disconnect(inuse_connections=False)

    def _count(self, name: str, rate: RateLimitItem | None, owner: str, cost: int) -> float:
        """Count, and return how much the rate still allows in this window; infinity if nothing is limited.

        :param name: the setting of the rate.
        :param owner: the client, publisher or channel that is counted.
        :raises TooMany: if the count exceeds the rate.
        """
        if rate is None or time.monotonic() < self._away_until:
            return math.inf
        counts, key = self._counts, f"{name}/{owner}"
        if isinstance(counts, Counts):
            count = counts.incr(key, rate.get_expiry(), cost)
            if count <= rate.amount:
                return rate.amount - count
            raise _too_many(name, rate, counts.get_expiry(key))
        try:
            key = rate.key_for(name, owner)
            count = counts.incr(key, rate.get_expiry(), amount=cost)
            if count <= rate.amount:
                return rate.amount - count
            after = counts.get_expiry(key)
        except counts.base_exceptions as error:
            self._away_until = time.monotonic() + _RETRY_AFTER
            fault = faults.unreachable(error, (self._url or "").partition(":")[0], is_known=False)
            text = str(fault).replace("SSE_REDIS_URL", "SSE_LIMITS_URL")
            warn("nothing is limited, because the Redis of SSE_LIMITS_URL does not answer: %s", text)
            return math.inf
        raise _too_many(name, rate, after)


def _too_many(name: str, rate: RateLimitItem, after: float) -> TooMany:
    """Return the refusal of a client that exceeds a rate until the moment `after`, in seconds since 1970."""
    wait = max(round(after - time.time()), 1)
    return TooMany(f"more than {rate}, by {name}", f"try again in {wait} s", retry_after=wait, limit=name)


class Counts:
    """Counts in fixed windows, in this process's memory.

    The library's own class for this starts a thread for almost every event, to sweep old counts out.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._windows: dict[str, tuple[int, float]] = {}  # each count, and when its window ends
        self._next_sweep = time.monotonic() + _SWEEP_EVERY

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count, and return the count in this window. If there is none, one of `expiry` seconds begins."""
        now = time.monotonic()
        with self._lock:
            if now >= self._next_sweep:
                self._next_sweep = now + _SWEEP_EVERY
                self._windows = {name: window for name, window in self._windows.items() if window[1] > now}
            count, end = self._windows.get(key, _NO_WINDOW)
            if end <= now:
                count, end = 0, now + expiry
            count += amount
            self._windows[key] = count, end
        return count

    def get(self, key: str) -> int:
        """Return the count in this window."""
        return self._window(key, time.monotonic())[0]

    def get_expiry(self, key: str) -> float:
        """Return when this window ends, in seconds since 1970."""
        now = time.monotonic()
        return time.time() + max(self._window(key, now)[1] - now, 0)

    def _window(self, key: str, now: float) -> tuple[int, float]:
        count, end = self._windows.get(key, _NO_WINDOW)
        return (count, end) if end > now else (0, 0.0)


def client_address(remote: str | None, forwarded: str, proxies: int) -> str | None:
    """Return the client's address, as the outermost trusted proxy saw it; None if there is none to count by.

    If the proxies' header cannot be read, the result is the last proxy's own address. Without trusted proxies, loopback
    and unix sockets give None, because all clients may come through a local proxy. An IPv6 address is cut to its /64,
    because every client has a whole /64.

    :param remote: the peer's address.
    :param forwarded: the X-Forwarded-For header, to which each proxy adds at the end.
    :param proxies: the number of trusted proxies.
    """
    hops = forwarded.rsplit(",", proxies)[-proxies:] if proxies else []
    if proxies and len(hops) == proxies and (seen := _network(hops[0].strip('\t "')[:_MAX_ADDRESS])):
        return seen
    address = _network(remote or "")
    local = address is not None and (address.startswith("127.") or address == "::/64")
    return None if local and not proxies else address


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address, which may have a port (RFC 7239, 6); None for any other text."""
    text = text.strip('\t "')[:_MAX_ADDRESS]
    if with_port := _WITH_PORT.fullmatch(text):
        text = with_port[1] or with_port[2]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if address.version == 6 else address


@lru_cache(maxsize=4096)
def _network(text: str) -> str | None:
    """Return an address in the form in which it is counted, an IPv6 address as its /64; None for any other text."""
    address = parse_address(text)
    if address is None:
        return None
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))
