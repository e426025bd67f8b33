"""`flask sse run`: a command's output as a run, in real processes over a real Redis."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sse import Publisher
from sse.event import Event, Piece
from sse.stores import RedisStore, Standing, Store
from tests.servers import ROOT, RedisServer, wait_until


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    made = RedisStore(redis_url, ring=1000, ring_ttl=3600)
    yield made
    made.close()


def standing(store: Store) -> Standing:
    [found] = store.standing(["job"])
    assert isinstance(found, Standing)
    return found


def events(store: Store) -> list[Event]:
    run = standing(store).run
    if run is None:
        return []
    [page] = store.read([("job", run.anchor)], limit=10_000, max_bytes=1 << 30)
    return [entry.event for entry in page.entries]  # type: ignore[union-attr]


def text(store: Store) -> str:
    return "".join(event.data for event in events(store) if isinstance(event, Piece))


def end(store: Store) -> str | None:
    run = standing(store).run
    return run.end if run else None


@contextlib.contextmanager
def started(url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a `flask sse run job` that goes on. It is killed at the end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SSE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "app", "sse", "run", "job", *arguments],
        cwd=ROOT,
        env=kept | {"SSE_REDIS_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(url: str, *arguments: str) -> tuple[int, str]:
    """Return the exit status and the standard error of `flask sse run job`."""
    with started(url, *arguments) as process:
        _, told = process.communicate(timeout=30)
        return process.returncode, told


def test_the_lines_of_a_command_are_a_text_that_ends_with_it(store: Store, redis_url: str) -> None:
    status, told = finished(redis_url, "--", "sh", "-c", "echo one; echo two >&2; printf 'gr\\303\\274\\303\\237e'")
    assert (status, told) == (0, "two\n")
    assert text(store) == "one\ngrüße"
    assert end(store) == "done"


def test_standard_error_is_written_too_if_that_is_asked_for(store: Store, redis_url: str) -> None:
    status, told = finished(redis_url, "--stderr", "--", "sh", "-c", "echo one; echo two >&2")
    assert (status, told) == (0, "")
    assert text(store) == "one\ntwo\n"


def test_each_line_comes_as_soon_as_it_is_complete(store: Store, redis_url: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"print('one'); print('tw', end=''); open({str(gate)!r}).read(); print('o')"
    with started(redis_url, "--", sys.executable, "-c", script) as process:
        wait_until(lambda: text(store) == "one\n")
        assert process.poll() is None
        gate.write_text("go on")
        assert process.wait(10) == 0
    assert text(store) == "one\ntwo\n"


@pytest.mark.parametrize(("command", "expected"), [("exit 3", 3), ("kill -TERM $$", 143), ("echo so far; exit 1", 1)])
def test_a_command_that_fails_ends_the_channel_as_failed(
    store: Store, redis_url: str, command: str, expected: int
) -> None:
    status, _ = finished(redis_url, "--", "sh", "-c", command)
    assert status == expected
    assert end(store) == "failed"
    assert text(store) == ("so far\n" if "so far" in command else "")


def test_a_command_that_is_not_there_is_127(store: Store, redis_url: str) -> None:
    status, told = finished(redis_url, "--", "/nowhere/at-all", "-x")
    assert (status, told) == (127, "/nowhere/at-all: No such file or directory\n")
    assert end(store) == "failed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_command_and_its_children(
    store: Store, redis_url: str, number: signal.Signals, tmp_path: Path
) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/child; echo begun; wait"
    with started(redis_url, "--", "sh", "-c", script) as process:
        wait_until(lambda: text(store) == "begun\n")
        process.send_signal(number)
        assert process.wait(5) == 130
    assert end(store) == "stopped"
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not is_running(child), 3)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_page_that_stops_the_run_ends_a_silent_command(store: Store, redis_url: str) -> None:
    with started(redis_url, "--", "sh", "-c", "echo begun; sleep 60") as process:
        wait_until(lambda: text(store) == "begun\n")
        with Publisher(redis_url=redis_url) as publisher:
            assert publisher.stop("job")
        assert process.wait(5) == 143
        assert process.stderr
        assert "the command is stopped" in process.stderr.read()
    assert end(store) == "stopped"


def test_a_command_that_does_not_heed_the_signal_is_killed(store: Store, redis_url: str) -> None:
    script = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('begun')\ntime.sleep(60)"
    with started(redis_url, "--", sys.executable, "-c", script) as process:
        wait_until(lambda: text(store) == "begun\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(8) == 130
    assert end(store) == "stopped"


def test_a_second_run_on_the_channel_is_refused_unless_it_restarts(store: Store, redis_url: str) -> None:
    assert finished(redis_url, "--", "echo", "one")[0] == 0
    status, told = finished(redis_url, "--", "echo", "two")
    assert status == 1
    assert "channel job has or had a run: give another channel, or --restart" in told
    assert text(store) == "one\n"
    assert finished(redis_url, "--restart", "--", "echo", "two")[0] == 0
    assert text(store) == "two\n"


def test_a_command_waits_while_redis_is_away(tmp_path: Path) -> None:
    with RedisServer(tmp_path, appendonly="yes", appendfsync="always") as redis:
        script = "for i in $(seq 1 40); do echo line $i; sleep 0.1; done"
        with started(redis.url, "--", "sh", "-c", script) as process:
            store = RedisStore(redis.url, ring=1000, ring_ttl=3600)
            wait_until(lambda: "line 5\n" in text(store))
            redis.restart(down=2)
            assert process.wait(30) == 0
            assert text(store) == "".join(f"line {number}\n" for number in range(1, 41))
            assert end(store) == "done"
            store.close()


def test_without_redis_the_command_says_what_to_set() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "app", "sse", "run", "job", "--", "true"],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
        env={name: value for name, value in os.environ.items() if not name.startswith(("SSE_", "REDIS_"))},
    )  # fmt: skip
    assert ran.returncode == 2
    assert "set SSE_REDIS_URL" in ran.stderr
