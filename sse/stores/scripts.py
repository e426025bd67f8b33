"""The Lua scripts of the Redis store, each in a file of its own. Redis runs a script as one step."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final

_SHARED: Final = "append.lua"


class Script:
    """The script in a file, and its SHA-1, by which Redis knows it once it has seen the text.

    :param stores: whether the script stores events, and so needs the functions of append.lua.
    """

    def __init__(self, name: str, *, stores: bool = False) -> None:
        first, _, rest = _text(name).partition("\n")  # `#!lua` has to stay the first line
        self.text = f"{first}\n{_text(_SHARED) if stores else ''}{rest}"
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text()
