"""The code blocks of docs/testing.md run as they are. Lists in the docs match the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sse.web.answers import ALLOWED_HEADERS
from tests.servers import ROOT, RedisServer

PAGE = (ROOT / "docs" / "testing.md").read_text()


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
