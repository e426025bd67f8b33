"""The code blocks of docs/testing.md and docs/work.md run as they are. Lists in the docs match the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask.testing import FlaskClient

from sse.web.answers import ALLOWED_HEADERS
from tests import client as wire
from tests.docs import code_blocks, section
from tests.servers import ROOT, RedisServer, wait_until

PAGE = (ROOT / "docs" / "testing.md").read_text()
WORK = (ROOT / "docs" / "work.md").read_text()
POLL = {"Accept": "application/json"}


@pytest.mark.parametrize("setting", ["SSE_REDIS_URL", "REDIS_URL"])
def test_the_tests_of_the_page_run_and_leave_a_developer_s_redis_alone(
    tmp_path: Path, setting: str, redis_url: str, shared_redis: RedisServer
) -> None:
    app, *tests = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert app.startswith("# orders.py")
    assert tests[0].startswith("# test_orders.py")
    (tmp_path / "orders.py").write_text(app)
    (tmp_path / "test_orders.py").write_text("\n\n".join(tests))
    (tmp_path / "conftest.py").write_text(LEFT)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_orders.py"],
        env=os.environ | {setting: redis_url, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert f"{PAGE.count('def test_')} passed" in done.stdout
    with shared_redis.client() as client:
        assert client.dbsize() == 0


LEFT = """
import threading
import pytest

@pytest.fixture(autouse=True)
def nothing_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sse-")]
"""


def test_the_protocol_lists_the_headers_that_pages_of_other_origins_may_send() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    table = page.partition("## Other origins\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} == set(ALLOWED_HEADERS)


@pytest.fixture
def work() -> Iterator[SimpleNamespace]:
    """The names of the app that docs/work.md builds: all its blocks, one below the other."""
    program = "\n".join(code for language, code in code_blocks(WORK) if language == "python")
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(program.replace("time.sleep(0.1)", "time.sleep(0.01)"), "docs/work.md", "exec"), names)
    yield SimpleNamespace(**names)
    names["sse"].close()


def until_it_has(stream: Any, text: str) -> str:
    """Read a stream up to a text."""
    read = ""
    for part in stream.response:
        read += part.decode()
        if text in read:
            return read
    raise AssertionError(f"the stream has no {text}: {read}")


def of_a_view(client: FlaskClient, path: str, **query: Any) -> Any:
    return client.get(path, query_string={"timeout": 0} | query, headers=POLL).json


def test_work_publishes_to_all_and_lets_a_view_decide(work: SimpleNamespace) -> None:
    client = work.app.test_client()
    with client.get("/sse/stream?channel=orders") as stream:
        until_it_has(stream, "sse.open")
        assert client.post("/orders/42/paid").json["id"].startswith("orders=1-")
        assert 'data: {"number":42}' in until_it_has(stream, "event: paid")
    refused = client.get("/inbox/events")
    assert (refused.status_code, refused.json["error"]["code"]) == (401, "unauthorized")
    with client.session_transaction() as login:
        login["user"] = "ann"
    with client.get("/inbox/events") as stream:
        assert "user/ann" in until_it_has(stream, "sse.open")
        assert client.post("/logout").status_code == 302
        assert '"reason":"expired"' in until_it_has(stream, "sse.close")
    assert client.get("/inbox/events").status_code == 401


def test_work_streams_for_one_client(work: SimpleNamespace) -> None:
    blocks = wire.Parser().feed(work.app.test_client().get("/summary?text=it+rains").data)
    assert [block.data for block in blocks if block.event == "text"] == ["IT ", "RAINS "]
    assert blocks[-1].json()["reason"] == "done"


def test_work_writes_an_answer_that_survives_a_reload_and_is_stopped(work: SimpleNamespace) -> None:
    client = work.app.test_client()
    page = client.post("/answers", data={"question": "Why?"}).location
    assert f'data-view="{page}/events"' in client.get(page).text
    wait_until(lambda: "ended" in of_a_view(client, f"{page}/events"))
    told = of_a_view(client, f"{page}/events")
    assert "".join(event["data"] for event in told["events"]) == "You asked: Why? I do not know yet. "
    assert list(told["ended"].values()) == ["done"]
    page = client.post("/answers", data={"question": "word " * 1000}).location
    assert client.post(f"{page}/stop").json == {"stopped": True}
    wait_until(lambda: list(of_a_view(client, f"{page}/events").get("ended", {}).values()) == ["stopped"])
    with work.app.app_context():
        work.report("reports/1")
        assert not work.sse.run("reports/1", ["again"]), "it was there"
        work.sse.run("reports/2", iter([{"percent": 10}]))


@pytest.mark.parametrize("channel", ["prices/acme", "ticks"])
def test_work_asks_the_upstream_while_somebody_looks(work: SimpleNamespace, channel: str) -> None:
    with work.app.test_client().get(f"/sse/stream?channel={channel}") as stream:
        read = until_it_has(stream, f"id: {channel}=1-")
    assert re.search(r'data: {"(symbol":"acme|at":\d)', read)


def test_work_knows_who_is_there(work: SimpleNamespace) -> None:
    client = work.app.test_client()
    with client.session_transaction() as login:
        login["user"] = "ann"
    with client.get("/sse/stream?channel=room/7") as stream:
        until_it_has(stream, "sse.open")
        told = client.get("/room/7/people").json
    assert (told["count"], [member["sub"] for member in told["members"]]) == (1, ["ann"])


def test_work_has_a_section_and_a_cost_for_each_function() -> None:
    table = WORK.partition("\n## ")[0]
    for name in ("publish", "subscribe", "stream", "source", "run"):
        assert f"](#{name}-" in table
        assert re.search(rf"^\| `?[@.\w]*{name}", section(WORK, "What each costs"), re.MULTILINE), name
