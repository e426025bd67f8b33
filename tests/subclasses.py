"""Subclasses of str, int and bytes, as apps have them. Some of their methods lie about the value."""

from __future__ import annotations

from enum import Enum, IntEnum, StrEnum
from typing import Any

from markupsafe import Markup
from werkzeug.local import LocalProxy


class LyingStr(str):
    """Holds its text, but every method that can be overridden returns another text."""

    def _lie(self, *_: Any, **__: Any) -> Any:
        return "a lie"

    __str__ = __repr__ = __format__ = __add__ = __radd__ = __getitem__ = __mod__ = replace = _lie  # type: ignore[assignment]
    removesuffix = split = strip = lower = join = format = casefold = partition = _lie  # type: ignore[assignment]

    def encode(self, *_: Any, **__: Any) -> bytes:
        return b"a lie"

    def __eq__(self, other: object) -> bool:
        return other == "a lie"

    def __hash__(self) -> int:
        return hash("a lie")

    def __len__(self) -> int:
        return 5

    def __contains__(self, _: object) -> bool:
        return False

    def startswith(self, *_: Any) -> bool:
        return True

    endswith = startswith


class LyingBytes(bytes):
    def __bytes__(self) -> bytes:
        return b"a lie"

    def decode(self, *_: Any, **__: Any) -> str:
        return "a lie"


class LyingBytearray(bytearray):
    def __bytes__(self) -> bytes:
        return b"a lie"


class LyingInt(int):
    def __int__(self) -> int:
        return 7

    def __add__(self, _: object) -> int:
        return 7

    def __str__(self) -> str:
        return "7"

    __index__ = __int__
    __radd__ = __add__
    __repr__ = __str__


def strings(text: str) -> list[Any]:
    """Return this text in several types that are, or look like, subclasses of str."""
    return [
        Enum("Mixed", {"MEMBER": text}, type=str).MEMBER,  # type: ignore[attr-defined]
        StrEnum("Named", {"MEMBER": text}).MEMBER,  # type: ignore[attr-defined]
        Markup(text),
        LyingStr(text),
        LocalProxy(lambda: text),
    ]


def numbers(number: int) -> list[Any]:
    """Return this number in several types that are, or look like, subclasses of numbers."""
    return [
        Enum("Mixed", {"MEMBER": number}, type=int).MEMBER,  # type: ignore[attr-defined]
        IntEnum("Named", {"MEMBER": number}).MEMBER,  # type: ignore[attr-defined]
        LyingInt(number),
    ]


KINDS = ("mixed-in", "named", "markup", "lying", "proxy")
"""The names of what `strings` makes, in order."""
