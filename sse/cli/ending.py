"""The end of a command that goes on until somebody stops it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Self


class Ending:
    """Makes Ctrl-C and SIGTERM a KeyboardInterrupt. A signal that comes while `held` is raised after that.

    A signal that is ignored stays ignored, because a shell has its background commands ignore Ctrl-C (POSIX, XCU 2.11).
    """

    def __init__(self) -> None:
        self._held = self._asked = False

    def __enter__(self) -> Self:
        heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        self._before = [(number, signal.signal(number, self._end)) for number in heeded]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _end(self, *_: object) -> None:
        if not self._held or self._asked:  # asked twice: perhaps nobody reads what is being written
            raise KeyboardInterrupt
        self._asked = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep a signal back until the block is done. A second signal is not kept back."""
        self._held = True
        yield
        self._held = False
        if self._asked:
            raise KeyboardInterrupt
