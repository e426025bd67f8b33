"""The state of a connection, as the kernel knows it; nothing here waits or takes bytes away."""

from __future__ import annotations

import fcntl
import socket
import termios
from array import array
from select import POLLRDHUP
from typing import Any

from gevent.monkey import get_original

from sse.server.rows import EARLY

_poll = get_original("select", "poll")


def unread(fd: int) -> int:
    """Return how many bytes the peer has sent that nobody has read."""
    count = array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def has_input(connection: Any) -> bool:
    """Return whether gevent's socket has something to read, be it the end."""
    try:
        connection._sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def has_left(connection: socket.socket) -> bool:
    """Return whether the peer has closed the connection, or has shut it for sending.

    A peer that sent more than is ever read ahead counts as gone: its end could not arrive behind all that.
    """
    poller = _poll()
    poller.register(connection.fileno(), POLLRDHUP)
    return bool(poller.poll(0)) or unread(connection.fileno()) > EARLY
