"""Rules for channels in Flask's route syntax, without the leading slash, such as `prices/<symbol>`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import NotFound as HTTPNotFound
from werkzeug.routing import BaseConverter, Map, Rule

from sse.errors import InvalidEvent
from sse.event import check_channel
from sse.log import warn

__all__ = ("ChannelRules", "Found", "HTTPNotFound", "variables_of")

_VARIABLE: Final = re.compile(r"<(?:(?P<converter>[a-zA-Z_]\w*)(?P<arguments>\(.*?\))?:)?(?P<name>[a-zA-Z_]\w*)>")
_REMEMBERED: Final = 4096  # channels whose rule is remembered, because each match costs some microseconds


class Found(NamedTuple):
    """The value of the rule that matches a channel, and the values of the rule's variables in the channel's name."""

    value: object
    arguments: Mapping[str, object]


class ChannelRules:
    """Values, each for the channels that its rule matches. If several rules match, the most specific one wins.

    The syntax, the converters and the order of rules are those of Flask's routes.

    >>> rules = ChannelRules()
    >>> rules.add("prices/<symbol>", "any")
    >>> rules.add("prices/<int:number>", "numbered")
    >>> rules.match("prices/acme")
    Found(value='any', arguments={'symbol': 'acme'})
    >>> rules.match("prices/7")
    Found(value='numbered', arguments={'number': 7})
    >>> rules.match("scores") is None
    True
    """

    def __init__(self) -> None:
        # No redirect can result, since the name of a channel has no empty segment and does not end with a slash.
        self._map = Map(strict_slashes=False, merge_slashes=False, redirect_defaults=False)
        self._adapter = self._map.bind("")
        self._rules: dict[str, str] = {}  # each rule by what it matches
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._match)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def know(self, converters: Mapping[str, type[BaseConverter]]) -> None:
        """Let rules that are added from now on use these converters, as an app has them in `url_map.converters`."""
        self._map.converters.update(converters)

    def add(self, rule: str, value: object) -> None:
        """Add a rule and its value, which has to be hashable.

        :raises ValueError: if the rule is malformed, could match no channel, or equals another one but for the names
            of its variables.
        """
        variables_of(rule)  # refuses what is no string
        try:
            check_channel(_VARIABLE.sub("x", rule))
        except InvalidEvent as error:
            raise ValueError(
                f"the rule {rule!r} is for no valid channel, which begins without a slash: {error.message}"
            ) from error
        shape = _VARIABLE.sub(_without_name, rule)
        if other := self._rules.get(shape):
            raise ValueError(f"the rule {rule!r} matches the same channels as {other!r}: give one of them only")
        try:
            self._map.add(Rule(f"/{rule}", endpoint=value))
        except (LookupError, SyntaxError, ValueError) as error:
            hint = "own converters have to be in app.url_map.converters before SSE(app)"
            raise ValueError(f"the rule {rule!r} is malformed: {error} ({hint})") from error
        self._rules[shape] = rule
        self._remembered.cache_clear()

    def match(self, channel: str) -> Found | None:
        """Return the value of the most specific rule that matches a channel; None if no rule does.

        If a converter of the app raises, which it should not, the log says so, and no rule matches.
        """
        try:
            return self._remembered(channel)
        except Exception:  # noqa: BLE001 - a subscriber of this channel must not fail by it
            warn("a converter of the app has failed for channel %s, which so has no rule", channel, exc_info=True)
            return None

    def _match(self, channel: str) -> Found | None:
        try:
            value, arguments = self._adapter.match(f"/{channel}", method="GET")
        except HTTPException:
            return None
        return Found(value, arguments)


def variables_of(rule: str) -> list[str]:
    """Return the names of a rule's variables.

    :raises ValueError: if the rule is no string.
    """
    if not isinstance(rule, str):
        raise ValueError(f"the rule is {rule!r}: give a string such as 'prices/<symbol>'")
    return [variable["name"] for variable in _VARIABLE.finditer(rule)]


def _without_name(variable: re.Match[str]) -> str:
    converter = variable["converter"]
    return f"<{'string' if converter in (None, 'default') else converter}{variable['arguments'] or ''}>"
