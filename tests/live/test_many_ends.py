"""Very many streams of one run end together: each gets the end, and they come back one after another."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sse.stores import connect
from tests.live.load import ENV
from tests.live.test_request_heads import cpu
from tests.servers import ROOT, Gunicorn, RedisServer
from tests.writing import Run, kept_alive


def tenths(values: list[float], low: float, high: float) -> list[int]:
    """Return how many of the values are in each tenth of the range."""
    counts = [0] * 10
    for value in values:
        assert low <= value <= high
        counts[min(9, int((value - low) / (high - low) * 10))] += 1
    return counts


@pytest.mark.parametrize(("streams", "retry"), [(1000, 4000), pytest.param(10_000, 30_000, marks=pytest.mark.long)])
def test_each_stream_gets_the_whole_text_and_the_end_and_comes_back_once_at_a_time_of_its_own(
    tmp_path: Path, streams: int, retry: int
) -> None:
    env = ENV | {"SSE_HEARTBEAT": "15", "SSE_RETRY": str(retry)}
    with RedisServer(tmp_path) as redis, Gunicorn(tmp_path, env=env | {"SSE_REDIS_URL": redis.url}) as server:
        store = connect(redis.url, ring=1000, ring_ttl=86_400)
        run = Run(store, "many")
        words = [f"word {number} of a text\n" for number in range(60)]
        run.write(*words[:20])
        client = subprocess.Popen(
            [sys.executable, "-m", "tests.live.streams_of_a_run", server.bind, "many", str(streams)],
            stdout=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip

        def told() -> dict[str, Any]:
            assert client.stdout
            line = client.stdout.readline()
            assert line, "the client has failed"
            return dict(json.loads(line))

        try:
            with kept_alive(run):
                assert told() == {"streams": streams}
                begun = cpu(server)
                for word in words[20:]:
                    run.write(word)
            before_end = time.monotonic()
            run.end()
            ended = told()
            used = cpu(server) - begun
            texts = told()["texts"]
            assert client.wait(10) == 0
        finally:
            client.kill()
            client.wait(10)
            assert client.stdout
            client.stdout.close()
            store.close()
        assert texts == {"".join(words): streams}
        assert len(ended["retries"]) == streams
        spread = tenths(ended["retries"], retry / 10, retry)
        assert min(spread) > 0
        assert max(spread) <= 1.5 * streams / 10, "the reconnects are spread"
        assert ended["returned"] == {"204": streams}
        moments = ended["moments"]
        asked = tenths(moments, min(moments), max(moments))
        print(
            f"{streams} streams: the last has its end after {ended['ended_at'] - before_end:.2f} s; "
            f"CPU of the worker: {used:.2f} s for 40 pieces, the ends and the 204s; "
            f"retries by tenths {spread}; requests by tenths of {max(moments) - min(moments):.0f} s {asked}"
        )
