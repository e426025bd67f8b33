"""The benchmark measures what it says, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.load import Load
from bench.peers import Peer, Process, Target, get, post, start
from bench.scenarios import QUICK, Session, deliveries
from tests.servers import ROOT, free_port

LIAR = ROOT / "tests/live/apps/liar.py"


@pytest.mark.parametrize("lie", ["tells", "loses", "doubles"])
def test_what_is_lost_or_doubled_is_seen_however_frames_are_torn(tmp_path: Path, lie: str) -> None:
    with ExitStack() as stack:
        server = Process(tmp_path, "liar", free_port(), sys.executable, LIAR, lie)
        server.words[2:2] = [str(server.port)]
        start(stack, server)
        target = Target(server.port, [server], get("/"), post("/"), "data: %D\n\n", around=("", "", ""))
        load = stack.enter_context(Load("127.0.0.1", server.port))
        session = Session(Peer("liar", "a liar", lambda *_: target), target, load, QUICK, lambda _: [])
        session.prepare()
        assert load("open", 5, 5, 1)["open"] == 5
        run = deliveries(session, "fanout", 500, 50, 0.5, 2)
        assert run["published"] == 250
        assert run["valid"] == (lie == "tells")
        assert bool(run["lost"]) == (lie == "loses")
        assert bool(run["doubled"]) == (lie == "doubles")
        assert lie == "loses" or run["delivered"] == 5 * 250


def test_a_tiny_run_gives_each_figure(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    words = ["--quick", "--peers", "throughline,raw,bare", "--results", str(results)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(results.read_text())
    assert not outcome["faults"]
    measured = outcome["results"]
    assert {"connects", "polls"} <= measured["bare"].keys()
    assert {"connects", "polls", "publishes", "parked-100", "idle-100", "health-busy"} <= measured["throughline"].keys()
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
