"""Collections that mostly have one member. A set or dict of one takes over 200 bytes, a tuple of one 48."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

T = TypeVar("T")

SmallSet: TypeAlias = tuple[T, ...] | dict[T, None]
"""Members without order or repetition. `()` is one without members; only `added` and `removed` change one."""


def added(some: SmallSet[T], one: T) -> SmallSet[T]:
    """Return `some` with `one` in it. A dict is changed in its place, so `some` is not to be used any more."""
    if isinstance(some, dict):
        some[one] = None
        return some
    return some if one in some else (one,) if not some else dict.fromkeys((*some, one))


def removed(some: SmallSet[T], one: T) -> SmallSet[T]:
    """Return `some` without `one`, which need not be in it. As for `added`, `some` is not to be used any more."""
    if isinstance(some, dict):
        some.pop(one, None)
        return some or ()
    return () if one in some else some
