"""Limits of rates: events and their bytes by publishing key, events by channel, and streams, polls and new channels by
client. The library `limits` parses the rates, and counts in Redis.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, Final

from limits import RateLimitItem, parse
from limits.storage import RedisStorage, Storage
from redis.backoff import NoBackoff
from redis.retry import Retry

from sse.config import Config
from sse.errors import TooLarge, TooMany
from sse.log import warn
from sse.stores import faults

_PATIENCE: Final = 0.5
_TRY_AGAIN: Final = 5.0
_SWEEP_EVERY: Final = 60.0
_WITH_PORT: Final = re.compile(r"\[([^]]*)\](?::\d+)?|([\d.]+):\d+")  # some proxies add it (RFC 7239, 6)
_MAX_ADDRESS: Final = 60  # a longer text is no address, and is not to be kept in the cache
_PUBLISH_BYTES: Final = "SSE_LIMIT_PUBLISH_BYTES"
_RING_BYTES: Final = 1024  # that a new ring counts as


class Limits:
    """The limits of one service, counted in this process's memory or in the Redis of SSE_LIMITS_URL.

    Nothing is limited while that Redis is away, because a count is not worth an outage.
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
    def _counts(self) -> Storage:
        if self._url is None:
            return Counts()
        options: dict[str, Any] = {
            "socket_timeout": _PATIENCE,
            "socket_connect_timeout": _PATIENCE,
            "retry": Retry(NoBackoff(), 0),
        }
        return RedisStorage(self._url, key_prefix=self._prefix, **options)

    def subscribe(self, address: str | None) -> None:
        """Count a new stream or poll of a client. Without an address, nothing is limited.

        :raises TooMany: if the client has begun too many.
        """
        if address:
            self._count("SSE_LIMIT_SUBSCRIBE", self._subscribe, address, 1)

    def new_channels(self, client: str, count: int) -> None:
        """Count channels that a client is about to bring into being.

        :param client: an address, or the scope of a token.
        :raises TooMany: if the client has brought too many into being.
        """
        rate = self._new_channels
        # A request for more channels than the rate allows counts as a whole window, or it could never be served.
        self._count("SSE_LIMIT_NEW_CHANNELS", rate, client, min(count, rate.amount) if rate else count)

    def publish(self, publisher: str, channels: Sequence[str], size: int, count_new: Callable[[], int]) -> int:
        """Count events on these channels before they are stored, and return the number of new rings counted with them.

        The store knows which channels get a new ring, and asking it takes a round trip. So it is asked only near the
        limit, where the answer decides. Otherwise new rings are counted by `begun`, when the events are stored.

        :param size: bytes that the events' data take in the store.
        :param count_new: asks the store how many of the channels have no event yet.
        :raises TooMany: if there is no room for them in this window.
        :raises TooLarge: if they would not fit into any window.
        """
        counted = [("SSE_LIMIT_PUBLISH", self._publish, publisher, len(channels))]
        counted += [("SSE_LIMIT_CHANNEL", self._channel, *item) for item in Counter(channels).items()]
        for name, rate, _, cost in counted:
            if rate and cost > rate.amount:
                raise TooLarge(f"{cost} events at once, and no more than {rate}, by {name}", "send smaller batches")
        name, rate, rings = _PUBLISH_BYTES, self._publish_bytes, len(set(channels))  # at the most
        if rate and size + _RING_BYTES * rings > rate.amount:
            rings = count_new()
            if (cost := size + _RING_BYTES * rings) > rate.amount:
                raise TooLarge(
                    f"{cost} bytes at once, and no more than {rate}, by {name}", "send smaller events or batches"
                )
        for each in counted:
            self._count(*each)
        if self._count(name, rate, publisher, size) >= _RING_BYTES * rings:
            return 0
        rings = count_new()
        self._count(name, rate, publisher, _RING_BYTES * rings)
        return rings

    def begun(self, publisher: str, rings: int) -> None:
        """Count the new rings of a publication. It is stored already, so this refuses nothing."""
        if rings > 0:
            with contextlib.suppress(TooMany):
                self._count(_PUBLISH_BYTES, self._publish_bytes, publisher, _RING_BYTES * rings)

    def close(self) -> None:
        """Close the connections, and forget the counts of this process's memory. The next use begins anew."""
        counts = vars(self).pop("_counts", None)
        if isinstance(counts, RedisStorage):
            # A connection in use is closed when it is given back.
            counts.storage.connection_pool.disconnect(inuse_connections=False)

    def _count(self, name: str, rate: RateLimitItem | None, whose: str, cost: int) -> float:
        """Count, and return how much room is left in this window.

        :raises TooMany: if there was too little room.
        """
        if rate is None or time.monotonic() < self._away_until:
            return math.inf
        counts, key = self._counts, rate.key_for(name, whose)
        try:
            count = counts.incr(key, rate.get_expiry(), amount=cost)
            if count <= rate.amount:
                return rate.amount - count
            after = counts.get_expiry(key)
        except counts.base_exceptions as error:
            self._away_until = time.monotonic() + _TRY_AGAIN
            fault = faults.unreachable(error, (self._url or "").partition(":")[0], is_known=False)
            told = str(fault).replace("SSE_REDIS_URL", "SSE_LIMITS_URL")
            warn("nothing is limited, because the Redis of SSE_LIMITS_URL does not count: %s", told)
            return math.inf
        wait = max(round(after - time.time()), 1)
        raise TooMany(f"more than {rate}, by {name}", f"try again in {wait} s", retry_after=wait, limit=name)


class Counts(Storage):
    """Fixed windows in this process's memory. The library's own starts a thread for every event or so, to sweep."""

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **options: Any) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions, **options)
        self._lock = threading.Lock()
        self._windows: dict[str, tuple[int, float]] = {}  # each count, and the moment at which it begins anew
        self._next_sweep = time.monotonic() + _SWEEP_EVERY

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = time.monotonic()
        with self._lock:
            if now >= self._next_sweep:
                self._next_sweep = now + _SWEEP_EVERY
                self._windows = {name: window for name, window in self._windows.items() if window[1] > now}
            count, end = self._window(key, now)
            self._windows[key] = count + amount, end or now + expiry
        return count + amount

    def get(self, key: str) -> int:
        return self._window(key, time.monotonic())[0]

    def get_expiry(self, key: str) -> float:
        now = time.monotonic()
        return time.time() + max(self._window(key, now)[1] - now, 0)

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        self._windows = {}
        return None

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _window(self, key: str, now: float) -> tuple[int, float]:
        count, end = self._windows.get(key, (0, 0.0))
        return (count, end) if end > now else (0, 0.0)


def client_address(remote: str | None, forwarded: str, proxies: int) -> str | None:
    """Return the address that the outermost trusted proxy saw; None if there is none, or if all clients may share it.

    If the proxies' header cannot be read, the result is the last proxy's own address. Without trusted proxies, loopback
    and unix sockets give None, because they may be a local proxy's. An IPv6 address is cut to its /64, because every
    client has a whole one.

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


@lru_cache(maxsize=4096)
def _network(text: str) -> str | None:
    """Return an address in the form in which it is counted; None if the text is no address."""
    if with_port := _WITH_PORT.fullmatch(text):
        text = with_port[1] or with_port[2]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 6:
        address = address.ipv4_mapped or address
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
