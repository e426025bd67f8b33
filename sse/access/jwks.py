"""The public keys of whoever issues tokens: a JWK set (RFC 7517), from a file or from an address."""

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
"""The one algorithm of each type of key, and its curve: a token's own header never chooses."""

Keys = Mapping[tuple[str, str], Sequence[PyJWK]]
"""Keys by algorithm and key id; the id is empty where a key has none."""

_FRESH: Final = 300.0
_AGAIN: Final = 30.0  # the shortest time between two requests, whatever key ids are asked for
_JUST_NOW: Final = 1.0
_TIMEOUT: Final = 5.0
_MIN_RSA: Final = 2048  # bits (RFC 7518, 3.3)
_MAX_BYTES: Final = 1 << 20


class KeySet(Protocol):
    """Where a token's key is looked up."""

    @property
    def generation(self) -> int:
        """Another number whenever the keys have changed: what was verified before must be verified again."""

    def find(self, algorithm: str, key_id: str) -> tuple[Sequence[PyJWK], int]:
        """The keys that a token with this header may be verified by; without an id, the only one of its algorithm.

        And where there is none, the seconds after which there may be: 0 if that has just been looked at.

        :raises Unavailable: if no keys could be fetched yet.
        """


def connect(place: str) -> KeySet:
    """The keys at a place: an address, or a file's path.

    :raises ConfigError: if the file cannot be read, or has no key that can be used.
    """
    return Fetched(place) if "://" in place else _File(place)


def parse_keys(text: str) -> Keys:
    """The keys of a JWK set that verify signatures; others, and those that are secret, are left out.

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
    """What a key is for, if it is one to verify by."""
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
        _ = self._keys.value  # looks for a change
        return self._keys.generation

    def find(self, algorithm: str, key_id: str) -> tuple[Sequence[PyJWK], int]:
        return _find(self._keys.value, algorithm, key_id), 0


class Fetched:
    """The keys at an address: fetched when first needed, and again after 300 s or for an id that is unknown.

    Never more often than every 30 s. While the address does not answer, the keys that are known stay in force, and only
    who needs another waits a little, and so does who comes first after a long time.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._lock = threading.Lock()  # held while nothing waits, so one from before a patch or a fork will do
        self._done = threading.Event()
        self._done.set()
        self._keys: Keys = {}
        self._text = ""
        self._fetched_at = self._tried_at = float("-inf")
        self._outdated = False  # nobody has asked for long: a key may have been withdrawn meanwhile
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
        return (), max(math.ceil(self._tried_at + _AGAIN - self._clock()), 1)

    def _wait(self) -> None:
        """Wait for the keys that are being fetched; all who do stop at the same time."""
        self._done.wait(max(self._tried_at + _TIMEOUT - self._clock(), 0))

    def _refresh(self) -> None:
        """Have the keys fetched, unless that was tried a moment ago."""
        with self._lock:
            now = self._clock()
            is_time = now - self._tried_at >= _AGAIN
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
            warn("SSE_JWKS, %s: %s; only tokens by keys that are known are taken", urlsplit(self._url).netloc, error)
        finally:
            self._outdated = False
            done.set()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow no redirection: this address was chosen, another was not."""


def _fetch(url: str) -> str:
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - checked by the setting
    deadline = time.monotonic() + _AGAIN
    body = b""
    with urllib.request.build_opener(_Stay).open(request, timeout=_TIMEOUT) as response:
        while more := response.read1(65_536):
            body += more
            if len(body) > _MAX_BYTES:
                raise ValueError(f"the answer is over {_MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise ValueError(f"the answer takes over {_AGAIN:.0f} s")
    return str(body, "utf-8")
