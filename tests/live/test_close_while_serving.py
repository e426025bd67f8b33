"""An app that closes its service while it serves.

Waiting streams and polls are told, and reconnect to a new service.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import client
from tests.client import Stream
from tests.live.load import ENV, inspect
from tests.publishing import publish
from tests.servers import Gunicorn, wait_until


def test_streams_and_polls_that_share_a_row_are_told(tmp_path: Path, store_url: str | None) -> None:
    env = ENV | ({"SSE_REDIS_URL": store_url} if store_url else {})
    with (
        Gunicorn(tmp_path, "tests.live.apps.closing:application", env) as server,
        ThreadPoolExecutor(3) as others,
        contextlib.ExitStack() as stack,
    ):
        [last] = publish(server, "a", "x")
        streams = [stack.enter_context(Stream(server.url, [("channel", "a")])) for _ in range(3)]
        path = f"/sse/poll?channel=a&timeout=30&last_event_id={last}"
        polls = [others.submit(client.request, server.url, "GET", path, timeout=20) for _ in range(3)]
        wait_until(lambda: inspect(server)["subscribers"] == 6)
        assert client.request(server.url, "GET", "/close", timeout=20).body == b"closed"
        for stream in streams:
            assert stream.until("sse.close").json()["reason"] == "drain"
            assert stream.next() is None
            assert stream.complete
        for poll in polls:
            assert poll.result(5).json()["last_event_id"] == last
        with Stream(server.url, [("channel", "a")], last_event_id=last) as stream:
            event = stream.until("sse.open")
            assert event.json()["channels"]["a"]["resumed"] is bool(store_url)
        assert "Traceback" not in server.logs()
