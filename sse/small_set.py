"""Sets that mostly have one member, in little memory.

A set or dict of one member takes over 200 bytes, a tuple of one 48. So a set is a tuple until it has a second
member, and then a dict until it is empty.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

T = TypeVar("T")

SmallSet: TypeAlias = tuple[T, ...] | dict[T, None]
"""A set of members. `()` is the empty one. Only `added` and `removed` change a set."""


def added(members: SmallSet[T], member: T) -> SmallSet[T]:
    """Return the set with a member added. A dict is changed in place, so the old set must not be used any more."""
    if isinstance(members, dict):
        members[member] = None
        return members
    return members if member in members else (member,) if not members else dict.fromkeys((*members, member))


def removed(members: SmallSet[T], member: T) -> SmallSet[T]:
    """Return the set without a member, which need not be in it. Here, too, the old set must not be used any more."""
    if isinstance(members, dict):
        members.pop(member, None)
        return members or ()
    return () if member in members else members
