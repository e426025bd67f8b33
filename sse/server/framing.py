"""The bytes that HTTP/1.1 puts around an answer, for answers that this worker writes instead of gunicorn."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from typing import Final

LAST_CHUNK: Final = b"0\r\n\r\n"
"""The end of a chunked body (RFC 9112, 7.1)."""


def framed(chunk: bytes, last: bytes = b"") -> bytes:
    """Return a chunk of a chunked body (RFC 9112, 7.1), followed by `last`."""
    return b"%x\r\n%b\r\n%b" % (len(chunk), chunk, last)


@lru_cache(maxsize=1)
def _date_of(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def date() -> bytes:
    """Return the value of a Date header (RFC 9110, 5.6.7)."""
    return _date_of(int(time.time()))
