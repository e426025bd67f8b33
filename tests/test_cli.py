"""`flask sse …` over a real Redis, over HTTP with a real gunicorn, and without either."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha384
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.cli import ScriptInfo

from app import create_app
from sse import __version__
from sse.cli import cli
from sse.cli.ending import StopSignals
from sse.event import Event
from sse.web.script import load
from tests import client
from tests.conftest import MakeApp
from tests.publishing import publish_in_app
from tests.servers import ROOT, Gunicorn, HttpServer, RedisServer, free_port, wait_until
from tests.tokens import KEY, SECRET, claims, signed
from tests.writing import Run

DURABLE = {"appendonly": "yes", "appendfsync": "always"}


@pytest.fixture
def app(make_app: MakeApp, redis_url: str) -> Flask:
    return make_app(SSE_REDIS_URL=redis_url, SSE_MAX_EVENT_BYTES=1000)


@pytest.fixture(scope="module")
def service(shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """One gunicorn for the tests that only read."""
    with Gunicorn(tmp_path_factory.mktemp("gunicorn"), env=settings(shared_redis)) as server:
        yield server


def settings(redis: RedisServer) -> dict[str, str]:
    return {
        "SSE_REDIS_URL": redis.url,
        "SSE_PUBLIC": "log news/*",
        "SSE_PUBLISH_KEYS": KEY,
        "SSE_MAX_EVENT_BYTES": "1000",
        "SSE_RETRY": "50",
    }


def run(app: Flask, *arguments: str, input: Any = None) -> Result:
    return app.test_cli_runner().invoke(cli, arguments, input=input)


def over(server: Gunicorn) -> tuple[str, ...]:
    return "--url", f"{server.url}/sse"


def stored(redis: RedisServer, channel: str) -> list[str]:
    with redis.client() as client:
        entries = client.xrange(f"sse:{{{channel}}}", "1")  # without the ring's anchor
    return [json.loads(fields["d"])["data"] for _, fields in entries]


@contextlib.contextmanager
def meanwhile(work: Callable[[], object], then_interrupt: bool = False) -> Iterator[None]:
    """Do `work` in a thread beside a command in this one, and then press Ctrl-C. A failure of `work` fails the test."""
    failures: list[BaseException] = []
    over = threading.Event()

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
        if (then_interrupt or failures) and not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    if failures:
        raise failures[0]


@contextlib.contextmanager
def feeding(write: Callable[[Callable[[bytes], None]], None]) -> Iterator[Any]:
    """Yield a standard input into which `write` writes as time goes by."""
    reading, writing = os.pipe()

    def work() -> None:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            write(lambda data: pipe.write(data) and None)

    with open(reading, "rb") as source, meanwhile(work):
        yield source


def tail_until(app: Flask, *arguments: str, work: Callable[[Callable[[], str]], None]) -> Result:
    """Run `tail` beside `work`, which gets a function that returns the output so far. Then press Ctrl-C."""

    def printed() -> str:
        return str(sys.stdout.buffer.getvalue().decode())  # type: ignore[attr-defined]

    def until() -> None:
        wait_until(lambda: hasattr(sys.stdout.buffer, "getvalue"))
        work(printed)

    with meanwhile(until, then_interrupt=True):
        return run(app, "tail", *arguments)


# Publishing one event


def test_publish_prints_the_id_that_the_event_got(app: Flask, shared_redis: RedisServer) -> None:
    result = run(app, "publish", "news/a", "grüße")
    assert result.exit_code == 0
    with shared_redis.client() as client:
        newest = client.xrevrange("sse:{news/a}", count=1)
    assert result.stdout == f"news/a={newest[0][0]}\n"
    assert stored(shared_redis, "news/a") == ["grüße"]


def test_quiet_prints_nothing(app: Flask, shared_redis: RedisServer) -> None:
    assert run(app, "publish", "log", "x", "--quiet").output == ""
    assert stored(shared_redis, "log") == ["x"]


@pytest.mark.parametrize(
    ("input", "data"), [(b"a\nb\n", "a\nb"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"", ""), (b"\n", "")]
)
def test_a_dash_reads_standard_input_less_one_line_end(
    app: Flask, shared_redis: RedisServer, input: bytes, data: str
) -> None:
    assert run(app, "publish", "log", "-", input=input).exit_code == 0
    assert stored(shared_redis, "log") == [data]


def test_what_is_not_utf_8_is_refused_with_the_way_to_send_bytes(app: Flask, shared_redis: RedisServer) -> None:
    result = run(app, "publish", "log", "-", input=b"ab\xff")
    assert result.exit_code == 1
    assert "byte 2" in result.stderr
    assert "publish/CHANNEL" in result.stderr
    assert stored(shared_redis, "log") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("log",),
        ("log", "data", "--lines"),
        ("log", "--lines", "--idempotency-key", "k"),
        ("", "data"),
        ("sse.log", "data"),
        ("a//b", "data"),
        ("log", "data", "--type", "error"),
        ("log", "data", "--idempotency-key", "a b"),
        ("log", "data", "--url", "https://push.example/sse"),
        ("log", "data", "--url", "", "--key", KEY),
        ("log", "data", "--url", "push.example", "--key", KEY),
        ("log", "data", "--url", "http://push.example:999999/sse", "--key", KEY),
        ("log", "data", "--url", "http://[push/sse", "--key", KEY),
    ],
)
def test_a_command_that_cannot_be_meant_ends_with_2_and_publishes_nothing(
    app: Flask, shared_redis: RedisServer, arguments: tuple[str, ...]
) -> None:
    result = run(app, "publish", *arguments, input="a\n")
    assert result.exit_code == 2, result.output
    with shared_redis.client() as client:
        assert client.keys() == []


def test_a_bad_key_is_never_shown(app: Flask) -> None:
    result = run(app, "publish", "log", "data", "--url", "http://localhost/sse", "--key", "secret\r\nX: y")
    assert result.exit_code == 2
    assert "secret" not in result.output


def test_data_that_is_too_large_ends_with_1_and_the_remedy(app: Flask) -> None:
    result = run(app, "publish", "log", "x" * 1001)
    assert result.exit_code == 1
    assert "SSE_MAX_EVENT_BYTES is 1000" in result.stderr


def test_an_idempotency_key_publishes_once(app: Flask, shared_redis: RedisServer) -> None:
    first, second, other = (
        run(app, "publish", "log", data, "--idempotency-key", "k") for data in ("same", "same", "other")
    )
    assert first.stdout == second.stdout != ""
    assert other.exit_code == 1
    assert "use a new key" in other.stderr
    assert stored(shared_redis, "log") == ["same"]


@pytest.mark.parametrize("arguments", [("publish", "log", "x"), ("publish", "log", "--lines"), ("tail", "log")])
def test_the_memory_store_is_out_of_reach_and_says_so(make_app: MakeApp, arguments: tuple[str, ...]) -> None:
    result = run(make_app(), *arguments, input="a\n")
    assert result.exit_code == 2
    assert "SSE_REDIS_URL" in result.stderr
    assert "--url" in result.stderr


def test_an_app_without_the_extension_is_told_what_to_do() -> None:
    result = run(Flask("bare"), "tail", "log")
    assert result.exit_code == 2
    assert "SSE(app)" in result.stderr


# Publishing lines


def test_each_line_is_an_event_in_order(app: Flask, shared_redis: RedisServer) -> None:
    lines = [f"line {number}" for number in range(450)]
    result = run(app, "publish", "log", "--lines", "--type", "entry", input="\n".join(lines))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "lines: 450 published\n"
    assert stored(shared_redis, "log") == lines


def test_lines_keep_what_they_hold(app: Flask, shared_redis: RedisServer) -> None:
    lines = b"dos\r\n\n  indented\t\nbad \xff byte\nz\x00ero\nprogress\r50 %\nend"
    assert run(app, "publish", "log", "--lines", input=lines).exit_code == 0
    kept = ["dos", "", "  indented\t", "bad \ufffd byte", "z\x00ero", "progress\n50 %", "end"]
    assert stored(shared_redis, "log") == kept


def test_a_line_that_can_never_be_published_is_named_and_the_rest_goes_on(
    app: Flask, shared_redis: RedisServer
) -> None:
    lines = [f"line {number}" for number in range(1, 231)]
    lines[2] = lines[119] = "x" * 1001
    lines[229] = "y" * (3 << 20)
    result = run(app, "publish", "log", "--lines", input="".join(f"{line}\n" for line in lines))
    assert result.exit_code == 1
    told = result.stderr.splitlines()
    assert [line.split(":")[0] for line in told] == [
        "line 3 is refused", "line 120 is refused", "line 230 is refused", "lines",
    ]  # fmt: skip
    assert "SSE_MAX_EVENT_BYTES is 1000" in told[0]
    assert told[-1] == "lines: 227 published, 3 refused"
    assert stored(shared_redis, "log") == [line for line in lines if len(line) <= 1000]


def test_a_line_does_not_wait_for_the_next(app: Flask, shared_redis: RedisServer) -> None:
    def write(put: Callable[[bytes], None]) -> None:
        for number in range(5):
            put(b"half ")
            put(b"%d\n" % number)
            wait_until(lambda number=number: len(stored(shared_redis, "log")) == number + 1, 3)  # type: ignore[misc]

    with feeding(write) as source:
        assert run(app, "publish", "log", "--lines", input=source).exit_code == 0
    assert stored(shared_redis, "log") == [f"half {number}" for number in range(5)]


def test_lines_wait_for_a_redis_that_is_late(make_app: MakeApp, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    app = make_app(SSE_REDIS_URL=redis.url)
    try:
        with meanwhile(lambda: (time.sleep(1), redis.start())):
            result = run(app, "publish", "log", "--lines", input="a\nb\n")
        assert result.exit_code == 0
        assert result.stderr.startswith("waiting: ")
        assert result.stderr.endswith("lines: 2 published\n")
        assert stored(redis, "log") == ["a", "b"]
    finally:
        app.extensions["sse"].close()
        redis.stop()


def test_lines_are_stored_once_while_redis_is_killed_again_and_again(make_app: MakeApp, tmp_path: Path) -> None:
    with RedisServer(tmp_path, **DURABLE) as redis:
        app = make_app(SSE_REDIS_URL=redis.url, SSE_RING=10_000)
        lines = growing_under(lambda: redis.restart(down=0.2))
        with feeding(lines.write) as source:
            result = run(app, "publish", "log", "--lines", input=source)
        app.extensions["sse"].close()
        assert result.exit_code == 0, result.stderr
        assert stored(redis, "log") == lines.all


class growing_under:  # noqa: N801
    """Lines that keep coming while a fault occurs three times."""

    def __init__(self, fault: Callable[[], None]) -> None:
        self.fault = fault
        self.all: list[str] = []

    def write(self, put: Callable[[bytes], None]) -> None:
        ended = threading.Event()
        failures: list[BaseException] = []

        def strike() -> None:
            try:
                for _ in range(3):
                    ended.wait(0.3)
                    self.fault()
            except BaseException as error:
                failures.append(error)
            finally:
                ended.set()

        thread = threading.Thread(target=strike)
        thread.start()
        while not ended.is_set() and len(self.all) < 9000:
            self.all.append(f"line {len(self.all)}")
            put(f"{self.all[-1]}\n".encode())
            ended.wait(0.002)
        thread.join(60)
        assert not failures, failures
        assert len(self.all) < 9000, "the faults did not end in time"


def test_an_interrupted_wait_tells_that_lines_may_be_missing(make_app: MakeApp) -> None:
    app = make_app(SSE_REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    timer = threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    result = run(app, "publish", "log", "--lines", input="a\nb\n")
    timer.join()
    assert result.exit_code == 1
    assert result.stderr.endswith("lines: 0 published, 2 perhaps not published\n")


# Over HTTP


def test_publish_over_http_prints_the_id(app: Flask, service: Gunicorn, shared_redis: RedisServer) -> None:
    result = run(app, "publish", "log", "hello", *over(service), "--key", KEY, "--idempotency-key", "k")
    again = app.test_cli_runner().invoke(
        cli, ["publish", "log", "hello", "--idempotency-key", "k", *over(service)], env={"THROUGHLINE_KEY": KEY}
    )
    assert result.exit_code == again.exit_code == 0, result.output + again.output
    assert result.stdout == again.stdout
    assert result.stdout.startswith("log=1-")
    assert stored(shared_redis, "log") == ["hello"]


def test_the_service_s_own_message_and_remedy_are_shown(app: Flask, service: Gunicorn) -> None:
    wrong = run(app, "publish", "log", "x", *over(service), "--key", "not-a-key-that-it-knows")
    assert wrong.exit_code == 1
    assert "no publishing key, or an unknown one" in wrong.stderr
    assert "SSE_PUBLISH_KEYS" in wrong.stderr
    assert "not-a-key" not in wrong.output
    closed = run(app, "tail", "private", *over(service))
    assert closed.exit_code == 1
    assert "not allowed to read: private" in closed.stderr


def test_a_url_that_is_not_the_prefix_is_told_apart(app: Flask, service: Gunicorn) -> None:
    for arguments in (("publish", "log", "x", "--key", KEY), ("tail", "log")):
        result = run(app, *arguments, "--url", f"{service.url}/elsewhere")
        assert result.exit_code == 1
        assert "answered 404" in result.stderr
        assert "https://push.example/sse" in result.stderr


def test_a_bad_line_over_http_is_named_and_the_rest_goes_on(
    app: Flask, service: Gunicorn, shared_redis: RedisServer
) -> None:
    lines = [f"line {number}" for number in range(150)]
    lines[49] = "x" * 1001
    result = run(app, "publish", "log", "--lines", *over(service), "--key", KEY, input="\n".join(lines))
    assert result.exit_code == 1
    assert "line 50 is refused: data has 1001 bytes" in result.stderr
    assert stored(shared_redis, "log") == lines[:49] + lines[50:]


def test_lines_stop_at_a_key_that_is_not_known(app: Flask, service: Gunicorn) -> None:
    result = run(app, "publish", "log", "--lines", *over(service), "--key", "not-a-key", input="a\nb\n")
    assert result.exit_code == 1
    assert "lines: 0 published, 2 perhaps not published" in result.stderr
    assert "an unknown one" in result.stderr


def test_lines_are_stored_once_while_gunicorn_is_killed_again_and_again(
    app: Flask, redis_url: str, shared_redis: RedisServer, tmp_path: Path
) -> None:
    with Gunicorn(tmp_path, env=settings(shared_redis) | {"SSE_RING": "10000"}) as server:

        def restart() -> None:
            server.kill()
            server.start()

        lines = growing_under(restart)
        with feeding(lines.write) as source:
            result = run(app, "publish", "log", "--lines", *over(server), "--key", KEY, input=source)
    assert result.exit_code == 0, result.stderr
    assert stored(shared_redis, "log") == lines.all


class Stub(HttpServer):
    """A server whose answers a test chooses, in order. It repeats the last one."""

    def __init__(self, *answers: tuple[int, dict[str, str], str]) -> None:
        super().__init__(("127.0.0.1", free_port()), StubHandler)
        self.answers = list(answers)
        self.asked: list[tuple[float, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/sse"


class StubHandler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((time.monotonic(), self.headers["Idempotency-Key"]))
        status, headers, body = self.server.answers[0]
        if len(self.server.answers) > 1:
            self.server.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_lines_wait_as_retry_after_says_and_repeat_the_same_key(app: Flask) -> None:
    busy = '{"error": {"code": "unavailable", "message": "not now", "hint": "later"}}'
    answers = (503, {"Retry-After": "1"}, busy), (429, {}, "<html>"), (201, {}, '{"ids": ["log=1-1"]}')
    with Stub(*answers) as stub:
        result = run(app, "publish", "log", "--lines", "--url", stub.url, "--key", KEY, input="a\n")
    assert result.exit_code == 0
    assert result.stderr == "waiting: not now: later\nlines: 1 published\n"
    (first, key), (second, same), (_, still) = stub.asked
    assert second - first >= 1
    assert key
    assert key == same == still


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((308, {"Location": "https://elsewhere.example/sse/publish"}, ""), "points to https://elsewhere.example"),
        ((200, {}, "<html>welcome to this network"), "does not answer as this service does"),
        ((201, {}, '{"ids": []}'), "does not answer as this service does"),
        ((500, {}, "oops"), "answered 500"),
        ((503, {}, '{"error": "odd"}'), "answered 503"),
    ],
)
def test_an_answer_that_is_not_the_service_s_publishes_nothing(
    app: Flask, answer: tuple[int, dict[str, str], str], told: str
) -> None:
    with Stub(answer) as stub:
        result = run(app, "publish", "log", "x", "--url", stub.url, "--key", KEY)
        assert result.exit_code == 1
        assert told in result.stderr
        assert len(stub.asked) == 1
        if answer[0] < 500:
            assert run(app, "tail", "log", "--url", stub.url).exit_code == 1


@pytest.mark.parametrize(
    "answer", [(201, {"Content-Length": "99"}, '{"ids": ["log=1-1"]}'), (201, {"x" * 70_000: ""}, "")]
)
def test_an_answer_that_breaks_off_is_no_answer(app: Flask, answer: tuple[int, dict[str, str], str]) -> None:
    with Stub(answer) as stub:
        result = run(app, "publish", "log", "x", "--url", stub.url, "--key", KEY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "it may have been published" in result.stderr
    assert "same idempotency key" in result.stderr


def test_lines_whose_answer_breaks_off_are_sent_again_with_the_same_key(app: Flask) -> None:
    whole = '{"ids": ["log=1-1"]}'
    with Stub((201, {"Content-Length": "99"}, whole), (201, {"Content-Length": str(len(whole))}, whole)) as stub:
        result = run(app, "publish", "log", "--lines", "--url", stub.url, "--key", KEY, input="a\n")
    assert result.exit_code == 0
    assert result.stderr.endswith("lines: 1 published\n")
    assert len(stub.asked) == 2
    assert len({key for _, key in stub.asked}) == 1


def test_nobody_at_the_url_is_said(app: Flask) -> None:
    result = run(app, "publish", "log", "x", "--url", f"http://127.0.0.1:{free_port()}/sse", "--key", KEY)
    assert result.exit_code == 1
    assert "cannot be reached" in result.stderr
    assert "refused" in result.stderr
    assert "may have been" not in result.stderr


# Following


@pytest.fixture(params=["store", "http"])
def place(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The source that `tail` reads. A test runs once over the store, and once over HTTP."""
    return () if request.param == "store" else over(request.getfixturevalue("service"))


