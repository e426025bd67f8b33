"""A stream and a poll on channels of SSE_PRESENCE: each is noted as a connection when it opens, until it ends.

These are classes of their own, so that the streams and polls of all other channels need no room for it. The function
that notes the end is one of the functions to call at a connection's end (`Body.closing`). So it is called under any
server, by the row of a connection that was handed off as by the body of one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sse.web.hooks import HookedPoll, HookedStream

Enter = Callable[..., Callable[[], None]]
"""A function that notes a connection, and returns the one to call at its end."""


class PresentStream(HookedStream):
    """A stream that is noted as a connection once it is open."""

    __slots__ = ("_enter",)

    def __init__(self, enter: Enter, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._enter = enter

    def _open(self) -> bytes:
        opening = super()._open()
        if not self.ended:
            self.closing = (*self.closing, self._enter())
        return opening


class PresentPoll(HookedPoll):
    """A poll that is noted as a connection while it is open; a client's also for some seconds after its answer."""

    __slots__ = ("_enter",)

    def __init__(self, enter: Enter, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._enter = enter

    def open(self) -> bytes | None:
        leave = self._enter(lingers=True)
        answer: bytes | None = b""
        try:
            answer = super().open()
        finally:
            if answer is None:
                self.closing = (*self.closing, leave)
            else:
                leave()
        return answer
