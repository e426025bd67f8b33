"""The signals that stop a command which otherwise runs for ever."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Self


class StopSignals:
    """Raises KeyboardInterrupt for Ctrl-C and SIGTERM. In a block `with signals.held()`, it is raised after the block.

    A signal that is ignored stays ignored, because shells have background commands ignore Ctrl-C (POSIX, XCU 2.11).
    """

    def __init__(self) -> None:
        self._is_held = self._has_come = False

    def __enter__(self) -> Self:
        not_ignored = [
            number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN
        ]
        self._before = [(number, signal.signal(number, self._handle)) for number in not_ignored]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        # At a second signal the command ends at once: it may be blocked in a write that nobody reads.
        if not self._is_held or self._has_come:
            raise KeyboardInterrupt
        self._has_come = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the first signal back until the block is done. A second signal is raised at once."""
        self._is_held = True
        yield
        self._is_held = False
        if self._has_come:
            raise KeyboardInterrupt