def test_tail_prints_what_comes_and_says_where_to_go_on(
    app: Flask, make_app: MakeApp, redis_url: str, place: tuple[str, ...]
) -> None:
    other = make_app(SSE_REDIS_URL=redis_url)
    publish_in_app(other, "log", "old", "two\nlines")

    def work(printed: Callable[[], str]) -> None:
        wait_until(lambda: printed() == "two\nlines\n")
        publish_in_app(other, "log", "grün")
        wait_until(lambda: printed() == "two\nlines\ngrün\n")

    result = tail_until(app, "log", "log", "--replay", "1", *place, work=work)
    assert result.exit_code == 0, result.output
    assert result.stdout == "two\nlines\ngrün\n"
    assert result.stderr.startswith("to go on from here: --last-event-id log=3-")
    last = result.stderr.split()[-1]

    publish_in_app(other, "log", "missed")
    publish_in_app(other, "news/b", "of another channel")
    rest = tail_until(
        app, "log", "news/b", "--last-event-id", last, "--json", *place,
        work=lambda printed: wait_until(lambda: "missed" in printed()) and None,
    )  # fmt: skip
    [line] = map(json.loads, rest.stdout.splitlines())
    assert line.pop("id").startswith("log=4-")
    assert line == {"channel": "log", "type": "message", "data": "missed"}


