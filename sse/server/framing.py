"""The bytes that HTTP/1.1 puts around an answer, where this worker writes it in gunicorn's place."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from typing import Final

LAST_CHUNK: Final = b"0\r\n\r\n"
"""The end of a chunked body (RFC 9112, 7.1)."""


def framed(chunk: bytes, last: bytes = b"") -> bytes:
    """Return a chunk of a chunked body (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n%b" % (len(chunk), chunk, last)


@lru_cache(maxsize=1)
def _date_of(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def date() -> bytes:
    """Return the value of a Date header (RFC 9110, 5.6.7)."""
    return _date_of(int(time.time()))
