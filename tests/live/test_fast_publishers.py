"""Publishers that never pause, and very many channels with one stream each.

Each event that was accepted is delivered, and soon.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.load import Load
from bench.peers import Peer, throughline
from bench.scenarios import QUICK, Session, ask_for_own, flooded

CHANNELS = 1_500


@pytest.mark.parametrize("redis", [False, True], ids=["memory", "Redis"])
def test_what_is_accepted_is_told_however_fast_is_published(tmp_path: Path, redis: bool) -> None:
    with ExitStack() as stack:
        target = throughline(stack, tmp_path, redis=redis)
        load = stack.enter_context(Load("127.0.0.1", target.port))
        session = Session(Peer("throughline", "Throughline", throughline), target, load, QUICK, lambda _: [])
        session.prepare()
        assert target.own
        ask_for_own(session, target.own, CHANNELS)
        load("flood", 1, 50, 1, 0)  # so that each channel is there
        assert load("open", CHANNELS, 32, 1)["open"] == CHANNELS
        time.sleep(0.5)
        run = flooded(session, 16, 50, 2, 5)
        assert run["whole"], run
        assert run["delivered"] == run["published"]
        assert run["kept"] >= 0.75  # a busy machine delivers the last ones after the time
        # From the request on: no more than twice what so many under way take at that pace.
        assert run["p50"] < 1_000 * 2 * 16 * 50 / run["value"]