def test_a_reset_is_told_on_standard_error(
    app: Flask, make_app: MakeApp, redis_url: str, place: tuple[str, ...]
) -> None:
    other = make_app(SSE_REDIS_URL=redis_url)
    publish_in_app(other, "log", "a")

    def work(printed: Callable[[], str]) -> None:
        wait_until(lambda: b"reset" in sys.stderr.buffer.getvalue())  # type: ignore[attr-defined]
        publish_in_app(other, "log", "b")
        wait_until(lambda: printed() == "b\n")

    result = tail_until(app, "log", "--last-event-id", "log=7-7", *place, work=work)
    assert 'reset: {"channel":"log","reason":"diverged","missed":null}\n' in result.stderr
    assert result.stderr.split()[-1].startswith("log=2-")


def test_tail_ends_when_all_of_its_channels_have_ended(
    app: Flask, make_app: MakeApp, redis_url: str, place: tuple[str, ...]
) -> None:
    other = make_app(SSE_REDIS_URL=redis_url)
    store = other.extensions["sse"].store
    first, second = Run(store, "news/1"), Run(store, "news/2")
    first.write("one")
    first.end()
    second.write("two")

    def work() -> None:
        wait_until(lambda: hasattr(sys.stdout.buffer, "getvalue"))
        wait_until(lambda: b"two" in sys.stdout.buffer.getvalue())  # type: ignore[attr-defined]
        second.end("failed")

    with meanwhile(work):
        result = run(app, "tail", "news/1", "news/2", *place)
    assert result.exit_code == 0, result.output
    assert sorted(result.stdout.split()) == ["one", "two"]
    assert 'end: {"channel":"news/1","reason":"done"}\n' in result.stderr
    assert 'end: {"channel":"news/2","reason":"failed"}\n' in result.stderr
    last = result.stderr.split()[-1].strip("'")
    again = run(app, "tail", "news/1", "news/2", "--last-event-id", last, *place)
    assert (again.exit_code, again.stdout) == (0, "")


