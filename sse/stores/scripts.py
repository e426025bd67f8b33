"""The Lua scripts of the Redis store, each in a file of its own. Redis runs a script as one step."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final

_SHARED: Final = "append.lua"


class Script:
    """The script in a file, and its SHA-1, by which Redis knows it once it has seen the text.

    The text has no comments, because it is sent with the first of several calls.

    :param stores: whether the script stores events, and so needs the functions of append.lua.
    :param publish: the file of a script that this one calls as its function `publish(KEYS, ARGV)`.
    """

    def __init__(self, name: str, *, stores: bool = False, publish: str = "") -> None:
        first, lines = _read(name)  # `#!lua` has to stay the first line
        shared = _read(_SHARED)[1] if stores else []
        if publish:
            shared += ["local function publish(KEYS, ARGV)", *_read(publish)[1], "end"]
        self.text = "\n".join([first, *shared, *lines])
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def _read(name: str) -> tuple[str, list[str]]:
    """Return the `#!lua` line of a script, empty if it has none, and its other lines without the comments."""
    lines = resources.files(__package__).joinpath(name).read_text().splitlines()
    first = lines[0] if lines[0].startswith("#!") else ""
    return first, [line for line in lines if line and not line.startswith(("--", "#!"))]
