"""A TCP proxy before Redis that loses replies."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class LosingProxy:
    """Forwards both ways; but a command that contains `marker` is answered to nobody, `losses` times.

    Redis has done the command by then, and its client sees the connection end.
    """

    def __init__(self, port: int) -> None:
        self.marker = b""
        self.losses = self.lost = 0
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="proxy", daemon=True)]

    def lose(self, marker: bytes, losses: int) -> None:
        self.marker, self.losses, self.lost = marker, losses, 0

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [self._listener, *self._sockets]:
            _end(sock)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._upstream))
                self._sockets |= {near, far}
                doomed = threading.Event()
                for pump in (self._up, self._down):
                    thread = threading.Thread(target=pump, args=(near, far, doomed), name="proxy", daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _up(self, near: socket.socket, far: socket.socket, doomed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                if self.losses and self.marker in data:
                    self.losses -= 1
                    doomed.set()
                far.sendall(data)
        _end(far)

    def _down(self, near: socket.socket, far: socket.socket, doomed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                if doomed.is_set():
                    self.lost += 1
                    break
                near.sendall(data)
        _end(near)
        _end(far)


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