def test_tail_prints_the_pieces_of_a_text_as_the_text(
    app: Flask, make_app: MakeApp, redis_url: str, place: tuple[str, ...]
) -> None:
    """The command stops to read while it prints, so pieces come one by one and joined."""
    other = make_app(SSE_REDIS_URL=redis_url)
    run_of = Run(other.extensions["sse"].store, "news/7")
    run_of.write("grü", "ße,\n", "two", " words", Event("an event"), Event("", "tool"), "three ", "\n", Event("x"), "e")

    def work() -> None:
        wait_until(lambda: hasattr(sys.stdout.buffer, "getvalue"))
        wait_until(lambda: sys.stdout.buffer.getvalue().endswith(b"e"))  # type: ignore[attr-defined]
        run_of.write("n", "d")
        run_of.end()

    with meanwhile(work):
        result = run(app, "tail", "news/7", *place)
    assert result.exit_code == 0, result.output
    assert result.stdout == "grüße,\ntwo words\nan event\n\nthree \nx\nend"
    assert result.stderr.startswith('end: {"channel":"news/7","reason":"done"}\n')

    as_json = run(app, "tail", "news/7", "--json", *place)
    items = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert as_json.stdout.count("\n") == len(items)
    assert {item["channel"] for item in items} == {"news/7"}
    assert "".join(item["data"] for item in items if item["type"] == "text") == "grüße,\ntwo wordsthree \nend"
    assert [item["data"] for item in items if item["type"] != "text"] == ["an event", "", "x"]


