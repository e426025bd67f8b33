"""A ring, compared with a plain list of all that was ever appended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.event import Entry, Event, Position
from sse.ring import Ring


def entry(offset: int, size: int = 1) -> Entry:
    return Entry(Position(offset, offset + 7), Event("x" * size), b"y" * size)


def filled(count: int, max_events: int, max_bytes: int | None = None) -> Ring:
    ring = Ring(Position(0, 7), max_events, max_bytes)
    for offset in range(1, count + 1):
        ring.append(entry(offset))
    return ring


@given(st.integers(1, 9), st.integers(0, 200), st.integers(0, 12))
def test_it_keeps_the_newest_and_continues_from_every_position_that_it_can(size: int, count: int, limit: int) -> None:
    ring = filled(count, size)
    base = max(count - size, 0)
    assert ring.base == Position(base, base + 7)
    assert ring.newest == Position(count, count + 7)
    for offset in range(count + 3):
        position = Position(offset, offset + 7)
        wanted = None if not base <= offset <= count else [entry(later) for later in range(offset + 1, count + 1)]
        assert ring.after(position) == wanted
        assert ring.after(position, limit) == (wanted if wanted is None else wanted[:limit])
        assert (position in ring) is (wanted is not None)
        assert Position(offset, 999) not in ring
    assert ring.before(limit) == Position(max(count - limit, base), max(count - limit, base) + 7)


def test_what_does_not_follow_is_not_taken() -> None:
    ring = filled(3, 5)
    for offset in (3, 5, 1, 0):
        with pytest.raises(ValueError, match="does not follow 3-10"):
            ring.append(entry(offset))
    assert ring.newest.offset == 3


def test_it_is_bounded_in_bytes_too() -> None:
    ring = filled(0, 1000, 10_000)
    for offset in range(1, 500):
        ring.append(entry(offset, size=offset % 50))
        assert ring.bytes <= 10_000
    held = ring.after(ring.base)
    assert held
    assert ring.bytes == sum(400 + 3 * len(item.body) for item in held)


def test_an_event_over_the_bound_leaves_it_empty_at_its_position() -> None:
    ring = filled(3, 1000, 10_000)
    ring.append(entry(4, size=20_000))
    assert (ring.base, ring.newest, ring.bytes) == (Position(4, 11), Position(4, 11), 0)
    assert ring.after(ring.newest) == []
    ring.append(entry(5))
    assert ring.newest.offset == 5


def test_it_shrinks_from_its_oldest() -> None:
    ring = filled(10, 1000)
    ring.shrink(ring.bytes // 2)
    assert (ring.base.offset, ring.newest.offset) == (5, 10)
    ring.shrink(0)
    assert (ring.base, ring.bytes) == (ring.newest, 0)
    ring.shrink(0)


def test_what_is_dropped_is_let_go() -> None:
    assert len(filled(10_000, 10)._entries) < 150


def test_rings_that_begin_empty_have_nothing_in_common() -> None:
    one, other = Ring(Position(0, 1)), Ring(Position(0, 1))
    one.append(Entry(Position(1, 2), Event("x")))
    assert one.newest == Position(1, 2)
    assert other.newest == Position(0, 1)
    assert other.after(Position(0, 1)) == Ring(Position(0, 1)).after(Position(0, 1)) == []
