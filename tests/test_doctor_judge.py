"""The doctor's judge: for each fault a measurement that has it, and a nearby one that has not."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from sse.doctor.findings import CODES, Finding
from sse.doctor.judge import BadMeasure, judge
from tests.measurements import GOOD, ORIGIN, Change, blocks, changed, stream


def found(change: Change) -> dict[str, str]:
    """Return the level of each code that the judge finds in a good measurement with a change."""
    return {finding.code: finding.level for finding in judge(changed(change))}


def streams(**each: Any) -> Change:
    return {"streams": each}


def cut(age: float | None, started_at: float = 0.0, **more: Any) -> Change:
    """Return a stream that was cut at an age; with None, that is still open."""
    return {"ended_at": age, "finished": False, "clean": False, "started_at": started_at, **more}


PAIRS = [0, 0] + [1, 0] * 4  # every second block waits for the next one
AT_THE_END = [5.0 - n for n in range(6)]
FAST_PAIRS = blocks([0.1 * (n % 2 == 0) for n in range(41)], every=0.1, size=2100)
FAST_BURSTS = blocks([0.1 * (9 - n % 10) for n in range(40)], every=0.1, size=2100)
# HAProxy without `option http-no-delay`, which hands over every 200 ms, on a machine that was busy for a moment.
HICCUP = blocks(
    [0.21, 0.11, 0.21, 0.12, 0, 0.21, 0.12, 0.02, 0.21, 0.11, 0.01, 0.24, 0.15, 0.22, 0.16, 0.02, 0.34, 0.22, 0.28,
     0.13, 0.02, 0.22, 0.12, 0.21, 0.09, 0.03, 0.22, 0.11, 0.01, 0.22, 0.58, 0.58, 0.54, 0.44, 0.16, 0.16, 0.16, 0.16,
     0.16, 0.08, 0], every=0.1, size=2130)  # fmt: skip
STALL = [0, 0, 1.5, 0.5, 0, 0]  # once, the network held two blocks back
NO_CORS = {"cors": {"access-control-allow-origin": None}}
OPEN = {"finished": None, "ended_at": None}

CASES = [
    ("few_streams", "fault", {"while_streaming": {"answered": False, "after": 8}}, {"while_streaming": {"after": 7.0}}),
    ("few_streams", "fault", {"echo": {"holds": "one"}}, {"echo": {"holds": "many"}}),
    ("few_streams", "warning", {"echo": {"holds": "threads"}}, {"echo": {"holds": None}}),
    ("cached", "fault", {"same_nonce": True}, {"same_nonce": None}),
    ("shared", "fault", {"shared": True}, {"shared": None}),
    # until the response ends; and a way that is slow for every block alike
    ("buffered", "fault", streams(small={"blocks": blocks(AT_THE_END)}), streams(small={"blocks": blocks([3.0] * 6)})),
    ("buffered", "fault", streams(small={"blocks": blocks(PAIRS)}), streams(small={"blocks": blocks(STALL)})),
    ("buffered", "fault", streams(fast={"blocks": FAST_BURSTS}), streams(fast={"blocks": FAST_PAIRS})),
    ("buffered", "fault", streams(fast={"blocks": FAST_BURSTS}), streams(fast={"blocks": HICCUP})),
    ("buffered", "fault", streams(small={"blocks": [], **OPEN}), streams(small={"blocks": None, **OPEN})),
    # the link is slow, or this machine stood still
    ("buffered", "fault", streams(small={"blocks": blocks(AT_THE_END)}),
     streams(small={"blocks": blocks([0.4 * n for n in range(6)])})),
    ("buffered", "fault", streams(small={"blocks": blocks(AT_THE_END)}),
     {"client_gap": 5.0, **streams(small={"blocks": blocks(AT_THE_END)})}),
    ("compressed", "warning", streams(fast={"headers": {"content-encoding": ["gzip"]}}),
     streams(fast={"headers": {"content-encoding": ["identity"]}})),
    ("compressed", "fault",
     streams(small={"headers": {"content-encoding": ["gzip"]}, "blocks": blocks(AT_THE_END)}), {}),
    ("content_length", "fault", streams(fast={"headers": {"content-length": ["90000"]}}),
     streams(fast={"status": 503, "headers": {"content-length": ["90"]}})),
    ("idle_cutoff", "fault", streams(silent=cut(5.0)), streams(silent=OPEN)),
    ("idle_cutoff", "fault", streams(silent=cut(15.2)), streams(silent=cut(89.8))),
    ("idle_cutoff", "warning", streams(silent=cut(29.0)), streams(silent={**cut(29.0), "refused": "drain"})),
    ("idle_cutoff", "note", streams(silent=cut(60.0)), streams(silent=cut(60.0), active=cut(60.4, 3))),
    ("request_timeout", "fault", streams(active=cut(60.0, 3)), streams(active=OPEN)),
    ("request_timeout", "note", {"echo": {"settings": {"stream_lifetime": 40}}, **streams(active=cut(60.0, 3))},
     {"echo": {"settings": {"stream_lifetime": 40}}}),
    ("lifetime", "warning", {"echo_headers": {"server": ["Google Frontend"]}},
     {"echo_headers": {"server": ["Google Frontend"]}, "echo": {"settings": {"stream_lifetime": 290}}}),
    ("poll_cut", "fault", {"poll": {"status": 504, "answered_at": 5.0}}, {"poll": {"answered_at": 27.0}}),
    ("poll_cut", "fault", {"poll": {"status": None, "answered_at": 5.0}},
     {"poll": {"status": 429, "refused": "doctor_busy"}}),
    ("poll_cut", "fault", {"poll": {"status": None, "answered_at": None}},
     {"poll": {"status": None}, "while_streaming": {"answered": False}}),
    ("frozen", "fault", {"ticks": {"longest_gap": 7.9}}, {"ticks": {"longest_gap": 1.5}}),
    ("frozen", "fault", {"ticks": {"lost": 7.0}}, {"ticks": {"lost": 7.0, "same_worker": False}}),
    ("stalled", "warning", {"ticks": {"longest_gap": 2.5}}, {"ticks": {"longest_gap": 1.9}}),
    ("stalled", "fault", streams(active={"blocks": [*blocks([0, 0]), [2, 1e9 + 9, 9, 80]]}),
     streams(active={"blocks": [*blocks([0, 0]), [2, 1e9 + 3, 9, 80]]})),
    ("last_event_id_stripped", "fault", {"echo": {"headers": {"last-event-id": None}}}, {"sent": None}),
    ("last_event_id_stripped", "fault", {"stream_headers": {"last-event-id": "doctor"}}, {"stream_headers": None}),
    ("status_rewritten", "fault", {"statuses": {"410": 200}}, {"statuses": {"410": None}}),
    ("status_rewritten", "warning", {"retry_after": {"429": False}}, {"retry_after": {"404": False}}),
    ("status_rewritten", "warning", {"replaced": ["503"]}, {"replaced": []}),
    ("leaving_unnoticed", "warning", {"left": {"noticed": False}}, {"left": None}),
    ("clock_skew", "warning", {"skew": -40.0}, {"skew": 4.0}),
    ("clock_skew", "warning", {"skew": 12.0, "rtt": 2.0}, {"skew": 12.0, "rtt": 20.0}),
    ("clock_skew", "warning", {"skew": 12.0}, {"skew": 12.0, "same_nonce": True}),
    ("http1", "warning", {"http": "1.1"}, {"http": None}),
    ("http1", "note", {"http": "1.1", "tls": False}, {"http": "2", "tls": False}),
    ("forwarded_untrusted", "note", {"echo": {"headers": {"x-forwarded-for": "public"}}},
     {"echo": {"headers": {"x-forwarded-for": "public"}, "settings": {"proxies": 1}}}),
    ("cors_not_allowed", "fault", {"echo": NO_CORS, "cors": {"allow_origin": []}}, {"echo": NO_CORS, "origin": None}),
    ("cors_not_allowed", "fault", {"echo": NO_CORS, "cors": {"allow_origin": ["*"], "preflight_allow_headers": []}},
     {"echo": NO_CORS, "cors": {"allow_origin": ["*"], "preflight_allow_headers": ["*"]}}),
    ("cors_missing", "fault", {"cors": {"allow_origin": []}}, {"cors": None}),
    ("cors_missing", "fault", {"cors": {"allow_origin": ["*"]}},
     {"cors": {"allow_origin": ["*"]}, "echo": {"cors": {"access-control-allow-origin": "*"}}}),
    ("cors_missing", "fault", {"cors": {"allow_origin": ["https://other.example"]}}, {}),
    ("cors_missing", "fault", {"cors": {"preflight_status": 405}}, {"cors": {"preflight_status": 204}}),
    ("cors_missing", "fault", {"cors": {"preflight_allow_headers": ["authorization"]}},
     {"cors": {"preflight_allow_headers": ["*"]}}),
    ("cors_missing", "fault", {"cors": {"blocked": True}}, {"cors": {"blocked": False}}),
    ("cors_doubled", "fault", {"cors": {"allow_origin": [ORIGIN, "*"]}}, {"cors": {"allow_origin": [ORIGIN]}}),
    ("cors_doubled", "fault", {"cors": {"allow_origin": [f"{ORIGIN}, {ORIGIN}"]}}, {}),
    ("unsure", "note", {"client_gap": 1.5}, {"client_gap": 0.8}),
    ("unsure", "note", {"ticks": {"same_worker": False}}, {"ticks": None}),
    ("unsure", "note", streams(silent=cut(40.0), active=cut(37.0, 3)), streams(silent=cut(40.0))),
    ("unsure", "note", streams(small={"refused": "doctor_busy", "blocks": [], "status": 429}), {}),
    ("unreachable", "fault", {"unreachable": "push.example does not answer: timed out."}, {}),
    ("not_ours", "fault", {"not_ours": {"status": 302, "location": "https://login.example/"}}, {}),
    ("not_ours", "fault", streams(small={"status": 403, "blocks": []}),
     streams(small={"status": 429, "refused": "doctor_busy", "blocks": []})),
    ("not_ours", "fault", {"poll": {"status": 403, "answered_at": 0.1}}, {"poll": {"status": 504, "answered_at": 5.0}}),
    ("doctor_closed", "fault", {"closed": {"status": 401, "code": "pass_missing"}}, {}),
]  # fmt: skip


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert judge(GOOD) == []


def test_nothing_is_found_where_nothing_was_measured() -> None:
    assert judge({}) == []


@pytest.mark.parametrize(("code", "level", "has_it", "has_it_not"), CASES, ids=[case[0] for case in CASES])
def test_a_fault_is_found_and_a_nearby_measurement_is_none(
    code: str, level: str, has_it: Change, has_it_not: Change
) -> None:
    assert found(has_it).get(code) == level
    assert code not in found(has_it_not)


def test_every_code_has_a_case() -> None:
    assert {case[0] for case in CASES} == CODES.keys()


# ---- faults that hide each other, and what only looks like a fault


def test_a_restart_that_ends_all_streams_is_no_fault_of_a_proxy() -> None:
    """Both end at one moment, though one of them is three seconds younger."""
    both = streams(silent=cut(20.0), active=cut(17.1, 3.0))
    assert found({**both, "poll": {"status": None, "answered_at": 20.1}}) == {"unsure": "note"}


def test_two_limits_are_told_apart() -> None:
    assert found(streams(silent=cut(5.0), active=cut(60.0, 3.0))) == {
        "idle_cutoff": "fault",
        "request_timeout": "fault",
    }


def test_one_limit_for_all_ages_is_not_told_twice() -> None:
    assert found(streams(silent=cut(30.0), active=cut(30.2, 3.0))) == {"request_timeout": "fault"}


def test_a_server_that_stands_still_is_not_taken_for_a_buffer() -> None:
    """By its own clock, the server sent nothing for six seconds and then four blocks at once."""
    times = [0, 1, 7, 7.01, 7.02, 7.03]
    told = [[n, 1e9 + at, at + 0.02, 80] for n, at in enumerate(times)]
    assert found(streams(small={"blocks": told})) == {"stalled": "fault"}


def test_a_cached_echo_tells_nothing_of_clocks() -> None:
    change = {"same_nonce": True, "skew": -500.0, "ticks": {"longest_gap": 8.0}}
    assert found(change) == {"cached": "fault"}


def test_a_server_of_one_request_at_a_time_has_no_other_fault() -> None:
    """Everything waits for the silent stream there."""
    late = streams(small={"blocks": [], **OPEN}, active=cut(30.0, 3.0))
    change = {"while_streaming": {"answered": False}, "poll": {"status": None}, "left": {"noticed": False}, **late}
    assert found(change) == {"few_streams": "fault"}


def test_a_stream_that_a_proxy_refuses_is_not_cut_at_an_age() -> None:
    refused = {"status": 403, "blocks": [], "finished": None, "ended_at": 0.01}
    change = streams(small=refused, fast=refused, silent=refused, active=refused)
    assert found(change) == {"not_ours": "fault"}


def test_where_something_else_answers_nothing_more_is_told() -> None:
    other = {"not_ours": {"status": 200, "type": "text/html", "title": "Sign in"}, "http": "1.1"}
    [finding] = judge(changed(other))
    assert finding.code == "not_ours"
    assert "Sign in" in finding.evidence


def test_findings_come_worst_first() -> None:
    change = {"http": "1.1", "client_gap": 2.0, "shared": True, "same_nonce": True}
    levels = [finding.level for finding in judge(changed(change))]
    assert levels == ["fault", "fault", "warning", "note"]


# ---- evidence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (streams(small={"blocks": blocks(AT_THE_END)}, fast={"blocks": blocks([4 - 0.1 * n for n in range(41)], 0.1)}),
         "6 events, sent over 5.0 s, came together: they are held until the response ends."),
        (streams(fast={"blocks": FAST_BURSTS}), "about 21 KB are held at a time"),
        (streams(small={"blocks": [], **OPEN}), "The headers came, but no event within 5.0 s"),
        (streams(silent=cut(5.04)), "cut after 5.0 s, and the service's heartbeat comes every 15 s: too late"),
        (streams(active=cut(60.0, 3)), "cut at the age of 60 s; SSE_STREAM_LIFETIME is 900"),
        ({"statuses": {"410": 0}}, "410 became an answer that the browser may not show"),
        ({"cors": {"preflight_status": 0}}, "OPTIONS, which browsers ask before they send a Last-Event-ID, failed."),
        ({"statuses": {"410": 200, "429": 503}}, "410 became 200, 429 became 503"),
        ({"skew": -40.0}, "The service's clock is 40 s behind this one's"),
        ({"ticks": {"longest_gap": 7.9}}, "In 8.0 s without a request, the process stood still for 7.9 s"),
        ({"same_nonce": True, "echo_headers": {"age": ["12"]}}, "age: 12"),
    ],
)  # fmt: skip
def test_evidence_has_the_numbers(change: Change, words: str) -> None:
    assert any(words in finding.evidence for finding in judge(changed(change))), judge(changed(change))


def test_a_page_that_may_see_nothing_is_told_of_the_setting_first() -> None:
    [finding] = judge(changed({"client": "page", "cors": {"blocked": True}}))
    assert finding.paste == f"SSE_ORIGINS={ORIGIN}"


def test_a_redirection_is_to_be_followed_by_people() -> None:
    [finding] = judge({"not_ours": {"status": 301, "location": "https://push.example/sse/doctor/echo"}})
    assert finding.remedy.startswith("Give the address that it points to")


def test_a_finding_is_an_object_of_seven_strings_and_links_to_its_section() -> None:
    told = Finding("buffered", "fault", "s", "e", "r", "p").to_json()
    assert told["page"] == "docs/troubleshooting.md#buffered"
    assert set(told) == {"code", "level", "summary", "evidence", "remedy", "paste", "page"}
    assert set(map(type, told.values())) == {str}


# ---- any input


@pytest.mark.parametrize(
    ("change", "member"),
    [
        ({"skew": "soon"}, "measured.skew"),
        ({"skew": math.nan}, "measured.skew"),
        ({"skew": math.inf}, "measured.skew"),
        ({"skew": True}, "measured.skew"),
        ({"rtt": 10**400}, "measured.rtt"),
        ({"same_nonce": 1}, "measured.same_nonce"),
        ({"url": "x" * 5000}, "measured.url"),
        ({"streams": [1]}, "measured.streams"),
        (streams(small={"blocks": [[1, 2, 3]]}), "measured.streams.small.blocks[0]"),
        (streams(small={"blocks": blocks([0] * 401)}), "measured.streams.small.blocks"),
        ({"statuses": {"410": 2000}}, "measured.statuses.410"),
        ({"statuses": {str(n): 200 for n in range(50)}}, "measured.statuses"),
        ({"skipped": ["x"] * 101}, "measured.skipped"),
    ],
)
def test_a_measurement_of_a_wrong_shape_is_named(change: Change, member: str) -> None:
    with pytest.raises(BadMeasure, match=f"^{member.replace('[', '.').replace(']', '.')} is "):
        judge(changed(change))


@pytest.mark.parametrize("measured", [None, 1, "x", [], True])
def test_measurements_are_an_object(measured: object) -> None:
    with pytest.raises(BadMeasure):
        judge(measured)


def test_any_json_is_judged_or_refused() -> None:
    """Every member is replaced by values of any kind, alone and with others: nothing but BadMeasure is raised."""
    chance = random.Random(17)
    values = [None, True, 0, -1, 1e11, 0.5, "", "http://[", "x,y", [], [[]], {}, {"a": None}, [[0, 0, 0, 0]] * 5, ["a"]]
    for _ in range(3000):
        measured = changed({})
        for _ in range(chance.randint(1, 4)):
            place: Any = measured
            while True:
                name = chance.choice([*place])
                if not isinstance(place[name], dict) or not place[name] or chance.random() < 0.3:
                    break
                place = place[name]
            place[name] = chance.choice(values)
        try:
            findings = judge(measured)
        except BadMeasure:
            continue
        json.dumps([finding.to_json() for finding in findings])
        assert all(finding.summary and finding.evidence and finding.remedy for finding in findings)


def test_unknown_members_are_passed_over() -> None:
    assert judge(changed({"later": [1], "streams": {"other": 1, "small": {"later": {}}}})) == []


def test_a_stream_without_blocks_that_was_not_answered_is_judged() -> None:
    told = stream(status=None, headers=None, blocks=[], ended_at=None, asked=5, finished=None)
    assert found(streams(small=told)) == {"buffered": "fault"}