def test_tail_does_not_mix_texts_in_a_line(
    app: Flask, make_app: MakeApp, redis_url: str, place: tuple[str, ...]
) -> None:
    store = make_app(SSE_REDIS_URL=redis_url).extensions["sse"].store
    first, second = Run(store, "news/a"), Run(store, "news/b")

    def work(printed: Callable[[], str]) -> None:
        for write, expected in [
            (lambda: first.write("one"), "one"),
            (lambda: second.write("two"), "one\ntwo"),
            (lambda: second.write(" more\n"), "one\ntwo more\n"),
            (lambda: first.write("three"), "one\ntwo more\nthree"),
            (lambda: Run(store, "news/a", restart=True).write("four"), "one\ntwo more\nthree\nfour"),
        ]:
            write()
            second.renew()
            wait_until(lambda expected=expected: printed() == expected, what=expected)

    result = tail_until(app, "news/a", "news/b", *place, work=work)
    assert result.stdout == "one\ntwo more\nthree\nfour"
    assert 'reset: {"channel":"news/a"' in result.stderr


def test_publishing_on_a_channel_that_has_ended_says_so(
    app: Flask, service: Gunicorn, shared_redis: RedisServer
) -> None:
    Run(app.extensions["sse"].store, "news/1").end()
    for arguments in ((), (*over(service), "--key", KEY)):
        result = run(app, "publish", "news/1", "late", *arguments)
        assert result.exit_code == 1
        assert result.stderr == (
            "Error: channel news/1 has ended: publish on another channel, or begin a new run on this one\n"
        )
        lines = run(app, "publish", "news/1", "--lines", *arguments, input="a\nb\n")
        assert lines.exit_code == 1
        assert lines.stderr.startswith("lines: 0 published, 2 refused\n")
        assert "channel news/1 has ended" in lines.stderr


def test_tail_goes_on_after_redis_was_killed(make_app: MakeApp, tmp_path: Path) -> None:
    with RedisServer(tmp_path, **DURABLE) as redis:
        app, other = make_app(SSE_REDIS_URL=redis.url), make_app(SSE_REDIS_URL=redis.url)
        publish_in_app(other, "log", "0")

        def work(printed: Callable[[], str]) -> None:
            for number in range(1, 4):
                wait_until(lambda number=number: len(printed().split()) == number, 15)  # type: ignore[misc]
                redis.restart(down=0.3)
                publish_in_app(other, "log", number)
            wait_until(lambda: len(printed().split()) == 4, 15)

        result = tail_until(app, "log", "--replay", "1", work=work)
        for each in (app, other):
            each.extensions["sse"].close()
        assert result.stdout == "0\n1\n2\n3\n"


