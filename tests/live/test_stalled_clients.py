"""Clients that listen but do not read.

The bytes that they leave with the server are bounded, and each client is told what it lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import APP, ENV, GREENLETS, address, inspect
from tests.proxy_servers import Lighttpd
from tests.publishing import publish
from tests.servers import ROOT, Gunicorn, wait_until

CLIENTS = 20
EVENTS = 80
SIZE = 60_000  # of one event: together far more than the kernels' buffers hold
BOUND = 65_536
WHOLE = re.compile(rb"^id: (\S+)\n(?:data: .*\n)+\n", re.MULTILINE)


def left_with(server: Gunicorn) -> list[int]:
    """Return the bytes that the kernel holds for each connection until the client takes them."""
    here = f":{address(server.url)[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[4].partition(":")[0], 16) for row in rows if row[1].endswith(here) and row[3] == "01"]


class Deaf:
    """A client that reads nothing until it is told to. It records only the bytes."""

    def __init__(self, server: Gunicorn, last_event_id: str = "") -> None:
        self.body = b""
        self.sock = client.connect(server.url)
        head = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
        self.sock.sendall(f"GET /sse/stream?channel=deaf HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode())

    def __enter__(self) -> Deaf:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def read(self, until: bytes, timeout: float = 10) -> None:
        """Read until these bytes have come, or the connection ends."""
        deadline = time.monotonic() + timeout
        searched = 0
        while self.body.find(until, searched) < 0:
            assert time.monotonic() < deadline, self.body[-200:]
            searched = max(len(self.body) - len(until), 0)
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionError:
                data = b""
            if not data:
                break
            self.body += data

    def ids(self) -> list[str]:
        """Return the ids of the events that came complete."""
        return [id.decode() for id in WHOLE.findall(self.body)]


def offsets(ids: list[str]) -> list[int]:
    return [int(id.removeprefix("deaf=").partition("-")[0]) for id in ids]


@contextlib.contextmanager
def deaf_clients(server: Gunicorn) -> Iterator[list[Deaf]]:
    """So many, for which EVENTS were published, all of which another client has read."""
    with contextlib.ExitStack() as stack, Stream(server.url, {"channel": "hearing"}) as hearing:
        clients = [stack.enter_context(Deaf(server)) for _ in range(CLIENTS)]
        wait_until(lambda: inspect(server)["subscribers"] == CLIENTS + 1)
        for number in range(EVENTS):
            publish(server, "deaf", "x" * SIZE)
            publish(server, "hearing", str(number))
            assert hearing.take(1)[0].data == str(number)
        yield clients


@pytest.mark.parametrize("arguments", [(), GREENLETS], ids=["handed off", "greenlets"])
def test_each_leaves_a_bounded_amount_with_the_kernel_and_gets_all_when_it_reads_again(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with Gunicorn(tmp_path, APP, ENV, arguments=arguments) as server, deaf_clients(server) as clients:
        waiting = left_with(server)
        assert len(waiting) >= CLIENTS
        assert max(waiting) <= BOUND
        publish(server, "deaf", "the last")
        for one in clients:
            one.read(b"data: the last\n\n")
            assert offsets(one.ids()) == list(range(1, EVENTS + 2))


def test_the_bound_is_a_setting(tmp_path: Path) -> None:
    environment = ENV | {"SSE_SEND_BUFFER": str(4 << 20)}
    with Gunicorn(tmp_path, APP, environment) as server, deaf_clients(server):
        assert max(left_with(server)) > 4 * BOUND


def test_one_that_the_ring_has_passed_is_told_so_and_comes_back_to_a_reset(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV | {"SSE_RING": "10"}) as server, deaf_clients(server) as clients:
        for one in clients:
            one.read(b'data: {"reason":"slow",')
            one.read(b"\r\n0\r\n\r\n")
            heard = one.ids()
            assert offsets(heard) == list(range(1, len(heard) + 1))
            assert 0 < len(heard) < EVENTS - 10
            with Stream(server.url, {"channel": "deaf"}, last_event_id=heard[-1]) as again:
                reset = again.until("sse.reset").json()
                assert (reset["reason"], reset["missed"]) == ("trimmed", EVENTS - len(heard))


@pytest.mark.parametrize("arguments", [(), GREENLETS], ids=["handed off", "greenlets"])
def test_one_that_comes_from_farther_back_than_the_worker_has_at_hand_gets_all_of_it(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with Gunicorn(tmp_path, APP, ENV, arguments=arguments) as server:
        for _ in range(EVENTS):
            publish(server, "deaf", "x" * SIZE)
        publish(server, "deaf", "the last")
        first = client.poll(server.url, ["deaf"], timeout=0, replay=EVENTS + 1).json()["events"][0]["id"]
        with Deaf(server, first) as one:
            one.read(b"data: the last\n\n")
            assert offsets(one.ids()) == list(range(2, EVENTS + 2))


@pytest.mark.long
@pytest.mark.parametrize("arguments", [(), GREENLETS], ids=["handed off", "greenlets"])
def test_a_client_that_vanishes_without_a_word_is_given_up_some_20_s_after_a_write(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    alone = ["unshare", "--net", *([] if os.getuid() == 0 else ["--map-root-user"])]
    command = [*alone, sys.executable, "-m", "tests.live.vanishing_clients", str(tmp_path), *arguments]
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=90, cwd=ROOT)
    gone = re.search(r"gone after (\d+) s", said.stdout)
    assert gone, said.stderr
    assert 15 < int(gone[1]) < 35


def test_behind_a_proxy_that_keeps_all_to_itself_a_client_that_has_gone_is_kept_for_a_stream_s_lifetime_only(
    tmp_path: Path,
) -> None:
    with (
        Gunicorn(tmp_path, APP, ENV | {"SSE_STREAM_LIFETIME": "5"}) as server,
        Lighttpd(tmp_path / "lighttpd", address(server.url)[1]) as proxy,
    ):
        with client.connect(f"http://127.0.0.1:{proxy.port}") as sock:
            sock.sendall(b"GET /sse/stream?channel=a HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_until(lambda: inspect(server)["subscribers"] == 1)
        time.sleep(1)
        assert inspect(server)["subscribers"] == 1
        wait_until(lambda: inspect(server)["subscribers"] == 0, 6)
