"""What a file says, read again when it changes: keys are rotated without a restart."""

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
    """The value that `parse` gives for a file's text; it raises ValueError, which must not show a secret.

    A change is seen within a second. A file at fault is told in the log, and what was read before stays in force.

    :raises ConfigError: at the first reading, if the file cannot be read or is at fault.
    """

    def __init__(
        self, setting: str, path: str, parse: Callable[[str], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = Path(path)
        self._parse = parse
        self._clock = clock
        self._lock = threading.Lock()  # held while nothing waits, so one from before a patch or a fork will do
        self._next_look = clock() + _LOOK_EVERY
        self._begun = self._taken = 0  # looks that have begun, and the newest one that has taken a change over
        self.generation = 0
        """How often a change has been taken over."""
        try:
            self._seen = self._state()
            self._value = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{setting}: {_told(error)}", "mend the file, or the setting") from None
        self._setting = setting

    @property
    def value(self) -> T:
        now = self._clock()
        if now >= self._next_look:
            with self._lock:
                is_due = now >= self._next_look  # for one of those that come at the same time
                if is_due:
                    self._next_look = now + _LOOK_EVERY
                    self._begun += 1
                number = self._begun
            if is_due:
                self._look(number)
        return self._value

    def _look(self, number: int) -> None:
        # Without the lock: a disk may be slow, and a handler of the log may switch greenlets.
        try:
            state = self._state()
            if state == self._seen:
                return
            value = self._read()
        except (OSError, ValueError) as error:
            warn("%s: %s; what was read before stays in force", self._setting, _told(error))
            return
        with self._lock:
            if number > self._taken:  # else a later look was faster
                self._taken = number
                self._seen, self._value = state, value
                self.generation += 1

    def _state(self) -> tuple[int, int, int]:
        state = os.stat(self._path)
        return state.st_mtime_ns, state.st_size, state.st_ino

    def _read(self) -> T:
        return self._parse(self._path.read_text(encoding="utf-8"))


def _told(error: OSError | ValueError) -> str:
    # A decoding error quotes what it met, which may be a key.
    if isinstance(error, UnicodeDecodeError):
        return "the file is not UTF-8"
    if isinstance(error, OSError):
        # What is no path may be what was to stand in the file.
        return f"{error.filename if str(error.filename).startswith('/') else 'the file'}: {error.strerror}"
    return str(error)