def test_tail_waits_for_a_redis_that_is_late(make_app: MakeApp, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    app, other = make_app(SSE_REDIS_URL=redis.url), make_app(SSE_REDIS_URL=redis.url)

    def work(printed: Callable[[], str]) -> None:
        redis.start()
        wait_until(lambda: app.extensions["sse"].hub.subscribers)
        publish_in_app(other, "log", *range(3))
        wait_until(lambda: "2" in printed())

    try:
        assert tail_until(app, "log", "--replay", "9", work=work).stdout == "0\n1\n2\n"
    finally:
        for each in (app, other):
            each.extensions["sse"].close()
        redis.stop()


def test_tail_goes_on_while_gunicorn_is_killed_and_restarted(
    app: Flask, make_app: MakeApp, shared_redis: RedisServer, tmp_path: Path
) -> None:
    other = make_app(SSE_REDIS_URL=shared_redis.url)
    publish_in_app(other, "log", "0")
    server = Gunicorn(tmp_path, env=settings(shared_redis))

    def work(printed: Callable[[], str]) -> None:
        for number in range(1, 4):
            wait_until(lambda: b"waiting" in sys.stderr.buffer.getvalue())  # type: ignore[attr-defined]
            server.start()
            wait_until(lambda number=number: len(printed().split()) == number, 15)  # type: ignore[misc]
            server.kill()
            publish_in_app(other, "log", number)
        server.start()
        wait_until(lambda: len(printed().split()) == 4, 15)

    try:
        result = tail_until(app, "log", "--replay", "1", *over(server), work=work)
    finally:
        server.stop()
    assert result.stdout == "0\n1\n2\n3\n"
    assert result.stderr.startswith(f"waiting: {server.url}/sse cannot be reached")


# As a process


@contextlib.contextmanager
def process(
    folder: Path, redis: str, *arguments: str, wrapper: Sequence[str] = (), **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "push.py").write_text(
        "from flask import Flask\nfrom sse import SSE\nfrom sse.cli import cli\n"
        "app = Flask(__name__)\nSSE(app)\napp.cli.add_command(cli)\n"
    )
    command = [*wrapper, sys.executable, "-m", "flask", "--app", "push", "sse", *arguments]
    environment = os.environ | {"SSE_REDIS_URL": redis, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    child = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=10)


def test_sigterm_ends_tail_well(make_app: MakeApp, redis_url: str, tmp_path: Path) -> None:
    publish_in_app(make_app(SSE_REDIS_URL=redis_url), "log", "a", "b")
    with process(tmp_path, redis_url, "tail", "log", "--replay", "2") as child:
        assert child.stdout
        assert [child.stdout.readline(), child.stdout.readline()] == [b"a\n", b"b\n"]
        child.terminate()
        _, told = child.communicate(timeout=15)
    assert child.returncode == 0
    assert told.startswith(b"to go on from here: --last-event-id log=2-")


def test_a_reader_that_has_enough_ends_tail_quietly(make_app: MakeApp, redis_url: str, tmp_path: Path) -> None:
    app = make_app(SSE_REDIS_URL=redis_url)
    publish_in_app(app, "log", "a")
    with process(tmp_path, redis_url, "tail", "log", "--replay", "1") as child:
        assert child.stdout
        assert child.stdout.readline() == b"a\n"
        child.stdout.close()
        publish_in_app(app, "log", "b")
        child.wait(15)
        assert child.stderr
        assert (child.returncode, child.stderr.read()) == (0, b"")


def test_a_shell_pipe_feeds_lines(redis_url: str, shared_redis: RedisServer, tmp_path: Path) -> None:
    with process(tmp_path, redis_url, "publish", "log", "--lines") as child:
        assert child.stdin
        child.stdin.write(b"one\n")
        child.stdin.flush()
        wait_until(lambda: stored(shared_redis, "log") == ["one"])
        time.sleep(1)  # it has yet to hear that it is stored
        child.send_signal(signal.SIGINT)
        output, told = child.communicate(timeout=15)
    assert (child.returncode, output, told) == (0, b"", b"lines: 1 published\n")


@pytest.mark.parametrize("arguments", [("publish", "log", "--lines"), ("tail", "log")])
def test_a_ctrl_c_that_is_not_meant_for_it_leaves_it_running(
    arguments: tuple[str, ...], redis_url: str, shared_redis: RedisServer, tmp_path: Path
) -> None:
    background = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    with process(tmp_path, redis_url, *arguments, wrapper=background) as child, shared_redis.client() as redis:
        assert child.stdin
        assert child.stdout
        child.stdin.write(b"one\n")
        child.stdin.flush()
        if arguments[0] == "publish":
            wait_until(lambda: stored(shared_redis, "log") == ["one"])
        else:
            wait_until(lambda: redis.exists("sse:{log}"))
        time.sleep(1)  # it has yet to hear of that
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert child.poll() is None
        child.terminate()
        _, told = child.communicate(timeout=15)
    assert child.returncode == 0
    assert told.startswith(b"lines: 1 published\n" if arguments[0] == "publish" else b"to go on from here")


def test_a_signal_waits_until_an_event_is_told_and_a_second_does_not() -> None:
    done = []
    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt), signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(1)
        signals = StopSignals()
    with signals, pytest.raises(KeyboardInterrupt), signals.held():
        os.kill(os.getpid(), signal.SIGINT)
        done.append(2)
        os.kill(os.getpid(), signal.SIGINT)
        done.append(3)
    assert done == [1, 2]


# The tag


def tag(src: str, channels: str = "") -> str:
    return f'<script src="{src}" integrity="{load().integrity}" crossorigin="anonymous"{channels} defer></script>\n'


