"""The doctor's report for people."""

from __future__ import annotations

from sse.doctor.judge import judge
from sse.doctor.report import report
from tests.measurements import GOOD, ORIGIN, Change, changed


def lines(change: Change) -> list[str]:
    measured = changed(change)
    return [line.text for line in report(measured, judge(measured))]


def test_a_good_way_is_told_with_all_that_works() -> None:
    told = lines({})
    assert told[0] == "https://push.example/sse  Throughline 0.1.0, behind nginx"
    assert told[-1] == "Nothing is wrong."
    assert [line for line in told if line.startswith("  ok")] == [
        "  ok      Events arrive as soon as they are sent.",
        "  ok      A stream without events stays open: no idle cut-off, none within 90 s.",
        "  ok      A stream with events stays open: no request timeout, none within 90 s.",
        "  ok      A long poll is answered after 25 s.",
        "  ok      Each client gets a stream and answers of its own: nothing is cached or shared.",
        "  ok      The Last-Event-ID arrives.",
        "  ok      Statuses arrive as the service sends them.",
        f"  ok      Pages of {ORIGIN} may read the service.",
        "  ok      The service noticed within 0.6 s that a client had left.",
        "  ok      The server goes on between requests.",
        "  ok      Browsers are offered HTTP/2, so that tabs do not wait for each other.",
    ]


def test_a_fault_is_told_with_evidence_remedy_lines_and_section() -> None:
    told = lines({"left": {"noticed": False}, "echo_headers": {"server": ["Caddy"]}})
    begin = told.index("WARNING   the service is not told of clients that leave  [leaving_unnoticed]")
    assert told[begin + 1 : begin + 10] == [
        "          A client went away, and the service, which kept sending, did not learn of it within 0.6 s.",
        "",
        "          Caddy: Take out flush_interval -1: with it, Caddy goes on reading for clients that have",
        "          left.",
        "",
        "              reverse_proxy 127.0.0.1:8000",
        "",
        "          https://git.example/throughline/docs/troubleshooting.md#leaving_unnoticed",
        "",
    ]
    assert told[-1] == "1 warning."


def test_what_was_not_measured_is_not_told_to_work() -> None:
    assert [line.text for line in report({"url": "https://push.example/sse"}, [])][1:] == ["", "Nothing is wrong."]


def test_a_terminal_gets_no_control_characters_of_a_server() -> None:
    other = {"status": 200, "title": "\x1b]0;owned\x07\x1b[2J", "location": "https://x/\r\n\x9b31m"}
    measured = {**GOOD, "not_ours": other}
    text = "\n".join(line.text for line in report(measured, judge(measured)))
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(text)
    assert "owned" in text
