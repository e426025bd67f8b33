"""Warnings are told once in a while, and never lost without a word."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from sse.log import warn


def test_a_warning_that_comes_often_is_told_once_in_ten_seconds_and_the_rest_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.5  # as soon after the machine's start
    monkeypatch.setattr("sse.log._told", {})
    monkeypatch.setattr("sse.log.time", SimpleNamespace(monotonic=lambda: now))
    with caplog.at_level(logging.WARNING, "sse"):
        for number in range(3):
            warn("%s happened", number)
        warn("%s else", "something")
        now += 9.9
        warn("%s happened", 3)
        now += 0.2
        warn("%s happened", 4)
        now += 10
        warn("%s happened", 5)
    assert caplog.messages == ["0 happened", "something else", "4 happened (and 3 more like it)", "5 happened"]


def test_threads_together_tell_it_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("sse.log._told", {})
    with caplog.at_level(logging.WARNING, "sse"), ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: warn("thread %d", number), range(200)))
    assert len(caplog.messages) == 1
