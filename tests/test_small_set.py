"""A collection that mostly has one member, compared with a set."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from sse.small_set import SmallSet, added, removed


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5))))
def test_it_has_what_a_set_would_have(changes: list[tuple[bool, int]]) -> None:
    some: SmallSet[int] = ()
    members: set[int] = set()
    for adds, one in changes:
        some = added(some, one) if adds else removed(some, one)
        (members.add if adds else members.discard)(one)
        assert sorted(some) == sorted(members)
        assert (len(some), bool(some)) == (len(members), bool(members))
        assert all((number in some) == (number in members) for number in range(6))


def test_it_is_small_until_there_are_two() -> None:
    one = added((), "a")
    assert sys.getsizeof(one) < 60
    assert sys.getsizeof(removed(added(added((), "a"), "b"), "c")) > 150
    assert removed(removed(added(one, "b"), "a"), "b") == ()
