"""The benchmark measures what it reports. The tests run it with tiny sizes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.load import Load
from bench.peers import Peer, Process, Target, get, post, start
from bench.scenarios import QUICK, Session, deliveries, flooded, one_publish, per_second, stormed
from tests.servers import ROOT, free_port

LIAR = ROOT / "tests/live/apps/lying_server.py"


@contextmanager
def measuring(directory: Path, lie: str) -> Iterator[tuple[Session, Load]]:
    """Yield a session of the benchmark with the lying server, and its load generator."""
    with ExitStack() as stack:
        server = Process(directory, "liar", free_port(), sys.executable, LIAR, lie)
        server.words[2:2] = [str(server.port)]
        start(stack, server)
        target = Target(server.port, [server], get("/"), post("/"), "data: %D\n\n", around=("", "", ""))
        load = stack.enter_context(Load("127.0.0.1", server.port))
        session = Session(Peer("liar", "a liar", lambda *_: target), target, load, QUICK, lambda _: [])
        session.prepare()
        yield session, load


@pytest.mark.parametrize("lie", ["tells", "loses", "doubles"])
def test_what_is_lost_or_doubled_is_seen_however_frames_are_torn(tmp_path: Path, lie: str) -> None:
    with measuring(tmp_path, lie) as (session, load):
        assert load("open", 5, 5, 1)["open"] == 5
        run = deliveries(session, "fanout", 500, 50, 0.5, 2)
        assert run["published"] == 250
        assert run["valid"] == (lie == "tells")
        assert bool(run["lost"]) == (lie == "loses")
        assert bool(run["doubled"]) == (lie == "doubles")
        assert lie == "loses" or run["delivered"] == 5 * 250


@pytest.mark.parametrize("lie", ["tells", "loses", "doubles"])
def test_what_is_lost_or_doubled_on_a_channel_of_its_own_is_seen(tmp_path: Path, lie: str) -> None:
    with measuring(tmp_path, lie) as (session, load):
        load("own", 1)
        assert load("open", 1, 1, 1)["open"] == 1
        run = flooded(session, 1, 50, 0.3, 2)
        assert run["accepted"] >= 50
        assert run["valid"] == (lie == "tells")
        assert bool(run["lost"]) == (lie == "loses")
        assert bool(run["doubled"]) == (lie == "doubles")


@pytest.mark.parametrize("lie", ["tells", "forgets", "repeats"])
def test_what_a_stream_misses_or_has_twice_after_a_storm_is_seen(tmp_path: Path, lie: str) -> None:
    with measuring(tmp_path, lie) as (session, load):
        session.size = replace(QUICK, patience=10 if lie == "tells" else 1)
        load.set("again", get("/").replace("\r\n\r\n", "\r\nLast-Event-ID: %I\r\n\r\n"))
        load("places", 1, 0)
        run = stormed(session, 1, missed=True)
        assert [told["published"] for told in run["told"]] == [1, 1, 1]
        assert run["valid"] == (lie == "tells")
        assert run["live"] == (lie != "forgets")
        assert bool(run["doubled"]) == (lie == "repeats")


@pytest.mark.parametrize("check", ["201 Created", "202 Accepted"])
def test_an_answer_without_what_it_should_have_does_not_count(tmp_path: Path, check: str) -> None:
    with measuring(tmp_path, "tells") as (session, _):
        session.target.checks = {"publish": check}
        session.ask("one", one_publish(session.target), "publish")
        for command in ("ask", "fresh"):
            run = per_second(session, command, "one", 2, 0.3)
            assert run["answers"] > 0
            assert run["valid"] == (check == "201 Created")


def test_a_tiny_run_gives_each_figure(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    words = ["--quick", "--peers", "throughline,raw,bare", "--results", str(results)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(results.read_text())
    assert not outcome["faults"]
    measured = outcome["results"]
    assert {"connects", "polls"} <= measured["bare"].keys()
    assert {"connects", "polls", "publishes", "parked-100", "idle-100", "health-busy"} <= measured["throughline"].keys()
    assert {"own-idle", "shared-idle", "own-open-ratio", "own-reopen-ratio"} <= measured["throughline"].keys()
    assert {"polls-new", "polls-unlike", "held", "pages", "kept-100", "stream-busy"} <= measured["throughline"].keys()
    assert {"greedy-health-beside-polls", "greedy-poll-beside-polls"} <= measured["throughline"].keys()
    for name in ("held", "pages", "kept-100", "storm-shared", "storm-own"):
        [run] = measured["throughline"][name]
        assert run["valid"], run
    for name in ("single", "batch"):
        [run] = measured["throughline"][f"own-{name}"]
        assert run["whole"], run
        assert run["delivered"] == run["published"] > 0
        assert 0 < run["p50"] <= run["p99"]
        assert 0 < run["kept"]
    [greedy] = measured["throughline"]["greedy-ratio"]
    assert greedy["value"] > 0
    for peer in ("throughline", "raw"):
        for streams in QUICK.streams:
            for measure in ("single", "fanout"):
                [run] = measured[peer][f"{measure}-{streams}"]
                assert run["valid"], run
                assert run["delivered"] == run["published"] * streams > 0
                assert (run["lost"], run["doubled"]) == (0, 0)
                assert 0 < run["p50"] <= run["p99"]
    ratios = {goal["what"]: goal["value"] for goal in outcome["goals"]}
    assert ratios["one at a time to 100: times the raw C loop"] > 0
    assert ratios["one at a time to 100: times nchan"] is None  # it did not run
    assert "| Throughline" in done.stdout


def test_another_checkout_is_served_from_its_own_folder_and_compared(tmp_path: Path) -> None:
    """The other checkout notes when its own code is imported."""
    other = checkout(tmp_path)
    wsgi = other / "wsgi.py"
    wsgi.write_text(f"{wsgi.read_text()}\nopen({str(tmp_path / 'served')!r}, 'a').write(__file__)\n")
    results = tmp_path / "results.json"
    words = ["--quick", "--peers", "throughline,raw", "--only", "greedy", "--against", str(other)]
    words += ["--results", str(results)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(wsgi) in (tmp_path / "served").read_text()
    measured = json.loads(results.read_text())["results"]
    assert measured["throughline"].keys() == measured["throughline@against"].keys()
    assert "| Throughline: greedy-publishes-32 " in done.stdout.partition("As ratios to")[2]


def test_the_costs_of_two_checkouts_are_compared(tmp_path: Path) -> None:
    """A request to the other checkout takes 3 ms of CPU more, and an import of it 300."""
    other = checkout(tmp_path)
    wsgi = other / "wsgi.py"
    slow = """