def test_embed_prints_the_tag_with_no_redis_and_no_service(make_app: MakeApp) -> None:
    app = make_app(SSE_PREFIX="/push", SSE_REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    result = run(app, "embed", "--channel", "prices/acme", "--channel", "orders", "--channel", "prices/acme")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == tag(f"/push/sse.{__version__}.js", ' data-channels="prices/acme orders"')
    src = result.stdout.split('"')[1]
    answer = app.test_client().get(src)
    assert f"sha384-{b64encode(sha384(answer.data).digest()).decode()}" in result.stdout


@pytest.mark.parametrize(
    ("url", "shown"),
    [("https://push.example/sse/", "https://push.example/sse"), ("http://x/a\"b&c'", "http://x/a&quot;b&amp;c&#x27;")],
)
def test_embed_for_another_site_needs_no_app_and_escapes(url: str, shown: str) -> None:
    result = run(Flask("bare"), "embed", "--url", url)
    assert (result.exit_code, result.stdout) == (0, tag(f"{shown}/sse.{__version__}.js"))


@pytest.mark.parametrize("arguments", [(), ("--url", "https://push.example/sse#a"), ("--url", "/sse")])
def test_embed_without_an_address_says_what_to_do(arguments: tuple[str, ...]) -> None:
    result = run(Flask("bare"), "embed", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--url" in result.stderr


def test_embed_refuses_what_is_no_channel(make_app: MakeApp) -> None:
    result = run(make_app(), "embed", "--channel", "a b")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "a b" in result.stderr


# The settings


def test_config_lists_every_setting_and_no_secret(make_app: MakeApp) -> None:
    url = "redis://:a-password@127.0.0.1:1/0"
    result = run(make_app(SSE_REDIS_URL=url, SSE_PUBLISH_KEYS=KEY, SSE_RING=77), "config")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert rows["SSE_RING"].split()[:3] == ["SSE_RING", "77", "1000"]
    assert {"SSE_NAMESPACE", "SSE_PREFIX"} < rows.keys()
    assert rows["SSE_PUBLISH_KEYS"].split()[1].startswith("sha256:")
    assert "a-password" not in result.output
    assert KEY not in result.output
    head, *settings, _ = result.stdout.splitlines()
    column = head.index("HELP")
    assert all(line[column - 1] == " " != line[column] for line in settings)


def test_config_lists_the_keys_of_the_file_by_name_and_hash(make_app: MakeApp, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"billing {KEY} invoices/* orders\n")
    result = run(make_app(SSE_PUBLISH_KEYS_FILE=str(tmp_path / "keys")), "config")
    assert re.search(r"^publishing key billing  sha256:[0-9a-f]{12}  invoices/\* orders$", result.stdout, re.MULTILINE)
    assert KEY not in result.output


def test_a_token_that_is_printed_is_taken(make_app: MakeApp) -> None:
    app = make_app(SSE_SECRET=SECRET, SSE_PUBLIC="", SSE_TOKEN_LIFETIME=3600)
    result = run(app, "token", "--sub", "ann", "--subscribe", "a/*", "--publish", "b")
    assert result.exit_code == 0
    headers = {"Authorization": f"Bearer {result.stdout.strip()}"}
    statuses = [
        app.test_client().get(f"/sse/poll?timeout=0&channel={c}", headers=headers).status_code for c in ("a/b", "b")
    ]
    assert statuses == [200, 403]
    statuses = [
        app.test_client().post(f"/sse/publish/{c}", data="x", headers=headers).status_code for c in ("b", "a/b")
    ]
    assert statuses == [201, 403]


@pytest.mark.parametrize("path", ["sse/poll", "sse/presence/a/b", "sse/presence/b"])
def test_a_token_may_be_for_presence_alone(make_app: MakeApp, path: str) -> None:
    app = make_app(SSE_SECRET=SECRET, SSE_PUBLIC="", SSE_PRESENCE="*")
    result = run(app, "token", "--sub", "ann", "--presence", "a/*")
    headers = {"Authorization": f"Bearer {result.stdout.strip()}"}
    status = app.test_client().get(f"/{path}?timeout=0&channel=a/b", headers=headers).status_code
    assert status == (200 if path == "sse/presence/a/b" else 403)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--sub", "a", "--subscribe", "a", "--lifetime", "3601"), "SSE_TOKEN_LIFETIME"),
        (("--sub", "a"), "--subscribe, --publish or --presence"),
        (("--sub", "a", "--subscribe", "a*"), "a*"),
        ((), "--sub"),
    ],
)
def test_a_token_that_would_not_be_taken_is_not_made(make_app: MakeApp, arguments: tuple[str, ...], told: str) -> None:
    result = run(make_app(SSE_SECRET=SECRET, SSE_TOKEN_LIFETIME=3600), "token", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


def test_no_token_is_made_without_a_secret(make_app: MakeApp) -> None:
    result = run(make_app(), "token", "--sub", "a", "--publish", "a")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "SSE_SECRET" in result.stderr


def test_with_a_token_one_follows_what_is_not_public(redis_url: str, tmp_path: Path) -> None:
    environment = {"SSE_REDIS_URL": redis_url, "SSE_SECRET": SECRET, "SSE_PUBLISH_KEYS": KEY}
    with Gunicorn(tmp_path, env=environment) as server:
        assert client.publish(server.url, "a", "private", key=KEY).status == 201
        arguments = [sys.executable, "-m", "flask", "sse", "tail", "a", "--replay", "1", *over(server)]
        command = subprocess.Popen(
            arguments, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "THROUGHLINE_TOKEN": signed(claims())}
        )
        with command:
            try:
                assert command.stdout is not None
                assert command.stdout.readline() == b"private\n"
            finally:
                command.send_signal(signal.SIGINT)
        bare = subprocess.run(arguments, cwd=ROOT, capture_output=True, timeout=20, check=False)
        assert (bare.returncode, bare.stdout) == (1, b"")
        assert b"without a token: a" in bare.stderr


def test_what_the_command_revokes_is_refused_by_the_service(make_app: MakeApp, redis_url: str) -> None:
    settings = {"SSE_SECRET": SECRET, "SSE_PUBLIC": "", "SSE_REDIS_URL": redis_url}
    serving, shell = make_app(**settings), make_app(**settings)

    def status(sub: str) -> int:
        headers = {"Authorization": f"Bearer {signed(claims(sub=sub, jti=sub))}"}
        return serving.test_client().get("/sse/poll?timeout=0&channel=a", headers=headers).status_code

    assert [status(sub) for sub in ("ann", "bob", "eve")] == [200] * 3
    result = run(shell, "revoke", "--sub", "ann")
    assert (result.exit_code, result.stdout) == (0, "revoked: sub ann\n")
    result = run(shell, "revoke", "--token", signed(claims(jti="bob")))
    assert (result.exit_code, result.stdout) == (0, "revoked: token bob\n")
    wait_until(lambda: [status(sub) for sub in ("ann", "bob", "eve")] == [401, 401, 200], 2)
    assert run(shell, "revoke", "--channel", "a").exit_code == 0
    wait_until(lambda: status("eve") == 401, 2)
    result = run(shell, "revoke", "--token", signed(claims(jti=None)))
    assert (result.exit_code, "if it has one" in result.stderr) == (2, True)


