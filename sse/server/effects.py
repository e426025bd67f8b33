"""The functions through which rows act on the world. Because rows get them, they need no event loop and no sockets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from sse.connection_log import Transport

Call = Callable[[], object]
EndFunctions = Sequence[Call]
Interest = Literal["end", "input", "room", "input or room"]
"""The events of a connection that its row hears about.

- end: the peer's hang-up.
- input: bytes from the peer, and its hang-up.
- room: room for more bytes to the peer.
- input or room: all of these.
"""


class Effects(NamedTuple):
    """The functions through which rows act. None of them but `pause` and `sleep` waits."""

    write: Callable[[int, bytes | memoryview], int]
    """As `os.write`, with its errors."""
    read: Callable[[int, int], bytes]
    """As `os.read`, with its errors."""
    unread: Callable[[int], int]
    """Return how many bytes have come on a connection that nobody has read."""
    clock: Callable[[], float]
    """As `time.monotonic`."""
    timer: Callable[[Any, float, int], int]
    """As `Wheel.add`, for the wheel whose slots go to `Rounds.look_at_slot`."""
    register: Callable[[int, Interest], None]
    """Have `on_ready` and `on_hang_up` of its row called for the events of a new connection."""
    modify: Callable[[int, Interest], None]
    """Have them called for other events than before."""
    unregister: Callable[[int], None]
    """Have them called no more."""
    pause: Call
    """Let other greenlets run, if the loop has had its time. Only a round may call this."""
    sleep: Callable[[float], object]
    """Sleep for some seconds. The loop's own greenlet must not call this."""
    call_in_greenlet: Callable[[Call], None]
    """Have a function called soon in a greenlet, where it may wait for the store."""
    call_later: Callable[[float, Call], object]
    """Have a function called after some seconds in a greenlet, where it may wait."""
    wake: Call
    """Have `Rounds.run` called soon."""
    close: Callable[[int], None]
    """Close a connection at once, which is safe only while no push writes to it."""
    close_after_round: Callable[[int, EndFunctions], None]
    """Close a connection when this round is over, and then call these functions as `call_all` does."""
    call_all: Callable[[EndFunctions], None]
    """Have the app's own functions called, each in a greenlet, where it may wait."""
    give_back: Callable[[int], bool]
    """Give a connection to a greenlet. Return False if none is free."""
    wake_lane: Call
    """Have the fast lane serve the connections that are ready. The event loop may call this."""
    ended: Callable[[Transport, str, float, int, int, str], None]
    """Note the end of a stream or held poll for the log, as `connection_log.ended`. This must not wait."""
    warn: Callable[..., None]
    """Log a line, as `Logger.warning` does."""
    fault: Callable[[str], None]
    """Log the exception that is being handled, as `Logger.exception` does."""
