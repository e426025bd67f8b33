"""The log names once a server that cannot hold streams. tests/live/test_server_kinds.py has real servers."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sse.web.server_check import warn_of_server

OURS = 'worker_class = "sse.worker.Worker"'


@pytest.mark.parametrize(
    ("environ", "named", "remedy"),
    [
        ({"SERVER_SOFTWARE": "gunicorn/27.0.1"}, "gunicorn/27.0.1 answers one request", f"set {OURS}"),
        (
            {"SERVER_SOFTWARE": "gunicorn/27.0.1", "wsgi.multithread": True},
            "gunicorn/27.0.1 has a fixed",
            f"set {OURS}, or",
        ),
        (
            {"SERVER_SOFTWARE": "waitress", "wsgi.multithread": True},
            "waitress has a fixed",
            f"use gunicorn with {OURS}, or",
        ),
        ({"SERVER_SOFTWARE": "Werkzeug/3.1.9"}, "Werkzeug/3.1.9 answers one request", "leave out --without-threads"),
        ({"uwsgi.version": b"2.0.30"}, "uWSGI answers one request", f"use gunicorn with {OURS}"),
    ],
)
def test_a_server_that_cannot_hold_streams_is_named_once_with_the_remedy(
    environ: dict[str, Any], named: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_server(environ)
    warn_of_server(environ)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(named)
    assert remedy in record.getMessage()


@pytest.mark.parametrize("environ", [{}, {"SERVER_SOFTWARE": "Werkzeug/3.1.9", "wsgi.multithread": True}])
def test_nothing_is_said_of_a_test_client_and_of_flask_run(
    environ: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_server(environ)
    assert not caplog.records


def test_nothing_is_said_where_waiting_holds_a_greenlet_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(_: float) -> None:
        """As gevent's, which is of another module."""

    monkeypatch.setattr(time, "sleep", sleep)
    warn_of_server({"SERVER_SOFTWARE": "gunicorn/27.0.1"})
    assert not caplog.records
