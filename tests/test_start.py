"""The steps of docs/start.md build one app, which runs as it is printed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests import client as wire
from tests.servers import ROOT, RedisServer

PAGE = (ROOT / "docs" / "start.md").read_text()


def test_its_lines_run_as_they_stand(tmp_path: Path) -> None:
    example, page, sent, logout, work = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) == 10
    file = tmp_path / "example.py"
    file.write_text(f"{example}\n{page}\n{sent}\n{logout}\n{work}")
    app = runpy.run_path(str(file), run_name="example")["app"]
    app.secret_key = "a-key-of-the-tests"
    client = app.test_client()
    try:
        assert 'data-channels="orders"' in client.get("/").text
        id = client.post("/orders/42/paid").json["id"]
        (event,) = client.get("/sse/poll?channel=orders&replay=1&timeout=0").json["events"]
        assert event == {"channel": "orders", "id": id, "type": "paid", "data": '{"number":42}'}
        for channel in ("None", "invoices", "user/ann", "user/None"):
            assert client.get(f"/sse/poll?channel={channel}&timeout=0").status_code == 403
        with client.session_transaction() as session:
            session["user"] = "ann"
        assert client.get("/sse/poll?channel=user/bob&timeout=0").status_code == 403
        with client.get("/sse/stream?channel=orders&channel=user/ann") as stream:
            blocks = iter(stream.response)
            assert b"sse.open" in next(blocks)
            assert client.post("/logout").status_code == 200
            assert b'"reason":"expired"' in next(blocks)
        assert client.get("/sse/poll?channel=user/ann&timeout=0").status_code == 403
        assert client.post("/logout").status_code == 200
        assert client.post("/sse/publish/orders", data="x").status_code == 404
        assert [client.post("/answers/7", data={"question": "Why?"}).json["begun"] for _ in range(2)] == [True, False]
        blocks = wire.Parser().feed(client.get("/answers/7").data)
        assert "".join(block.data for block in blocks if block.event == "text") == "You asked: Why?"
        assert blocks[-1].json() == {"channel": "answers/7", "reason": "done"}
    finally:
        app.extensions["sse"].close()


@pytest.mark.parametrize("is_away", [False, True])
def test_its_view_lets_its_own_commit_stand_when_the_event_cannot_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_away: bool
) -> None:
    if is_away:
        monkeypatch.setenv("SSE_REDIS_URL", RedisServer(tmp_path).url)
    file = tmp_path / "example.py"
    file.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[:3]))
    names = runpy.run_path(str(file), run_name="example")
    client = names["app"].test_client()
    assert [client.post("/orders/42/sent").json for _ in range(2)] == [{"number": 42}] * 2
    assert names["sent"] == {42}
    if not is_away:
        (event,) = client.get("/sse/poll?channel=orders&replay=9&timeout=0").json["events"]
        assert event["data"] == '{"number":42}'
    assert ("order 42 is sent, but its event may be missing" in caplog.messages) is is_away
    names["sse"].close()
