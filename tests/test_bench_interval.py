"""The benchmark's confidence interval of a ratio, and its rules for having measured enough."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import cast

import pytest

from bench import costs
from bench.costs import Costs
from bench.interval import LEAST, Interval, interval_of, student
from bench.scenarios import Session, Size


def measured(ratio: float, noise: float, pairs: int, seed: int = 1) -> Interval:
    chance = random.Random(seed)
    costs = [(ratio * there * chance.lognormvariate(0, noise), there) for there in (3.0,) * pairs]
    found = interval_of(costs)
    assert found
    return found


def test_the_points_of_students_t_are_those_of_the_tables() -> None:
    assert [student(freedom) for freedom in (1, 4, 9, 30)] == [12.706, 2.776, 2.262, 2.042]
    assert [round(student(freedom), 3) for freedom in (40, 60, 120)] == [2.021, 2.0, 1.98]
    assert all(student(freedom) > student(freedom + 1) for freedom in range(1, 200))


@pytest.mark.parametrize("pairs", [5, 12, 40])
def test_the_interval_has_the_true_ratio_in_19_of_20_cases(pairs: int) -> None:
    found = [measured(1.1, 0.05, pairs, seed) for seed in range(2000)]
    assert 0.935 < sum(one.low <= 1.1 <= one.high for one in found) / len(found) < 0.965


def test_here_and_there_are_treated_alike() -> None:
    costs = [(1.0, 2.0), (3.0, 4.0), (5.0, 7.0)]
    one, other = interval_of(costs), interval_of([(there, here) for here, there in costs])
    assert one
    assert other
    assert (one.ratio, one.low, one.high) == pytest.approx((1 / other.ratio, 1 / other.high, 1 / other.low))
    assert one.low < one.ratio < one.high


def test_less_noise_and_more_pairs_make_it_narrower() -> None:
    assert measured(1, 0.01, 10).width < measured(1, 0.05, 10).width / 3
    assert measured(1, 0.05, 90).width < measured(1, 0.05, 10).width / 2


@pytest.mark.parametrize("pairs", [[], [(1.0, 1.0)]])
def test_fewer_than_two_pairs_have_no_interval(pairs: list[tuple[float, float]]) -> None:
    assert interval_of(pairs) is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.99, 1.01, "the same"),
        (0.96, 0.98, "a gain"),
        (1.005, 1.03, "more, but no loss"),
        (1.02, 1.03, "more, but no loss"),
        (1.021, 1.03, "a loss"),
        (1.021, 1.3, "a loss"),  # it is not narrow, but lies beyond the bound as a whole
        (0.9, 1.1, "not known yet"),
        (0.5, 0.9, "not known yet"),
        (1.01, 1.3, "not known yet"),
    ],
)
def test_the_verdict_follows_from_the_bounds(low: float, high: float, verdict: str) -> None:
    found = Interval((low * high) ** 0.5, low, high, LEAST)
    assert found.verdict == verdict
    assert found.is_loss == (verdict == "a loss")
    few = found._replace(pairs=LEAST - 1)
    assert few.verdict == "not known yet"
    assert not few.is_loss


def test_a_group_is_known_when_each_of_its_measures_is() -> None:
    costs = Costs()
    assert not costs.is_known("own")
    for number in range(LEAST):
        costs.add("own", "a delivery", (1.0 + number / 1000, 1.0))
        costs.add("own", "a stream", (1.0 + number / 10, 1.0))
        costs.add("alike", "another", (1.0 + number / 1000, 1.0))
        assert costs.is_known("alike") == (number == LEAST - 1)
    assert not costs.is_known("own")
    for _ in range(200):
        costs.add("own", "a stream", (1.2, 1.0))
    assert costs.is_known("own")
    assert costs.has_loss


def test_the_table_has_medians_the_ratio_and_what_follows() -> None:
    costs = Costs()
    for here, there in [(1.0, 2.0), (1.001, 2.0), (0.999, 2.0), (5.0, 10.0), (1.0, 2.0)]:
        costs.add("own", "a delivery", (here, there))
    assert costs.table().splitlines()[2:] == [
        "| a delivery |    1 |     2 | 0.500 | 0.500 to 0.500 |      5 | a gain |",
    ]
    assert not costs.has_loss


@pytest.mark.parametrize(("answers", "cost"), [([9, 0, 0, 5], 0.2), ([9, 0, 0, 0, 0, 0, 0, 0, 0, 0], None)])
def test_a_server_that_had_no_core_in_all_its_turns_has_some_more(
    answers: list[int], cost: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn takes a second of CPU. The first one does not count."""
    here, there = (cast("Session", SimpleNamespace(size=Size(turns=2), target=object())) for _ in range(2))
    left = {id(here): list(answers), id(there): [2] * len(answers)}
    clock = itertools.count(0.0)
    monkeypatch.setattr(costs, "cpu_seconds", lambda _: next(clock))
    couple = costs.Couple(here, there, swapped=False, wanted=lambda _: True)
    assert couple.by_turns(lambda session: left[id(session)].pop(0)) == (cost and (cost, 0.5))
    assert not left[id(here)]
    assert not left[id(there)]
