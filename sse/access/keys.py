"""Publishing keys, and the channels that each of them may publish on.

Keys come from SSE_PUBLISH_KEYS, and from the file that SSE_PUBLISH_KEYS_FILE names. Only their hashes are kept.
"""

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
    """A publishing key: its name, empty for a key of SSE_PUBLISH_KEYS, its SHA-256 hash, and its channel patterns."""

    name: str
    digest: bytes
    patterns: tuple[str, ...]

    @property
    def scope(self) -> str:
        """The scope of the key's idempotency keys. A named key keeps its scope when it is rotated."""
        return f"key.{self.name}" if self.name else self.digest.hex()[:16]

    @property
    def shown(self) -> str:
        """The key's hash, as `flask sse config` shows it."""
        return f"sha256:{self.digest.hex()[:12]}"


class PublishKeys:
    """The keys of SSE_PUBLISH_KEYS, which are good for all channels, and the keys of the file, which may change.

    :raises ConfigError: if the file cannot be read, or has a faulty line.
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
        """True if there may be keys, so that publishing over HTTP exists."""
        return bool(self._fixed or self._file)

    def find(self, key: str) -> PublishKey | None:
        """Return the publishing key that this is; None if it is not one."""
        given = _digest(key)
        # Every key is compared, each in constant time, so that the time does not tell which key is similar.
        found = [known for known in self if hmac.compare_digest(given, known.digest)]
        return found[0] if found else None


def parse_keys(text: str) -> tuple[PublishKey, ...]:
    """Return the keys in the text of a file, which has a line `NAME KEY PATTERN…` for each.

    A name may have two keys, while one of them replaces the other.

    :raises ValueError: naming the number of the faulty line. It does not show the line, which may have a key in it.
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
