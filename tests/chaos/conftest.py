"""Fixtures for the chaos tests: a Redis that is made to fail, and totals for the summary of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster, CrashingRedis

TOTALS: pytest.StashKey[Counter[str]] = pytest.StashKey()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[CrashingRedis]:
    with CrashingRedis(tmp_path) as server:
        yield server


@pytest.fixture
def cluster(redis: CrashingRedis) -> Iterator[Cluster]:
    with Cluster(redis) as cluster:
        yield cluster


@pytest.fixture
def totals(pytestconfig: pytest.Config) -> Counter[str]:
    return pytestconfig.stash.setdefault(TOTALS, Counter())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    totals = config.stash.get(TOTALS, None)
    if totals:
        line = ", ".join(f"{count:,} {name}" for name, count in sorted(totals.items()))
        terminalreporter.write_line(f"chaos: {line}")
