"""The state of a connection in the kernel. Nothing here waits, and nothing reads bytes away."""

from __future__ import annotations

import fcntl
import socket
import termios
from array import array
from select import POLLRDHUP
from typing import Any

from gevent.monkey import get_original

from sse.server.rows import MAX_READ_AHEAD

_poll = get_original("select", "poll")


def unread(fd: int) -> int:
    """Return how many bytes the peer has sent that nobody has read."""
    count = array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def has_input(connection: Any) -> bool:
    """Return whether gevent's socket has bytes to read, or its end."""
    try:
        connection._sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def has_hung_up(connection: socket.socket) -> bool:
    """Return whether the peer has closed the connection, or has shut it for sending.

    A peer that sent more than is ever read ahead counts as gone, because its end could not arrive behind so much.
    """
    poller = _poll()
    poller.register(connection.fileno(), POLLRDHUP)
    return bool(poller.poll(0)) or unread(connection.fileno()) > MAX_READ_AHEAD
