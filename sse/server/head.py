"""The head of a request while it arrives (RFC 9112, 2.1): each byte is searched once, however many packets bring it."""

from __future__ import annotations

from typing import Final

MAX_HEAD: Final = 131_072
"""Bytes that the head of any request may have. The longest for which gunicorn.conf.py is made has 90 KB."""

_END: Final = b"\r\n\r\n"
_PROXY_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"


class Head:
    """Gathers the bytes of a request's head until a parser can read or refuse it without asking for more.

    :param limit: bytes that the head may have, including a PROXY header before it.
    :param line: bytes that its first line may have; 0 for no bound but `limit`.
    :param proxy: the version of the PROXY header that may stand before it: `off`, `v1`, `v2` or `auto`.
    """

    def __init__(self, limit: int, line: int = 0, proxy: str = "off") -> None:
        self.data = bytearray()
        """All bytes that have come. Those behind the head belong to a body or to the next request."""
        self._limit = limit
        self._line = line
        self._proxy = proxy
        self._start = 0 if proxy == "off" else -1  # index of the head; -1 until the PROXY header has ended
        self._searched = 0
        self._end = -1
        self._in_first_line = True

    @property
    def has_begun(self) -> bool:
        """True once a byte of the head has come. An empty line may come long before it (RFC 9112, 2.2)."""
        data, start = self.data, self._start
        return start >= 0 and (len(data) > start + 2 or bytes(data[start:]) not in (b"", b"\r", b"\r\n"))

    @property
    def is_too_large(self) -> bool:
        """True if the bytes that have come of the head are over `limit`."""
        return (len(self.data) if self._end < 0 else self._end) > self._limit

    def add(self, data: bytes) -> bool:
        """Add the next bytes. Return whether they are enough: the head has ended, is too large, or has a fault."""
        self.data += data
        if self._start < 0 and (start := self._pass_proxy()) >= 0:
            self._start = self._searched = start
        return (self._start >= 0 and self._is_decided()) or self.is_too_large

    def _is_decided(self) -> bool:
        data, start, searched = self.data, self._start, self._searched
        end = data.find(_END, max(searched - 3, start))
        if end >= 0:
            self._end = end + len(_END)
            return True
        self._searched = len(data)
        if data.count(b"\n", searched) != data.count(b"\r\n", max(searched - 1, start)):
            return True  # a line ends with a bare LF, so the CRLF for which we look may never come
        if self._in_first_line:
            first = start + 2 if data.startswith(b"\r\n", start) else start
            self._in_first_line = data.find(b"\r\n", max(searched - 1, first)) < 0
            return self._in_first_line and 0 < self._line < len(data) - first - 2
        return False

    def _pass_proxy(self) -> int:
        """Return the index behind the PROXY header, 0 if there is none, and -1 if more bytes are needed."""
        data = self.data
        if len(data) < len(_PROXY_V2):
            return -1
        if self._proxy != "v1" and data.startswith(_PROXY_V2):
            size = 16 + int.from_bytes(data[14:16], "big")
            return size if 16 <= len(data) >= size else -1
        if self._proxy != "v2" and data.startswith(b"PROXY "):
            end = data.find(b"\r\n", max(self._searched - 1, 0))
            self._searched = len(data)
            return end + 2 if end >= 0 else -1
        return 0


class Rest:
    """Gathers the bytes of a request whose size is known.

    :param size: bytes of the whole request.
    """

    def __init__(self, size: int) -> None:
        self.data = bytearray()
        """All bytes that have come."""
        self._size = size

    def add(self, data: bytes) -> bool:
        """Add the next bytes. Return whether all have come."""
        self.data += data
        return len(self.data) >= self._size
