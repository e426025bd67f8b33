"""The benchmark's tables and goals: what counts, and what is left out."""

from __future__ import annotations

from typing import Any

import pytest

from bench.report import Outcome, goals, tables

Rounds = dict[str, dict[str, list[dict[str, Any]]]]


def outcome(results: Rounds) -> Outcome:
    return Outcome(results, {}, {name: name.title() for name in results}, (100, 1_000, 10_000))


def round_of(value: float, *, valid: bool = True, **more: float) -> dict[str, Any]:
    return {"value": value, "valid": valid, **more}


def goal(results: Rounds, what: str) -> tuple[float | None, bool]:
    [found] = [goal for goal in goals(outcome(results)) if goal.what == what]
    return found.value, found.met


@pytest.mark.parametrize(("polls", "met"), [(29, False), (30, True), (31, True)])
def test_a_goal_is_a_ratio_of_medians_in_the_same_run(polls: float, met: bool) -> None:
    results = {
        "throughline": {"polls": [round_of(polls), round_of(1), round_of(1000)]},
        "nchan": {"polls": [round_of(100), round_of(100), round_of(5)]},
    }
    assert goal(results, "polls on kept connections: times nchan") == (polls / 100, met)


@pytest.mark.parametrize(("seconds", "met"), [(3, True), (3.1, False)])
def test_a_reconnect_storm_may_take_three_times_as_long(seconds: float, met: bool) -> None:
    results = {"throughline": {"storm-own": [round_of(seconds)]}, "nchan": {"storm-own": [round_of(1)]}}
    what = "reconnect storm on their own, with a missed event: time, to nchan's"
    assert goal(results, what) == (seconds, met)


def test_a_round_that_does_not_count_is_no_part_of_a_goal_or_a_table() -> None:
    lost = round_of(1, valid=False)
    results = {"throughline": {"polls": [lost, round_of(30)]}, "nchan": {"polls": [round_of(100), lost]}}
    assert goal(results, "polls on kept connections: times nchan") == (0.3, True)
    results["nchan"]["polls"] = [lost]
    assert goal(results, "polls on kept connections: times nchan") == (None, False)
    [row] = [line for line in tables(outcome(results)).splitlines() if line.startswith("| Nchan ")]
    assert row.split("|")[3].strip() == "✗"


def test_a_goal_in_milliseconds_is_about_the_slowest_in_a_hundred() -> None:
    probe = round_of(2, p50=2, p99=11)
    assert goal({"throughline": {"greedy-health-32": [probe]}}, "p99 of /healthz beside 32 greedy publishers, ms") == (
        11,
        False,
    )


def test_only_tables_and_goals_with_a_figure_are_shown() -> None:
    text = tables(outcome({"throughline": {"pages": [round_of(2_000)]}}))
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Requests a second"]
    assert "| Throughline | " in text
    assert "not run" not in text
    assert "Not measured" not in text


def test_a_whole_run_names_the_goals_that_it_did_not_measure() -> None:
    rates = {f"fanout-{count}": [round_of(1)] for count in (100, 1_000, 10_000)}
    text = tables(outcome({"throughline": rates, "nchan": rates}))
    assert "Not measured: new streams: times Mercure" in text
