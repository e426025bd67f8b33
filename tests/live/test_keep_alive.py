"""Kept connections between requests.

Every request is answered in order, and a client that always sends more waits its turn.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse, parse_headers
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.app_servers import FewFilesGunicorn
from tests.live.load import APP, ENV, KEY, address
from tests.servers import Gunicorn, wait_until

FILES = 300
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with Gunicorn(tmp_path_factory.mktemp("between"), "tests.live.apps.faulty_views:application", ENV) as server:
        yield server


def answer_of(sock: socket.socket) -> HTTPResponse:
    answer = HTTPResponse(sock)
    answer.begin()
    answer.read()
    return answer


@pytest.mark.parametrize("before", [0, 1], ids=["new", "kept alive"])
@pytest.mark.parametrize("ends", ["half-closed", "closed"])
def test_a_request_with_which_its_client_ends_is_answered_all_the_same(
    server: Gunicorn, before: int, ends: str
) -> None:
    [pid] = server.worker_pids()
    channel = f"last/{before}/{ends}"
    body = b"last words"
    request = f"POST /sse/publish/{channel} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    with client.connect(server.url) as sock:
        for _ in range(before):
            sock.sendall(HEALTH)
            assert answer_of(sock).status == 200
        time.sleep(0.5)  # it is parked
        os.kill(pid, signal.SIGSTOP)  # so that the worker sees all of it at once
        try:
            sock.sendall(f"{request}Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            if ends == "half-closed":
                sock.shutdown(socket.SHUT_WR)
            else:
                sock.close()
            time.sleep(0.2)
        finally:
            os.kill(pid, signal.SIGCONT)
        if ends == "half-closed":
            assert client.read_all(sock).startswith(b"HTTP/1.1 201 CREATED\r\n")

    def stored() -> list[str]:
        url = f"/sse/poll?channel={channel}&timeout=0&replay=9"
        return [event["data"] for event in client.request(server.url, "GET", url).json()["events"]]

    wait_until(stored)
    assert stored() == ["last words"]


def test_a_client_that_always_has_more_lets_others_in(server: Gunicorn) -> None:
    many = 400
    with client.connect(server.url) as greedy, client.connect(server.url) as other:
        greedy.sendall(HEALTH * many)
        time.sleep(0.01)
        other.sendall(HEALTH)
        other.recv(1)
        greedy.setblocking(False)
        seen = greedy.recv(1 << 20).count(b"HTTP/1.1 200")
        assert seen < 100  # the 200 that are read at once would take their time
        greedy.settimeout(10)
        while seen < many:
            seen += greedy.recv(1 << 20).count(b"HTTP/1.1 200")


def test_an_answer_that_is_shorter_than_it_says_ends_its_connection(server: Gunicorn) -> None:
    with client.connect(server.url) as sock:
        sock.sendall(b"GET /short HTTP/1.1\r\nHost: localhost\r\n\r\n" + HEALTH)
        head, _, body = client.read_all(sock).partition(b"\r\n\r\n")
        assert b"Content-Length: 100\r\n" in head
        assert b"Connection: close\r\n" in head + b"\r\n"
        assert body == b"only so much"


@pytest.mark.parametrize("size", [100, 500_000])
def test_a_body_that_the_app_leaves_unread_is_skipped(server: Gunicorn, size: int) -> None:
    with client.connect(server.url) as sock:
        for _ in range(2):
            sock.sendall(f"POST /ignore HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode())
            sock.sendall(b"x" * size)
            answer = answer_of(sock)
            assert (answer.status, answer.getheader("Connection")) == (200, "keep-alive")


def test_a_body_that_is_left_unread_and_does_not_come_ends_its_connection(server: Gunicorn) -> None:
    with client.connect(server.url) as sock:
        sock.sendall(b"POST /ignore HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nonly so much")
        answer = answer_of(sock)
        assert (answer.status, answer.getheader("Connection")) == (200, "close")
        assert sock.recv(1) == b""


def test_behind_the_proxy_protocol_nobody_can_name_another_address_after_a_poll(tmp_path: Path) -> None:
    arguments = ["--proxy-protocol", "v1"]
    with Gunicorn(tmp_path, APP, ENV, arguments=arguments) as server, client.connect(server.url) as sock:
        sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 2000\r\n")
        sock.sendall(b"GET /sse/poll?channel=a&timeout=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = answer_of(sock)
        assert (answer.status, answer.getheader("Connection")) == (200, "close")
        assert sock.recv(1) == b""


@pytest.mark.parametrize("sent", [b"GET /heal", b"", HEALTH], ids=["part of a head", "nothing", "kept alive"])
def test_a_worker_that_ends_says_nothing_to_those_that_have_not_asked(tmp_path: Path, sent: bytes) -> None:
    with Gunicorn(tmp_path, APP, ENV) as server, client.connect(server.url) as sock:
        sock.sendall(sent)
        if sent == HEALTH:
            assert answer_of(sock).status == 200
        time.sleep(0.2)
        os.kill(server.pid, signal.SIGHUP)
        assert sock.recv(100) == b""
        assert "Traceback" not in server.logs()


def test_readers_of_large_answers_that_take_their_time_hold_no_greenlet_and_get_all_of_them(tmp_path: Path) -> None:
    with FewFilesGunicorn(tmp_path, APP, ENV, files=FILES) as server, contextlib.ExitStack() as stack:
        for _ in range(8):
            assert client.publish(server.url, "large", "x" * 60_000, key=KEY).status == 201
        slow = []
        for _ in range(80):  # more than there are greenlets
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(20)
            sock.connect(address(server.url))
            sock.sendall(b"GET /sse/poll?channel=large&replay=8&timeout=0 HTTP/1.1\r\nHost: localhost\r\n\r\n" + HEALTH)
            slow.append(sock)
        time.sleep(0.5)
        for _ in range(3):
            assert client.request(server.url, "GET", "/healthz", timeout=3).status == 200
        for sock in slow[::20]:
            file = sock.makefile("rb")
            for length in (480_000, 1):  # the answer to the request behind comes after it
                assert file.readline() == b"HTTP/1.1 200 OK\r\n"
                headers = parse_headers(file)
                assert len(file.read(int(headers["Content-Length"]))) >= length


def test_connections_that_were_accepted_just_before_a_reload_are_served(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV) as server, contextlib.ExitStack() as stack:
        [pid] = server.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        try:
            socks = [stack.enter_context(client.connect(server.url)) for _ in range(400)]
            for sock in socks:
                sock.sendall(HEALTH)
        finally:
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.03)
        os.kill(server.pid, signal.SIGHUP)
        for sock in socks:
            assert answer_of(sock).status == 200


def test_what_the_app_does_at_a_stream_s_end_is_done_when_its_worker_ends(tmp_path: Path) -> None:
    done = tmp_path / "done"
    env = ENV | {"DONE": str(done), "SSE_LANE": "auto"}
    with Gunicorn(tmp_path, "tests.live.apps.faulty_views:application", env) as server, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(Stream(server.url, {"channel": "a"})).until("sse.open")
        process = server.process
        assert process
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        server.process = None
        assert done.read_text() == "ended" * 5
