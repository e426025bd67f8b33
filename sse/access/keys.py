"""Publishing keys: who has one, and for which channels. Only their hashes are held."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from sse.access.reload import Reloaded
from sse.config import KEY, Config, check_pattern
from sse.errors import InvalidEvent

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SETTING: Final = "SSE_PUBLISH_KEYS_FILE"


class PublishKey(NamedTuple):
    """A key for publishing. Idempotency keys are scoped by `scope`: that of a named one outlives its rotation."""

    name: str
    digest: bytes
    patterns: tuple[str, ...]

    @property
    def scope(self) -> str:
        return f"key.{self.name}" if self.name else self.digest.hex()[:16]

    @property
    def shown(self) -> str:
        """The key's hash, as `flask sse config` shows it."""
        return f"sha256:{self.digest.hex()[:12]}"


class PublishKeys:
    """The keys of SSE_PUBLISH_KEYS, for all channels, and those of the file, which may change at any time.

    :raises ConfigError: if the file cannot be read, or is at fault.
    """

    def __init__(self, config: Config) -> None:
        self._fixed = tuple(PublishKey("", _digest(key), ("*",)) for key in config.publish_keys)
        path = config.publish_keys_file
        self._file = Reloaded(_SETTING, path, parse_keys) if path else None

    def __iter__(self) -> Iterator[PublishKey]:
        yield from self._fixed
        yield from self._file.value if self._file else ()

    @property
    def configured(self) -> bool:
        """Whether publishing over HTTP exists at all."""
        return bool(self._fixed or self._file)

    def find(self, key: str) -> PublishKey | None:
        """The key that was given, if it is one."""
        given = _digest(key)
        # All are compared, each in constant time, so that time tells nothing of which one was near.
        found = [known for known in self if hmac.compare_digest(given, known.digest)]
        return found[0] if found else None


def parse_keys(text: str) -> tuple[PublishKey, ...]:
    """The keys of a file: a line each, `NAME KEY PATTERN…`; a name may have two keys while one replaces the other.

    :raises ValueError: naming the line at fault, and never what is in the place of a key.
    """
    keys: list[PublishKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 3 or not _NAME.fullmatch(words[0]) or not KEY.fullmatch(words[1]):
            raise ValueError(
                f"line {number} is not NAME KEY PATTERN…, the name 1 to 64 of A-Z a-z 0-9 _ . -, "
                "the key 22 or more visible ASCII characters without a comma"
            )
        try:
            patterns = tuple(map(check_pattern, words[2:]))
        except InvalidEvent:
            hint = 'after the key, give channels, "*", or patterns such as "news/*"'
            raise ValueError(f"line {number}: {hint}") from None
        key = PublishKey(words[0], _digest(words[1]), patterns)
        if any(key.digest == other.digest for other in keys):
            raise ValueError(f"line {number} has the key of a line before")
        keys.append(key)
    return tuple(keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
