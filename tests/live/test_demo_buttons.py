"""The demo's buttons on a real worker break the connections that they name, and no other client's."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import GREENLETS
from tests.servers import Gunicorn

ENV = {"SSE_PUBLIC": "demo/*", "SSE_HEARTBEAT": "3", "DEMO": "1"}
CHANNEL = {"channel": "demo/machine"}  # an event each second


@pytest.fixture(params=["handed off", "greenlets"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gunicorn]:
    with Gunicorn(tmp_path, env=ENV, arguments=GREENLETS if request.param == "greenlets" else ()) as server:
        yield server


def browser(server: Gunicorn) -> dict[str, str]:
    """Return the headers of a browser that has seen the page."""
    cookie = client.request(server.url, "GET", "/").headers["Set-Cookie"].split(";")[0]
    return {"Cookie": cookie, "Origin": server.url}


def press(server: Gunicorn, button: str, headers: dict[str, str]) -> None:
    assert client.request(server.url, "POST", f"/demo/{button}", headers=headers).status == 204


def stale(pid: int) -> list[str]:
    """Return the numbers in this process's epolls that now belong to another file."""
    found = []
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        for number, inode in re.findall(r"^tfd: +(\d+) .* ino:([0-9a-f]+)", info.read_text(), re.MULTILINE):
            fd = Path(f"/proc/{pid}/fd/{number}")
            if not fd.exists() or fd.stat().st_ino != int(inode, 16):
                found.append(f"{number} in {info.name}")
    return found


def cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_tabs_that_are_closed_in_their_sleep_cost_nothing_and_cut_nobody(server: Gunicorn) -> None:
    headers = browser(server)
    (pid,) = server.worker_pids()
    with contextlib.ExitStack() as tabs, contextlib.ExitStack() as stack:
        streams = [tabs.enter_context(Stream(server.url, CHANNEL, headers=headers)) for _ in range(5)]
        for stream in streams:
            stream.until("sample")
        press(server, "sleep", headers)
        time.sleep(0.5)
        for pause in (0, 2):  # longer than between two samples
            time.sleep(pause)
            for stream in streams:
                told = 0
                with pytest.raises(TimeoutError):  # neither an event nor an end
                    while stream.next(0.05):
                        told += 1
                assert not (pause and told)
        tabs.close()
        others = [stack.enter_context(Stream(server.url, CHANNEL)) for _ in range(10)]
        for stream in others:
            stream.until("sample")
        assert stale(pid) == []
        before, began = cpu(pid), time.monotonic()
        for _ in range(2):
            for stream in others:
                stream.until("sample")  # an end would be a fault
        assert cpu(pid) - before < (time.monotonic() - began) / 2
        assert stale(pid) == []


def test_a_poll_that_sleeps_is_not_answered(server: Gunicorn) -> None:
    headers = browser(server)
    place = client.poll(server.url, ["demo/quiet"], timeout=1).json()["last_event_id"]
    began = time.monotonic()
    waiting = client.connect(server.url, 10)
    lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
    query = f"channel=demo/quiet&timeout=3&last_event_id={place.replace('=', '%3D')}"
    waiting.sendall(f"GET /sse/poll?{query} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
    time.sleep(0.5)
    press(server, "sleep", headers)
    waiting.settimeout(5)
    with waiting, pytest.raises(TimeoutError):
        waiting.recv(1)
    assert time.monotonic() - began > 5
    assert stale(server.worker_pids()[0]) == []
