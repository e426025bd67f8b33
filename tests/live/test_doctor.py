"""The doctor names the true fault of each proxy, and nothing else, and raises no alarm where all is right.

All ways are measured side by side, each with a service of its own, because the probes are bounded in each process. The
proxies' time-outs are 5 s here. `make doctor` measures with the time-outs that people have, and prints a table.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sse.doctor.findings import Finding
from sse.doctor.judge import judge
from sse.doctor.measure import measure
from sse.doctor.proxies import on_the_way
from tests.fronts import Front, fronts
from tests.servers import Gunicorn

REAL = os.environ.get("DOCTOR") == "all"
ORIGIN = "https://a.example"
WAIT = 90 if REAL else 8
LANES = 26 if REAL else 18
FRONTS = fronts(REAL)
SETTINGS = {"SSE_DOCTOR": "1", "SSE_ORIGINS": ORIGIN, "SSE_PROXIES": "1", "SSE_PUBLIC": "*"}
STARTING = threading.Semaphore(2)  # services that start at the same time


@dataclass
class Result:
    """What the doctor said of a front."""

    measured: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    error: BaseException | None = None
    seconds: float = 0

    def codes(self, level: str) -> set[str]:
        return {finding.code for finding in self.findings if finding.level == level}

    def story(self) -> str:
        told = "\n".join(f"{finding.level} {finding.code}: {finding.evidence}" for finding in self.findings)
        return f"{self.seconds:.0f} s, {self.error or ''}\n{told}\n{self.measured}"


def examine(front: Front, directory: Path, upstream: int) -> Result:
    """Start a front, and return what the doctor says of it."""
    result, began = Result(), time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            url = f"http://127.0.0.1:{upstream}"
            if front.make is not None:
                url = stack.enter_context(front.make(directory, upstream)).url
                if url.startswith("https:"):
                    url = url.replace("127.0.0.1", "localhost")
                    with Path(os.environ["SSL_CERT_FILE"]).open("a") as trusted:
                        trusted.write((directory / "throughline.crt").read_text())
            # The quick form leaves out the quiet seconds, which tell of a server that is frozen.
            quick = not REAL and bool(front.faults or front.warnings)
            result.measured = measure(f"{url}/sse", origin=front.origin, wait=WAIT, quick=quick)
        result.findings = judge(result.measured)
    except BaseException as error:
        result.error = error
    result.seconds = time.monotonic() - began
    return result


def work(directory: Path, todo: queue.Queue[Front], results: dict[str, Result]) -> None:
    """Examine fronts with a service of one's own, until there are no more."""
    gunicorn = Gunicorn(directory / "app", env=SETTINGS)
    with contextlib.ExitStack() as stack:
        with STARTING:
            gunicorn.start(60)
        stack.callback(gunicorn.stop)
        upstream = int(gunicorn.bind.rpartition(":")[2])
        while True:
            try:
                front = todo.get_nowait()
            except queue.Empty:
                return
            name = "".join(letter if letter.isalnum() else "-" for letter in front.name)
            # A busy machine lets a service stand still for seconds. No front does, so the doctor is asked again.
            for attempt in range(3):
                results[front.name] = examine(front, directory / f"{name}-{attempt}", upstream)
                if "stalled" not in results[front.name].codes("fault") | results[front.name].codes("warning"):
                    break


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Result]]:
    directory = tmp_path_factory.mktemp("doctor")
    todo: queue.Queue[Front] = queue.Queue()
    found: dict[str, Result] = {}
    for front in reversed(FRONTS):  # the hostile ones first, because some take longer
        todo.put(front)
    lanes = [threading.Thread(target=work, args=(directory / f"{n}", todo, found)) for n in range(LANES)]
    with trusted(directory):
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join(900)
    print(f"\n\n{table(found)}\n")
    yield found


@contextlib.contextmanager
def trusted(directory: Path) -> Iterator[None]:
    """Trust the certificates of the fronts, which `examine` adds to a file, as if an authority had signed them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(directory / "trusted.pem"))
        yield


def table(found: dict[str, Result]) -> str:
    rows = ["| way | faults | warnings | notes | recognised | s |", "|---|---|---|---|---|---|"]
    for front in FRONTS:
        result = found.get(front.name, Result())
        cells = [", ".join(sorted(result.codes(level))) for level in ("fault", "warning", "note")]
        cells.append(", ".join(on_the_way(result.measured)))
        rows.append(f"| {front.name} | {' | '.join(cells)} | {result.seconds:.0f} |")
    return "\n".join(rows)


@pytest.mark.parametrize("front", FRONTS, ids=lambda front: front.name)
def test_the_doctor_names_the_true_faults_and_no_others(results: dict[str, Result], front: Front) -> None:
    result = results[front.name]
    assert result.error is None, result.story()
    faults = front.faults if not REAL or front.real is None else front.real
    assert (result.codes("fault"), result.codes("warning")) == (faults, front.warnings), result.story()


@pytest.mark.parametrize("front", FRONTS, ids=lambda front: front.name)
def test_the_proxy_is_recognised_and_each_finding_has_a_remedy_and_a_page(
    results: dict[str, Result], front: Front
) -> None:
    result = results[front.name]
    if front.proxy:
        assert front.proxy in on_the_way(result.measured), result.story()
    for finding in result.findings:
        assert finding.remedy, finding
        assert finding.page == f"docs/troubleshooting.md#{finding.code}"


@pytest.mark.parametrize(
    ("code", "pattern"),
    [
        ("idle_cutoff", r"cut after (4\.[5-9]|5\.\d|6\.\d) s" if not REAL else r"cut after (49|5\d|6[0-5]) s"),
        ("request_timeout", r"age of (4\.[5-9]|5\.\d|6\.\d) s" if not REAL else r"age of 7[4-7] s"),
        ("buffered", r"until the response ends|[1-9]\d* (KB|bytes)|no event within|Nothing came"),
        ("not_ours", r"login\.example|guest network|answered with 401"),
        ("cors_doubled", r"https://a\.example, \*"),
        ("last_event_id_stripped", "doctor="),
    ],
)
def test_the_evidence_has_the_seconds_the_bytes_and_the_words(
    results: dict[str, Result], code: str, pattern: str
) -> None:
    found = [finding for result in results.values() for finding in result.findings if finding.code == code]
    assert found
    for finding in found:
        assert re.search(pattern, finding.evidence), finding.evidence
