"""A file that is read again when it changes, so that keys are rotated without a restart.

Nothing watches the file. A use of the value looks at the file's time, size and inode, once a second at most.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from sse.errors import ConfigError
from sse.log import warn

T = TypeVar("T")

_LOOK_EVERY: Final = 1.0


class Reloaded(Generic[T]):
    """Holds the value that `parse` makes of a file's text.

    A change of the file is seen at the first use that is more than a second after the last look. If the file cannot be
    read or parsed then, the log says so, and the value before stays in force.

    :param parse: raises ValueError for a faulty text. The error is logged, so it must not show a secret.
    :raises ConfigError: if the file cannot be read or parsed the first time.
    """

    def __init__(
        self, setting: str, path: str, parse: Callable[[str], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = Path(path)
        self._parse = parse
        self._clock = clock
        # Nothing waits while it is held, so a lock from before gevent's patch or a fork is safe.
        self._lock = threading.Lock()
        self._next_look = clock() + _LOOK_EVERY
        self._looks = 0  # number of looks at the file that have begun
        self._newest_used = 0  # number of the newest look whose value is in use
        self.generation = 0
        """The number of changes of the value so far."""
        try:
            self._seen = self._state()
            self._value = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{setting}: {_described(error)}", "correct the file, or the setting") from None
        self._setting = setting

    @property
    def value(self) -> T:
        now = self._clock()
        if now >= self._next_look:
            with self._lock:
                is_due = now >= self._next_look  # true for only one of the callers that come at the same time
                if is_due:
                    self._next_look = now + _LOOK_EVERY
                    self._looks += 1
                number = self._looks
            if is_due:
                self._look(number)
        return self._value

    def _look(self, number: int) -> None:
        # The lock is not held here, because a disk may be slow, and a log handler may switch greenlets.
        try:
            state = self._state()
            if state == self._seen:
                return
            value = self._read()
        except (OSError, ValueError) as error:
            warn("%s: %s; what was read before stays in force", self._setting, _described(error))
            return
        with self._lock:
            if number > self._newest_used:  # else a look that began later has ended before this one
                self._newest_used = number
                self._seen, self._value = state, value
                self.generation += 1

    def _state(self) -> tuple[int, int, int]:
        state = os.stat(self._path)
        return state.st_mtime_ns, state.st_size, state.st_ino

    def _read(self) -> T:
        return self._parse(self._path.read_text(encoding="utf-8"))


def _described(error: OSError | ValueError) -> str:
    # A decoding error quotes the bytes that it cannot decode, and these may be part of a key.
    if isinstance(error, UnicodeDecodeError):
        return "the file is not UTF-8"
    if isinstance(error, OSError):
        # A setting that is not a path may be a key that was meant for the file, so it is not shown.
        return f"{error.filename if str(error.filename).startswith('/') else 'the file'}: {error.strerror}"
    return str(error)