def test_a_revocation_that_ends_nobody_s_reading_says_so(make_app: MakeApp, redis_url: str) -> None:
    app = make_app(SSE_REDIS_URL=redis_url, SSE_PUBLIC="news/*")
    for arguments, trouble in (
        (("--channel", "news/a"), "channel news/a is public, since SSE_PUBLIC has news/*"),
        (("--token", "7f3a"), "no tokens are configured here"),
    ):
        result = run(app, "revoke", *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert trouble in result.stderr
    assert run(app, "revoke", "--channel", "private").exit_code == 0  # by the app's rule
    assert run(app, "revoke", "--sub", "ann").exit_code == 0  # a view of the app may have named this reader


def test_a_revocation_on_a_public_channel_still_refuses_tokens_that_publish(make_app: MakeApp, redis_url: str) -> None:
    settings = {"SSE_SECRET": SECRET, "SSE_PUBLIC": "*", "SSE_REDIS_URL": redis_url}
    serving, shell = make_app(**settings), make_app(**settings)

    def status() -> int:
        headers = {"Authorization": f"Bearer {signed(claims())}"}
        return serving.test_client().post("/sse/publish/a", data="x", headers=headers).status_code

    assert status() == 201
    result = run(shell, "revoke", "--channel", "a")
    assert result.exit_code == 1
    assert "only tokens that publish there are refused" in result.stderr
    wait_until(lambda: status() == 401, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", "news/*", "x"),
        ("tail", "news/*"),
        ("embed", "--channel", "*"),
        ("revoke", "--channel", "news/*"),
        ("token", "--sub", "a", "--subscribe", "new*"),
    ],
)
def test_a_pattern_that_has_no_place_is_refused_with_the_reason(app: Flask, arguments: tuple[str, ...]) -> None:
    result = run(app, *arguments)
    assert result.exit_code == 2
    hint = "give a channel, *, or news/*" if arguments[0] == "token" else "name each channel: only SSE_PUBLIC"
    assert hint in " ".join(result.stderr.split())


@pytest.mark.parametrize("arguments", [(), ("--sub", "a", "--channel", "b"), ("--sub", ""), ("--channel", "a*")])
def test_one_thing_is_revoked_by_a_command(make_app: MakeApp, redis_url: str, arguments: tuple[str, ...]) -> None:
    assert run(make_app(SSE_REDIS_URL=redis_url), "revoke", *arguments).exit_code == 2


def test_nothing_is_revoked_in_a_memory_that_is_not_the_service_s(make_app: MakeApp) -> None:
    assert run(make_app(), "revoke", "--sub", "ann").exit_code == 2


def test_config_tells_whether_requests_may_go_past_the_app(make_app: MakeApp) -> None:
    def last_line(app: Flask) -> str:
        return run(app, "config").stdout.splitlines()[-1]

    assert last_line(make_app()) == "fast lane  on"
    app = make_app()
    app.before_request(last_line)
    assert "fast lane  off, because the app has the before_request hook test_config" in last_line(app)
    app = make_app(SSE_LANE="on")
    app.before_request(last_line)
    assert "requests pass by  the app has the before_request hook test_config" in last_line(app)


def test_config_tells_of_settings_that_came_too_late(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app()
    app.config["SSE_RING"] = 77
    result = run(app, "config")
    assert re.search("^SSE_RING +1000", result.stdout, re.MULTILINE)
    assert "does not count for SSE_RING" in caplog.text


def test_config_needs_an_app() -> None:
    result = Flask("any").test_cli_runner().invoke(cli, ["config"], obj=ScriptInfo(app_import_path="no_such_module"))
    assert result.exit_code == 2
    assert "no_such_module" in result.stderr


def test_config_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSE_RINGS", "7")
    result = Flask("any").test_cli_runner().invoke(cli, ["config"], obj=ScriptInfo(create_app=create_app))
    assert result.exit_code == 1
    assert "did you mean SSE_RING?" in result.stderr


def test_a_command_in_the_project_s_directory_says_in_one_line_what_is_wrong_with_the_settings() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "flask", "sse", "config"],
        cwd=ROOT,
        env={**os.environ, "SSE_RINGS": "7", "SSE_RETRY": "x"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 3
    assert len(result.stderr.splitlines()) == 1
    assert "did you mean SSE_RING?" in result.stderr
    assert "SSE_RETRY is 'x'" in result.stderr


def test_a_command_in_an_environment_with_another_program_s_settings_tells_of_them_and_goes_on() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "flask", "sse", "config"],
        cwd=ROOT,
        env={**os.environ, "SSE_KMS_KEY_ID": "hush", "SSE_RETRY": "7"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0
    assert re.search("^SSE_RETRY +7", result.stdout, re.MULTILINE)
    assert "SSE_KMS_KEY_ID" in result.stderr
    assert "hush" not in result.stdout + result.stderr


def test_the_app_has_the_commands() -> None:
    assert create_app().cli.get_command(None, "sse") is cli  # type: ignore[arg-type]
