"""The origin of the tests' pages. It serves pages/, collects the pages' reports, and sends commands to the pages."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import deque
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.client import target
from tests.servers import ROOT, HttpServer, free_port, wait_until

PAGES = Path(__file__).parent / "pages"


class Report:
    """The reports of one page: its newest state, and its logs, which arrive in parts."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.logs: dict[str, list[Any]] = {}
        self.count = 0
        self.commands: deque[list[Any]] = deque()

    def take(self, told: dict[str, Any]) -> None:
        self.state = told["state"]
        for name, (start, items) in told["logs"].items():
            self.logs.setdefault(name, [])[start:] = items
        self.count += 1


class Origin:
    """Pages on their own port, because a browser has only six connections to the host under test."""

    def __init__(self) -> None:
        self.reports: dict[str, Report] = {}
        self._server = HttpServer(("127.0.0.1", free_port()), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def page(self, path: str, name: str, **parameters: Any) -> str:
        """Return the address of a page that reports as `name`."""
        self.reports[name] = Report()
        return self.url + target(f"/{path}", {"name": name, **parameters})

    def command(self, name: str, command: str, argument: Any = None) -> None:
        """Send the page a command with the answer to its next report."""
        self.reports[name].commands.append([command, argument])

    def wait_for_report(self, name: str, timeout: float = 30) -> Report:
        """Wait for a report that the page makes from now on, and return it."""
        report = self.reports[name]
        seen = report.count
        wait_until(lambda: report.count > seen, timeout, what=f"{name} reports")
        return report

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def _handler(self) -> type[SimpleHTTPRequestHandler]:
        reports = self.reports

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(PAGES))

            def do_GET(self) -> None:
                if urlsplit(self.path).path != "/sse.js":
                    super().do_GET()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/javascript; charset=utf-8")
                self.end_headers()
                with (ROOT / "static/sse.js").open("rb") as script:
                    shutil.copyfileobj(script, self.wfile)

            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                report = reports[told["name"]]
                report.take(told)
                answer = json.dumps([report.commands.popleft() for _ in range(len(report.commands))]).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # its page was left
                    self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
