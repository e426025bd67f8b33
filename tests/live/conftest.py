"""Fixtures for the live tests. The report of a failed test shows the logs of its servers."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import servers


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(server.log.name, server.logs()) for server in servers.running if server.process]
    return report


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[servers.RedisServer]:
    with servers.RedisServer(tmp_path) as server:
        yield server
