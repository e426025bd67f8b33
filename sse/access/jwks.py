"""The public keys of other issuers of tokens: a JWK set (RFC 7517), from a file or from an address.

A file is read again when it changes. An address is asked when a key is first needed, when the keys are 300 s old, and
when a token names a key that is not known. A thread asks it, so that only requests that need the answer wait.
"""

from __future__ import annotations

import json
import math
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from jwt import PyJWK
from jwt.exceptions import PyJWTError

from sse.access.reload import Reloaded
from sse.errors import Unavailable
from sse.log import warn

ALGORITHMS: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
"""The one algorithm of each type of key and its curve. The header of a token never chooses another."""

Keys = Mapping[tuple[str, str], Sequence[PyJWK]]
"""Keys by algorithm and key id; the id is empty where a key has none."""

_FRESH: Final = 300.0  # seconds after which keys are fetched again
_MIN_INTERVAL: Final = 30.0  # seconds between the starts of two requests, whatever key ids are asked for
_JUST_NOW: Final = 1.0  # a request that began so many seconds before a token came counts as one for that token
_TIMEOUT: Final = 5.0
_MIN_RSA: Final = 2048  # bits (RFC 7518, 3.3)
_MAX_BYTES: Final = 1 << 20


class KeySet(Protocol):
    """Where a token's key is looked up."""

    @property
    def generation(self) -> int:
        """A number that changes whenever the keys change, after which each token has to be verified again."""

    def find(self, algorithm: str, key_id: str) -> tuple[Sequence[PyJWK], int]:
        """Return the keys that a token may be verified by, and the seconds after which a missing key may be known.

        The seconds are 0 if there is a key, or if the set is so fresh that waiting would not help.

        :param algorithm: the algorithm in the token's header.
        :param key_id: the key id in the token's header. If it is empty, the only key of the algorithm is returned.
        :raises Unavailable: if no keys could be fetched yet.
        """


def connect(source: str) -> KeySet:
    """Return the key set at an address, or in the file of this path.

    :raises ConfigError: if the file cannot be read, or has no key that can be used.
    """
    return Fetched(source) if "://" in source else _File(source)


def parse_keys(text: str) -> Keys:
    """Return the public keys of a JWK set that verify signatures. Other keys, and private ones, are left out.

    :raises ValueError: if there is no such key.
    """
    try:
        items = list(json.loads(text)["keys"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('not a JWK set, {"keys": […]}') from None
    keys: dict[tuple[str, str], list[PyJWK]] = {}
    for item in items:
        algorithm = _algorithm(item)
        if algorithm is None:
            continue
        try:
            key = PyJWK(item, algorithm)
        except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if algorithm == "RS256" and key.key.key_size < _MIN_RSA:
            continue
        keys.setdefault((algorithm, item.get("kid", "")), []).append(key)
    if not keys:
        raise ValueError("no key for RS256 (2048 bits or more), ES256 or EdDSA in it; private keys do not belong there")
    return keys


def _algorithm(item: Any) -> str | None:
    """Return the algorithm that a key verifies signatures by; None if it is not a public key for that."""
    if not isinstance(item, dict) or not isinstance(item.get("kid", ""), str) or "d" in item:
        return None
    kind, curve = item.get("kty"), item.get("crv")
    algorithm = ALGORITHMS.get((kind, curve)) if isinstance(kind, str) and isinstance(curve, str | None) else None
    operations = item.get("key_ops", ["verify"])
    if item.get("alg", algorithm) != algorithm or item.get("use", "sig") != "sig":
        return None
    return algorithm if isinstance(operations, list) and "verify" in operations else None


def _find(keys: Keys, algorithm: str, key_id: str) -> Sequence[PyJWK]:
    if key_id:
        return keys.get((algorithm, key_id), ())
    candidates = [key for (name, _), found in keys.items() if name == algorithm for key in found]
    return candidates if len(candidates) == 1 else ()


class _File:
    def __init__(self, path: str) -> None:
        self._keys = Reloaded("SSE_JWKS", path, parse_keys)

    @property
    def generation(self) -> int:
        _ = self._keys.value  # looks at the file, and changes the generation if it has changed
        return self._keys.generation

    def find(self, algorithm: str, key_id: str) -> tuple[Sequence[PyJWK], int]:
        return _find(self._keys.value, algorithm, key_id), 0


class Fetched:
    """The keys at an address, which is asked at most every 30 s, whatever tokens come.

    While the address does not answer, the known keys stay in force. A request waits for the answer, for up to 5 s, only
    if its token has an unknown key, or if the address was last asked over 600 s ago, because a key may have been
    withdrawn in that time.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        # Nothing waits while it is held, so a lock from before gevent's patch or a fork is safe.
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._done.set()
        self._keys: Keys = {}
        self._text = ""
        self._fetched_at = self._tried_at = float("-inf")
        self._outdated = False  # True while the first request after over 600 s is under way
        self._generation = 0

    @property
    def generation(self) -> int:
        if self._clock() - self._fetched_at > _FRESH:
            self._refresh()
            if self._outdated:
                self._wait()
        return self._generation

    def find(self, algorithm: str, key_id: str) -> tuple[Sequence[PyJWK], int]:
        asked_at = self._clock()
        found = _find(self._keys, algorithm, key_id)
        if not found:
            self._refresh()
            self._wait()
            found = _find(self._keys, algorithm, key_id)
        if not self._keys:
            raise Unavailable("tokens cannot be verified now", "try again", code="no_keys")
        if found or self._fetched_at >= self._tried_at >= asked_at - _JUST_NOW:
            return found, 0
        return (), max(math.ceil(self._tried_at + _MIN_INTERVAL - self._clock()), 1)

    def _wait(self) -> None:
        """Wait until the keys have been fetched, or for the timeout since that began, which is the same for all."""
        self._done.wait(max(self._tried_at + _TIMEOUT - self._clock(), 0))

    def _refresh(self) -> None:
        """Start a thread that fetches the keys, unless the last attempt began less than 30 s ago."""
        with self._lock:
            now = self._clock()
            is_time = now - self._tried_at >= _MIN_INTERVAL
            if is_time:
                self._outdated = now - self._tried_at > 2 * _FRESH
                self._tried_at, self._done = now, threading.Event()
        if is_time:
            threading.Thread(target=self._fetch, args=(self._done,), name="sse-jwks", daemon=True).start()

    def _fetch(self, done: threading.Event) -> None:
        try:
            text = _fetch(self._url)
            if text != self._text:
                self._keys, self._text = parse_keys(text), text
                self._generation += 1
            self._fetched_at = self._clock()
        except (OSError, ValueError, HTTPException) as error:
            warn("SSE_JWKS, %s: %s; only tokens signed by known keys are accepted", urlsplit(self._url).netloc, error)
        finally:
            self._outdated = False
            done.set()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow no redirection, because the operator trusts this address only."""


def _fetch(url: str) -> str:
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - checked by the setting
    deadline = time.monotonic() + _MIN_INTERVAL
    body = b""
    with urllib.request.build_opener(_NoRedirects).open(request, timeout=_TIMEOUT) as response:
        while more := response.read1(65_536):
            body += more
            if len(body) > _MAX_BYTES:
                raise ValueError(f"the answer is over {_MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise ValueError(f"the answer takes over {_MIN_INTERVAL:.0f} s")
    return str(body, "utf-8")
