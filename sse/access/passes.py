"""Passes: short texts that open the doctor's probes for an hour, and nothing else.

A pass is `EXPIRY.SIGNATURE`. The signature is an HMAC by a key that is derived from SSE_SECRET, or else from the
publishing keys. So every process with the same settings verifies a pass, and none has to remember it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from sse.access.keys import PublishKeys
from sse.config import Config
from sse.errors import NotFound, Unauthorized

PASS_LIFE: Final = 3600
"""Seconds for which a pass opens the probes."""

_CLOCKS: Final = 60  # seconds that the clocks of two machines may differ
_FORM: Final = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})", re.ASCII)
_MOST_KEYS: Final = 4  # that verify; more would be there only while keys of the file are rotated
_HINT: Final = "make one with `flask sse doctor URL --link`, or set SSE_DOCTOR=1 for as long as you look for the fault"


class Passes:
    """Makes and checks the passes of one service. `clock` gives seconds since 1970."""

    def __init__(self, config: Config, keys: PublishKeys, clock: Callable[[], float] = time.time) -> None:
        self._secrets = tuple(secret.encode() for secret in config.secret)
        self._keys = keys
        self._clock = clock

    @property
    def configured(self) -> bool:
        """True if there is a secret or a publishing key, by which a pass can be signed."""
        return bool(self._signers())

    def make(self) -> str:
        """Return a pass that is good for PASS_LIFE seconds.

        :raises NotFound: without a secret or publishing key.
        """
        signers = self._signers()
        if not signers:
            raise NotFound("no passes are made here", "set SSE_SECRET or SSE_PUBLISH_KEYS, or SSE_DOCTOR=1")
        expiry = str(int(self._clock()) + PASS_LIFE)
        return f"{expiry}.{_signature(signers[0], expiry)}"

    def check(self, text: str) -> None:
        """Check a pass.

        :raises Unauthorized: with the code `pass_missing` if it is empty, else `pass_invalid` if it is not valid now.
        """
        if not text:
            raise Unauthorized("a probe needs a pass", _HINT, code="pass_missing")
        found = _FORM.fullmatch(text)
        if not found:
            raise _invalid("the pass is malformed")
        expiry, signature = found.groups()
        # The signature comes first, so that the answer tells of a time only for a pass that was made here.
        if not any(hmac.compare_digest(signature, _signature(signer, expiry)) for signer in self._signers()):
            raise _invalid("the pass is not valid here")
        if not self._clock() < int(expiry) <= self._clock() + PASS_LIFE + _CLOCKS:
            raise _invalid("the pass has expired")

    def _signers(self) -> Sequence[bytes]:
        """Return the secrets by which passes are verified. The first one signs."""
        return self._secrets or tuple(key.digest for key in self._keys)[:_MOST_KEYS]


def _signature(secret: bytes, expiry: str) -> str:
    return hmac.new(_derived(secret), expiry.encode(), "sha256").hexdigest()


@lru_cache(maxsize=16)
def _derived(secret: bytes) -> bytes:
    """Return the key that signs passes. A pass is given to strangers, so it must not be a quick test for guesses of a
    weak publishing key: scrypt (RFC 7914) takes some 40 ms, once in each process.
    """
    return hashlib.scrypt(secret, salt=b"throughline doctor", n=1 << 14, r=8, p=1, dklen=32)


def _invalid(message: str) -> Unauthorized:
    return Unauthorized(message, _HINT, code="pass_invalid")
