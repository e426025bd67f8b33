"""Clients that vanish: `unshare --net python -m tests.live.vanishing_clients DIRECTORY [gunicorn's arguments]`.

The program runs in a network of its own and takes its loopback down. It reaches the server by a Unix socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import time
from pathlib import Path

from tests import client
from tests.client import Stream
from tests.live.load import APP, ENV, KEY
from tests.servers import Gunicorn, wait_until

GHOSTS = 5
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def loopback(up: bool) -> None:
    with socket.socket() as sock:
        name, flags = struct.unpack("16sH14x", fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0)))
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", name, flags | IFF_UP if up else flags & ~IFF_UP))


def main(directory: Path, *arguments: str) -> None:
    loopback(True)
    at = f"unix:{directory}/sock"
    server = Gunicorn(directory, APP, ENV)
    server.arguments = (*arguments, "-b", server.bind, "-b", at)
    with server, contextlib.ExitStack() as stack:
        ghosts = [stack.enter_context(Stream(server.url, {"channel": "a"})) for _ in range(GHOSTS)]
        living = stack.enter_context(Stream(at, {"channel": "a"}))
        for stream in (*ghosts, living):
            stream.until("sse.heartbeat")
        before = server.fds()
        loopback(False)
        vanished = time.monotonic()
        assert client.publish(at, "a", "is anybody there?", key=KEY).status == 201
        assert living.take(1)[0].data == "is anybody there?"
        wait_until(lambda: server.fds() == before, what="the publisher's connection is closed")
        wait_until(lambda: server.fds() == before - GHOSTS, 40)
        print(f"gone after {time.monotonic() - vanished:.0f} s")
        assert client.publish(at, "a", "who is left?", key=KEY).status == 201
        assert living.take(1)[0].data == "who is left?"
        assert "Traceback" not in server.logs()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
