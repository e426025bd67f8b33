"""The rule for the end of a connection: each line of its table, in each state."""

from __future__ import annotations

import re
from itertools import product
from math import inf
from typing import Any

import pytest

from sse.transports import life
from sse.transports.life import STALLED_AFTER, Next, Pending, decide

NOW = 1000.0
LATER = NOW + 500
PENDING: tuple[Pending, ...] = ("nothing", "events", "answer", "unsent")
STALLED: dict[str, Any] = {"last_progress": NOW - STALLED_AFTER}
OVER: dict[str, Any] = {"ends_in": 0.0}
REVOKED: dict[str, Any] = {"ends_in": -inf}
DRAINED: dict[str, Any] = {"draining": True}
DUE: dict[str, Any] = {"notice_in": -0.5}


def close(reason: life.CloseReason) -> Next:
    return Next(NOW, reason)


def cut(reason: life.CloseReason) -> Next:
    return Next(NOW, reason, is_cut=True)


CASES: list[tuple[str, float, dict[str, Any], tuple[Next, Next, Next, Next]]] = [
    ("it takes nothing for 20 s", LATER, STALLED, (*[close("slow")] * 3, cut("slow"))),
    ("its permit is over", LATER, OVER, (*[close("expired")] * 3, cut("expired"))),
    ("its permit is revoked", LATER, REVOKED, (*[close("expired")] * 3, cut("expired"))),
    ("it is drained", LATER, DRAINED, (*[close("drain")] * 3, cut("drain"))),
    ("its deadline has come", NOW, {}, (*[close("lifetime")] * 2, *[Next(NOW + 1)] * 2)),
    ("its permit's notice is due", LATER, DUE, (Next(LATER, tells_notice=True), *[Next(NOW + 0.1)] * 3)),
    ("none of these", LATER, {}, (*[Next(LATER)] * 4,)),
]


@pytest.mark.parametrize(("deadline", "state", "wanted"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_state_has_what_the_table_says(
    deadline: float, state: dict[str, Any], wanted: tuple[Next, Next, Next, Next]
) -> None:
    assert tuple(decide(NOW, deadline, pending=pending, **state) for pending in PENDING) == wanted


def test_the_table_names_the_cases_of_this_test() -> None:
    assert life.__doc__
    lines = re.findall(r"^\| ([a-z][^|]*?) +\|", life.__doc__, re.MULTILINE)[1:]
    assert lines == [case[0] for case in CASES if case[0] != "its permit is revoked"]


@pytest.mark.parametrize("pending", PENDING)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_of_two_states_the_first_of_the_table_counts(number: int, pending: Pending) -> None:
    """The lines below the first that applies do not matter."""
    _, deadline, state, wanted = CASES[number]
    first = wanted[PENDING.index(pending)]
    if not first.is_end:
        return
    for count in range(number + 1, len(CASES)):
        both = {**CASES[count][2], **state}
        outcome = decide(NOW, min(deadline, CASES[count][1]), pending=pending, **both)
        assert outcome._replace(tells_notice=False) == first


@pytest.mark.parametrize("pending", PENDING)
def test_one_that_has_to_wait_with_its_deadline_still_ends_by_the_lines_above(pending: Pending) -> None:
    for state, reason in ((STALLED, "slow"), (OVER, "expired"), (DRAINED, "drain")):
        wanted = Next(NOW, reason, is_cut=pending == "unsent")
        assert decide(NOW, NOW - 5, pending=pending, **state) == wanted


MOMENTS = {"deadline": 300.0, "ends_in": 200.0, "notice_in": 140.0, "last_progress": 15.0 - STALLED_AFTER}
"""Seconds from now to the first look for each of them; of `last_progress`, when that was."""


@pytest.mark.parametrize("has", list(product([False, True], repeat=4)))
def test_it_goes_on_until_the_first_of_its_moments(has: tuple[bool, ...]) -> None:
    given = {name: value for name, value in zip(MOMENTS, has, strict=True) if value}
    deadline = NOW + MOMENTS["deadline"] if "deadline" in given else inf
    state = {name: MOMENTS[name] for name in ("ends_in", "notice_in") if name in given}
    if "last_progress" in given:
        state["last_progress"] = NOW + MOMENTS["last_progress"]
    moments = [
        *([MOMENTS["deadline"]] if "deadline" in given else []),
        *[MOMENTS[name] for name in ("ends_in", "notice_in") if name in given],
        *([15.0] if "last_progress" in given else []),
    ]
    assert decide(NOW, deadline, **state) == Next(NOW + min(moments, default=inf))


def test_a_moment_too_early_it_goes_on() -> None:
    assert decide(NOW, NOW + 0.001, last_progress=NOW + 0.001 - STALLED_AFTER) == Next(pytest.approx(NOW + 0.001))
    assert decide(NOW, LATER, ends_in=0.001) == Next(NOW + 0.001)
    assert decide(NOW, LATER, notice_in=0.001) == Next(NOW + 0.001)
    assert decide(NOW, LATER, notice_in=0) == Next(LATER, tells_notice=True)


@pytest.mark.parametrize("pending", ["answer", "unsent"])
def test_a_deadline_that_waits_is_looked_at_again_before_its_second_is_over_if_something_else_may_end_it(
    pending: Pending,
) -> None:
    assert decide(NOW, NOW - 5, ends_in=0.25, pending=pending) == Next(NOW + 0.25)
    assert decide(NOW, NOW - 5, last_progress=NOW + 0.5 - STALLED_AFTER, pending=pending) == Next(NOW + 0.5)
    assert decide(NOW, NOW - 5, notice_in=-3, pending=pending) == Next(NOW + 0.1)


@pytest.mark.parametrize("pending", PENDING)
def test_a_notice_may_be_told_with_the_goodbye_of_a_drain_or_a_deadline_and_no_other(pending: Pending) -> None:
    for state, reason in ((STALLED, "slow"), (OVER, "expired"), (DRAINED, "drain"), ({}, "lifetime")):
        outcome = decide(NOW, NOW, pending=pending, **DUE, **state)
        assert outcome.tells_notice == (pending == "nothing" and reason in ("drain", "lifetime"))


def test_a_notice_that_is_told_is_not_what_it_waits_for_next() -> None:
    assert decide(NOW, LATER, ends_in=60, notice_in=-1) == Next(NOW + 60, tells_notice=True)
    assert decide(NOW, LATER, ends_in=59, notice_in=inf) == Next(NOW + 59)


def test_it_never_goes_on_into_the_past() -> None:
    """Otherwise its caller would look again at once, for ever."""
    moments = (-inf, -7.0, 0.0, 0.05, 7.0, inf)
    for deadline, ends, notice, stalled, pending in product(moments, moments, moments, (-7.0, -0.5, inf), PENDING):
        outcome = decide(
            NOW, NOW + deadline, ends_in=ends, notice_in=notice, last_progress=NOW + stalled, pending=pending
        )
        assert outcome.is_end or outcome.until > NOW
        assert outcome.is_end == (ends <= 0 or (deadline <= 0 and pending in ("nothing", "events")))
        assert outcome.tells_notice == (notice <= 0 and pending == "nothing" and not ends <= 0)
