"""The servers that run the app in live tests, other than gunicorn as gunicorn.conf.py has it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.live.load import APP, ENV, address
from tests.servers import Gunicorn, make_certificate


class FlaskRun(Gunicorn):
    """`flask run`: one process, a thread for each connection."""

    name = "flask-run"

    def command(self) -> Sequence[str]:
        host, port = address(self.url)
        return [sys.executable, "-m", "flask", "--app", self.app, "run", "--host", host, "--port", str(port)]

    def worker_pids(self) -> list[int]:
        return [self.pid]


class OneThread(FlaskRun):
    """`flask run` with one thread for all connections."""

    name = "flask-run-one-thread"

    def command(self) -> Sequence[str]:
        return [*super().command(), "--without-threads"]


class Waitress(FlaskRun):
    """waitress, with its four threads."""

    name = "waitress"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "waitress", f"--listen={self.bind}", self.app]


class WSGIRef(FlaskRun):
    """The standard library's server."""

    name = "wsgiref"

    def command(self) -> Sequence[str]:
        program = (
            "import sys; from wsgiref.simple_server import make_server; "
            "from tests.live.apps.inspected import application; "
            "make_server(sys.argv[1], int(sys.argv[2]), application).serve_forever()"
        )
        return [sys.executable, "-c", program, *map(str, address(self.url))]


class PyWSGI(FlaskRun):
    """gevent's own server, without gunicorn."""

    name = "pywsgi"

    def command(self) -> Sequence[str]:
        program = (
            "from gevent import monkey; monkey.patch_all(); from gevent.pywsgi import WSGIServer; import sys; "
            "from tests.live.apps.inspected import application; "
            "WSGIServer((sys.argv[1], int(sys.argv[2])), application).serve_forever()"
        )
        return [sys.executable, "-c", program, *map(str, address(self.url))]


class SecureGunicorn(Gunicorn):
    """gunicorn that ends TLS itself."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, APP, ENV)
        certificate, key = directory / "certificate", directory / "key"
        make_certificate(certificate, key)
        self.arguments = ("--certfile", str(certificate), "--keyfile", str(key))
        self.url = f"https://{self.bind}"


class FewFilesGunicorn(Gunicorn):
    """gunicorn with a hard limit on open files."""

    def __init__(self, *arguments: Any, files: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.files = files

    def command(self) -> Sequence[str]:
        return ["sh", "-c", f'ulimit -n {self.files} && exec "$@"', "sh", *super().command()]
