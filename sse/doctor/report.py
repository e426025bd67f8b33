"""Writes for people what the doctor has found: what is broken, how one sees it, what to set, and what works."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from sse.doctor.findings import LEVELS, Finding
from sse.doctor.proxies import name_of, on_the_way

Style = Literal["title", "fault", "warning", "note", "good", "paste", "quiet", ""]

_WIDTH: Final = 100
_INDENT: Final = " " * 10
_PASTE: Final = " " * 14
_DOCS: Final = "https://git.example/throughline/"


class Line(NamedTuple):
    """A line of the report, and how a terminal may show it."""

    text: str
    style: Style = ""


def report(measured: Mapping[str, Any], findings: Sequence[Finding]) -> Iterator[Line]:
    """Yield the lines of the report. Control characters, which a server may send, do not reach a terminal."""
    for text, style in _lines(measured, findings):
        yield Line(printable(text), style)


def printable(text: str) -> str:
    """Return a text with a mark in the place of each character that could steer a terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _lines(measured: Mapping[str, Any], findings: Sequence[Finding]) -> Iterator[Line]:
    yield Line(_title(measured), "title")
    for finding in findings:
        yield Line("")
        yield from _of_finding(finding)
    working = [*_works(measured, {finding.code for finding in findings})]
    if working:
        yield Line("")
        for text in working:
            yield Line(f"  ok      {text}", "good")
    yield Line("")
    yield Line(_count(findings), "title")


def _title(measured: Mapping[str, Any]) -> str:
    proxies = [name_of(proxy) for proxy in on_the_way(measured)]
    version = measured.get("echo", {}).get("version")
    title = str(measured.get("url", ""))
    title += f"  Throughline {version}" if version else ""
    return title + (f", behind {' and '.join(proxies)}" if proxies else "")


def _of_finding(finding: Finding) -> Iterator[Line]:
    yield Line(f"{finding.level.upper():<10}{finding.summary}  [{finding.code}]", finding.level)
    yield from _wrapped(finding.evidence)
    if finding.remedy:
        yield Line("")
        yield from _wrapped(finding.remedy)
    if finding.paste:
        yield Line("")
        for line in finding.paste.splitlines():
            yield Line(f"{_PASTE}{line}".rstrip(), "paste")
    yield Line("")
    yield Line(f"{_INDENT}{_DOCS}{finding.page}", "quiet")


def _wrapped(text: str) -> Iterator[Line]:
    for line in textwrap.wrap(text, _WIDTH - len(_INDENT), break_long_words=False, break_on_hyphens=False):
        yield Line(f"{_INDENT}{line}")


def _count(findings: Sequence[Finding]) -> str:
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    told = [f"{count} {level}{'s' * (count > 1)}" for level, count in counts.items() if count]
    return f"{', '.join(told)}." if told else "Nothing is wrong."


def _works(measured: Mapping[str, Any], codes: set[str]) -> Iterator[str]:
    """Yield what was measured and found right."""
    streams, wait = measured.get("streams", {}), measured.get("wait", 0)
    if streams.get("small", {}).get("blocks") and "buffered" not in codes:
        yield "Events arrive as soon as they are sent."
    if "ended_at" not in streams.get("silent", {"ended_at": 0}) or streams.get("silent", {}).get("finished"):
        yield f"A stream without events stays open: no idle cut-off, none within {wait:.0f} s."
    if "ended_at" not in streams.get("active", {"ended_at": 0}) or streams.get("active", {}).get("finished"):
        yield f"A stream with events stays open: no request timeout, none within {wait:.0f} s."
    if measured.get("poll", {}).get("status") == 200:
        yield f"A long poll is answered after {measured['poll']['asked']:.0f} s."
    if measured.get("shared") is False and measured.get("same_nonce") is False:
        yield "Each client gets a stream and answers of its own: nothing is cached or shared."
    if "sent" in measured and "echo" in measured and "last_event_id_stripped" not in codes:
        yield "The Last-Event-ID arrives."
    if measured.get("statuses") and "status_rewritten" not in codes:
        yield "Statuses arrive as the service sends them."
    if measured.get("cors") and not codes & {"cors_missing", "cors_doubled", "cors_not_allowed"}:
        yield f"Pages of {measured.get('origin')} may read the service."
    if measured.get("left", {}).get("noticed"):
        yield f"The service noticed within {measured['left'].get('after', 0):.1f} s that a client had left."
    if measured.get("ticks", {}).get("same_worker") and not codes & {"frozen", "stalled"}:
        yield "The server goes on between requests."
    if measured.get("http") == "2":
        yield "Browsers are offered HTTP/2, so that tabs do not wait for each other."