import time
app = application
def application(environ, start_response):
    end = time.thread_time() + 0.003
    while time.thread_time() < end:
        pass
    return app(environ, start_response)
"""
    wsgi.write_text(wsgi.read_text() + slow)
    extension = other / "sse/extension.py"
    extension.write_text(
        f"{extension.read_text()}\nimport time\nend = time.process_time() + 0.3\n"
        "while time.process_time() < end:\n    pass\n"
    )
    results = tmp_path / "results.json"
    words = ["--quick", "--costs", "--peers", "throughline", "--only", "requests,own,shared", "--against", str(other)]
    words += ["--results", str(results)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(results.read_text())
    for what in ("a poll", "a publish", "a stream"):
        for here, there in told["pairs"][f"Throughline: {what}, CPU s"]:
            assert there - here > 0.001
    assert all(there - here > 0.1 for here, there in told["pairs"]["from sse import SSE, CPU s"])
    for name in ("a delivery, own channels", "a delivery on the shared channel"):
        assert all(here > 0 and there > 0 for here, there in told["pairs"][f"Throughline: {name}, CPU s"])
    assert sum("KB of RSS" in name for name in told["pairs"]) == 2
    assert {len(pairs) for pairs in told["pairs"].values()} == {2}
    assert told["intervals"]["Throughline: a poll, CPU s"]["verdict"] == "not known yet"  # after two rounds
    assert "| Throughline: a poll, CPU s " in done.stdout


def checkout(tmp_path: Path) -> Path:
    """Return the folder of a copy of the code that serves."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("sse", "static", "demo"):
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("app.py", "wsgi.py", "gunicorn.conf.py"):
        shutil.copy(ROOT / name, other / name)
    return other


def test_costs_are_compared_with_something(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench", "--quick", "--costs"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "give --against" in done.stderr


def test_what_is_no_checkout_is_refused(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench", "--quick", "--against", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"{tmp_path} is no checkout of this project" in done.stderr
