"""Spreading actions over a window of time, with a clock that moves only by sleeping or acting."""

from __future__ import annotations

import pytest

from sse.spread import spread


class Clock:
    """A clock that moves by `sleep`, which takes at least `least` seconds, and by `act`, which takes `cost` seconds."""

    def __init__(self, cost: float = 0.0, least: float = 0.0) -> None:
        self.now = 50.0
        self.acted: list[tuple[int, float]] = []
        self.slept: list[float] = []
        self._cost, self._least = cost, least

    def sleep(self, seconds: float) -> None:
        assert seconds >= 1e-6
        self.slept.append(seconds)
        self.now += max(seconds, self._least)

    def act(self, item: int) -> None:
        self.acted.append((item, round(self.now - 50, 6)))
        self.now += self._cost

    def spread(self, number: int, window: float) -> float:
        """Return how long it took."""
        spread(range(number), window, self.act, self.sleep, lambda: self.now)
        return round(self.now - 50, 6)


def test_items_come_at_equal_distances_and_it_ends_with_the_window() -> None:
    clock = Clock(cost=0.01)
    assert clock.spread(4, 2) == 2
    assert clock.acted == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)]


def test_one_item_comes_at_once_and_none_takes_no_time() -> None:
    clock = Clock()
    assert clock.spread(1, 3) == 3
    assert clock.acted == [(0, 0.0)]
    assert Clock().spread(0, 3) == 0


@pytest.mark.parametrize("number", [127, 128, 1000])
def test_without_a_window_others_have_their_turn_after_each_128(number: int) -> None:
    clock = Clock()
    assert clock.spread(number, 0) < 0.001
    assert [item for item, _ in clock.acted] == list(range(number))
    assert clock.slept == [1e-6] * (number // 128)


def test_a_sleep_that_takes_longer_than_it_says_does_not_lengthen_the_window() -> None:
    clock = Clock(least=0.01)
    assert clock.spread(10_000, 1) == pytest.approx(1, abs=0.011)
    assert len(clock.slept) <= 200
    middle = clock.acted[5000][1]
    assert middle == pytest.approx(0.5, abs=0.02)


def test_acts_that_take_longer_than_the_window_are_all_done() -> None:
    clock = Clock(cost=1)
    assert clock.spread(5, 2) == 5
    assert [item for item, _ in clock.acted] == list(range(5))
    assert clock.slept == []
