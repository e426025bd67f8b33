"""With --reload, an app that cannot be loaded ends no process. A page shows the error until the code is fixed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import client
from tests.live.copied_tree import Copy
from tests.live.load import GREENLETS
from tests.servers import wait_until

APP = """
from flask import Flask
from sse import SSE

application = Flask(__name__)
application.config["SSE_HEARTBEAT"] = 15
SSE(application)
application.add_url_rule("/healthz", "healthz", lambda: "version 1")
"""
FAULTS = {
    "SyntaxError": ("application = Flask(__name__)", "application = Flask((__name__)"),
    "IndentationError": ("SSE(application)", "  SSE(application)"),
    "ModuleNotFoundError": ("from sse import SSE", "from sse_ import SSE"),
    "ImportError": ("from sse import SSE", "from sse import SSE, SEE"),
    "NameError": ("SSE(application)", "SSE(aplication)"),
    "ConfigError": ('"SSE_HEARTBEAT"] = 15', '"SSE_HEARTBEAT"] = "soon"'),
    "AppImportError": ("application", "app"),
}


def made(directory: Path, app: str = "mine:application", arguments: Sequence[str] = ()) -> Copy:
    server = Copy(directory, app, arguments=["--reload", "--reload-engine", "poll", *arguments])
    (server.folder / "mine.py").write_text(APP)
    return server


def says(server: Copy) -> tuple[int, str]:
    try:
        answer = client.request(server.url, "GET", "/healthz", timeout=5)
    except OSError:  # in between two workers
        return 0, ""
    return answer.status, answer.body.decode()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_the_start_is_shown_and_mended(tmp_path: Path, fault: str) -> None:
    server = made(tmp_path)
    server.edit("mine.py", *FAULTS[fault])
    with server:
        status, text = says(server)
        assert (status, fault in text) == (500, True), text
        assert fault in server.logs()
        (server.folder / "mine.py").write_text(APP)
        wait_until(lambda: says(server) == (200, "version 1"), 15)


@pytest.mark.parametrize("fault", ["SyntaxError", "NameError", "ConfigError"])
def test_a_fault_in_an_edit_is_shown_and_mended(tmp_path: Path, fault: str) -> None:
    with made(tmp_path) as server:
        assert says(server) == (200, "version 1")
        server.edit("mine.py", *FAULTS[fault])
        wait_until(lambda: fault in says(server)[1], 15)
        assert says(server)[0] == 500
        (server.folder / "mine.py").write_text(APP.replace("version 1", "version 2"))
        wait_until(lambda: says(server) == (200, "version 2"), 15)


@pytest.mark.parametrize("broken", ["def broken(:\n", "import nothing_like_it\n"])
def test_a_fault_further_down_is_mended_where_it_is_or_where_it_is_imported(tmp_path: Path, broken: str) -> None:
    server = made(tmp_path)
    (server.folder / "further.py").write_text(broken)
    server.append("mine.py", "\nimport further\n")
    with server:
        assert says(server)[0] == 500
        (server.folder / "mine.py").write_text(APP)
        wait_until(lambda: says(server) == (200, "version 1"), 15)


def test_a_bad_setting_of_the_service_s_own_app_is_shown_and_mended(tmp_path: Path) -> None:
    server = made(tmp_path, "wsgi:application")
    good = "    sse.init_app(app)"
    bad = f"    app.config['SSE_HEARTBEAT'] = 'soon'\n{good}"
    server.edit("app.py", good, bad)
    with server:
        assert says(server)[0] == 500
        assert "[CRITICAL] Throughline does not start: SSE_HEARTBEAT is 'soon'" in server.logs()
        server.edit("app.py", bad, good)
        wait_until(lambda: says(server) == (200, "ok"), 15)


def test_the_page_shows_no_more_than_the_kind_of_fault(tmp_path: Path) -> None:
    server = made(tmp_path)
    server.append("mine.py", "\nraise ValueError('postgres://me:a-password@db/')\n")
    with server:
        status, text = says(server)
        assert (status, "ValueError" in text, "a-password" in text) == (500, True, False)


def test_gunicorn_s_own_worker_shows_a_syntax_error_and_recovers(tmp_path: Path) -> None:
    server = made(tmp_path, arguments=GREENLETS)
    server.edit("mine.py", *FAULTS["SyntaxError"])
    with server:
        assert says(server)[0] == 500
        (server.folder / "mine.py").write_text(APP)
        wait_until(lambda: says(server) == (200, "version 1"), 15)


@pytest.mark.parametrize("fault", FAULTS)
def test_without_reload_the_master_ends_with_gunicorn_s_code(tmp_path: Path, fault: str) -> None:
    server = Copy(tmp_path, "mine:application")
    (server.folder / "mine.py").write_text(APP)
    server.edit("mine.py", *FAULTS[fault])
    with pytest.raises(AssertionError, match="ended with 4" if fault == "AppImportError" else "ended with 3"):
        server.start()
