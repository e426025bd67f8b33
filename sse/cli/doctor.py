"""`flask sse doctor`: measures the way to a service, and prints what is wrong with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import click

from sse.doctor.findings import Finding
from sse.doctor.judge import judge
from sse.doctor.measure import get_pass, measure
from sse.doctor.report import report

FAULT: Final = 1
NOT_REACHED: Final = 3
"""Exit statuses. 0 is for a way without a fault, though there may be warnings, and 2 for a wrong command line."""

_NOT_REACHED: Final = ("unreachable", "not_ours", "doctor_closed")
_STYLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "title": {"bold": True},
    "fault": {"fg": "red", "bold": True},
    "warning": {"fg": "yellow", "bold": True},
    "note": {"fg": "cyan", "bold": True},
    "good": {"fg": "green"},
    "paste": {"bold": True},
    "quiet": {"dim": True},
    "": {},
}


def page_link(url: str, key: str | None) -> str:
    """Return the address of the doctor's page, with a pass if there is a key to get one."""
    given = f"#pass={quote(get_pass(url, key))}" if key else ""
    return f"{url}/doctor{given}"


def examine(url: str, *, key: str | None, origin: str, wait: float, quick: bool, proxy: str, as_json: bool) -> int:
    """Measure, print what is wrong, and return the exit status.

    :raises SSEError: if the service gives no pass for the key.
    """
    show = _Progress(sys.stderr.isatty() and not as_json)
    try:
        given_pass = get_pass(url, key) if key else ""
        measured = measure(
            url, given_pass=given_pass, origin=origin, wait=wait, quick=quick, proxy=proxy, tell=show
        )  # fmt: skip
    finally:
        show.clear()
    findings = judge(measured)
    if as_json:
        click.echo(_as_json(url, measured, findings))
    else:
        for text, style in report(measured, findings):
            click.echo(click.style(text, **_STYLES[style]) if text else "")
    return _status(findings)


def _status(findings: Sequence[Finding]) -> int:
    if any(finding.code in _NOT_REACHED for finding in findings):
        return NOT_REACHED
    return FAULT if any(finding.level == "fault" for finding in findings) else 0


def _as_json(url: str, measured: Mapping[str, Any], findings: Sequence[Finding]) -> str:
    told = [finding.to_json() for finding in findings]
    return json.dumps({"url": url, "ok": _status(findings) == 0, "findings": told, "measured": measured}, indent=1)


class _Progress:
    """Shows on a terminal, in one line that is written over, what is going on."""

    def __init__(self, shows: bool) -> None:
        self._shows = shows
        self._length = 0

    def __call__(self, text: str) -> None:
        if self._shows:
            click.echo(f"\r{text:<{self._length}}", nl=False, err=True)
            self._length = len(text)

    def clear(self) -> None:
        """Take the line away."""
        if self._shows:
            click.echo(f"\r{'':<{self._length}}\r", nl=False, err=True)
