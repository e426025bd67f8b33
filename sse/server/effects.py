"""The means by which rows act: functions that are given to them, so that they need no event loop and no sockets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

Call = Callable[[], object]
Calls = Sequence[Call]
Interest = Literal["end", "input", "room", "input or room"]
"""The news of a connection that its row is told: that the peer has ended it, and that there is input or room."""


class Effects(NamedTuple):
    """The functions through which rows act. None of them but `pause` and `sleep` waits."""

    write: Callable[[int, bytes | memoryview], int]
    """As `os.write`, with its errors."""
    read: Callable[[int, int], bytes]
    """As `os.read`, with its errors."""
    unread: Callable[[int], int]
    """Return how many bytes of a connection nobody has read."""
    clock: Callable[[], float]
    """As `time.monotonic`."""
    timer: Callable[[Any, float, int], int]
    """As `Wheel.add`, for a wheel that has `Rounds.look_at_slot` called."""
    watch: Callable[[int, Interest], None]
    """Have `heard` and `parted` called for a new connection from now on."""
    change: Callable[[int, Interest], None]
    """Have them called for other news than before."""
    unwatch: Callable[[int], None]
    pause: Call
    """Let others have their turn, if the loop has had its time. For a round alone."""
    sleep: Callable[[float], object]
    """Sleep, in a greenlet that is not the loop's."""
    ask: Callable[[Call], None]
    """Have a function called that may wait for the store."""
    later: Callable[[float, Call], object]
    """Have a function called after some seconds, which may wait."""
    wake: Call
    """Have `Rounds.run` called soon."""
    close: Callable[[int], None]
    """Close a connection that is in no push."""
    doom: Callable[[int, Calls], None]
    """Close a connection when this round is over, and then finish it with these functions."""
    finish: Callable[[Calls], None]
    """Have the app's own functions called, which may wait."""
    give_back: Callable[[int], bool]
    """Let a greenlet go on with a connection. Return False if none is free."""
    warn: Callable[..., None]
    """Log a line, as `Logger.warning` does."""
    fault: Callable[[str], None]
    """Log the exception that is being handled, as `Logger.exception` does."""
