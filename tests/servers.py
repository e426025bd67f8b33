"""Real servers for the tests. Each listens on a free port of 127.0.0.1, and is stopped by its own process id."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self, TypeVar

import redis

from tests import client

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
running: weakref.WeakSet[Server] = weakref.WeakSet()  # whose logs a failing test shows
logs: set[Path] = set()  # that may tell no secret


def free_port() -> int:
    """Return a port below the ephemeral range, so that a client never connects to itself while its server is down."""
    for _ in range(200):
        port = random.SystemRandom().randrange(12000, 32000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port in 12000-32000")


def wait_until(check: Callable[[], T], timeout: float = 10, interval: float | None = None, what: str = "") -> T:
    """Return the first true result of `check`. AssertionError after `timeout` seconds.

    `interval` is the time between two looks. Where it is not given, it grows with the wait from 0.02 to 0.1 s, because
    a look may be a question to a browser, which costs more than all that the test waits for.
    """
    began = time.monotonic()
    while not (result := check()):
        waited = time.monotonic() - began
        if waited > timeout:
            raise AssertionError(f"not within {timeout} s: {what or check}")
        time.sleep(min(max(waited / 10, 0.02), 0.1) if interval is None else interval)
    return result


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def session(leader: int) -> list[int]:
    """Return the living processes of the session that `leader` began, also those whose parents have ended."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader and _alive(pid):
                found.append(pid)
    return found


def open_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Server:
    """A process with a log. As a context manager it is started, and always stopped."""

    name = "server"
    folder = ROOT
    """Where it is started."""

    def __init__(self, directory: Path) -> None:
        self.dir = Path(directory)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.log = self.dir / f"{self.name}-{id(self):x}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def ready(self) -> bool:
        raise NotImplementedError

    def logs(self) -> str:
        return self.log.read_text(errors="replace")[-64_000:] if self.log.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} is not running"
        return self.process.pid

    def start(self, timeout: float = 15) -> Self:
        assert self.process is None, f"{self.name} is running"
        logs.add(self.log)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        running.add(self)
        process = self.process
        try:
            wait_until(lambda: process.poll() is not None or self.ready(), timeout, what=f"{self.name} is ready")
            if process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {process.returncode}")
        except BaseException as error:
            self.kill()
            error.add_note(f"--- {self.log.name}\n{self.logs()}")
            raise
        return self

    def stop(self, timeout: float = 5, by: signal.Signals = signal.SIGTERM) -> None:
        """Ask the process to end, and kill it if it does not."""
        if self.process is None:
            return
        self.process.send_signal(by)
        try:
            self.process.wait(timeout)
            self.process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the process and its children."""
        if self.process is None:
            return
        pids = children(self.pid) if self.process.poll() is None else []
        self.process.kill()
        self.process.wait(10)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(_alive(pid) for pid in pids), 10, what=f"{self.name}'s children are gone")
        self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class RedisServer(Server):
    """A redis-server that keeps its port over restarts. Settings are given as `maxmemory="20mb"`."""

    name = "redis"

    def __init__(self, directory: Path, **config: Any) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.config = {"save": "", "appendonly": "no", "loglevel": "notice"} | config
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.dump = self.dir / f"dump-{self.port}.rdb"

    def command(self) -> Sequence[str]:
        fixed = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": self.dir,
            "dbfilename": self.dump.name,
            "appenddirname": f"aof-{self.port}",
        }
        pairs = (self.config | fixed).items()
        return [
            "redis-server",
            *(part for name, value in pairs for part in (f"--{name.replace('_', '-')}", str(value))),
        ]

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis("127.0.0.1", self.port, **({"socket_timeout": 10, "decode_responses": True} | options))

    def ready(self) -> bool:
        with contextlib.closing(self.client(password=self.config.get("requirepass"))) as connection:
            try:
                return bool(connection.ping())
            except redis.exceptions.ConnectionError:  # BusyLoadingError is one
                return False

    def snapshot(self) -> None:
        """Save the state to which `restart(lost_writes=True)` goes back."""
        with contextlib.closing(self.client(password=self.config.get("requirepass"))) as connection:
            connection.save()

    def restart(self, lost_writes: bool = False, down: float = 0) -> None:
        """Kill Redis, wait `down` seconds, and start it with all writes, or without those since the snapshot."""
        append_only = self.config["appendonly"] == "yes"
        assert not (append_only and lost_writes), "an append-only file loses no writes: use snapshots"
        if not lost_writes and not append_only:
            self.snapshot()
        self.kill()
        time.sleep(down)
        self.start()


class Gunicorn(Server):
    """The repository's gunicorn and its configuration, without other settings of the service than `env`."""

    name = "gunicorn"

    def __init__(
        self,
        directory: Path,
        app: str = "wsgi:application",
        env: Mapping[str, str] | None = None,
        workers: int = 1,
        bind: str | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        super().__init__(directory)
        self.app, self.workers, self.arguments = app, workers, arguments
        self.bind = bind or f"127.0.0.1:{free_port()}"
        self.url = self.bind if self.bind.startswith("unix:") else f"http://{self.bind}"
        self.env = dict(env or {})

    def command(self) -> Sequence[str]:
        return [
            sys.executable,
            "-m",
            "gunicorn",
            "-c",
            "gunicorn.conf.py",
            "--no-control-socket",
            *self.arguments,
            self.app,
        ]

    def environment(self) -> dict[str, str]:
        own = ("SSE_", "REDIS_URL", "BIND", "PORT", "WEB_CONCURRENCY", "GUNICORN_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        lane = {"SSE_LANE": "off"} if os.environ.get("LANE") == "off" else {}
        return kept | {"BIND": self.bind, "WEB_CONCURRENCY": str(self.workers)} | self.env | lane

    def worker_pids(self) -> list[int]:
        return children(self.pid)

    def fds(self) -> int:
        """Return how many file descriptors all workers hold together."""
        return sum(open_fds(pid) for pid in self.worker_pids())

    def ready(self) -> bool:
        if len(self.worker_pids()) < self.workers:
            return False
        try:
            return client.request(self.url, "GET", "/healthz", timeout=5).status > 0
        except OSError:
            return False

    def stop(self, timeout: float = 5, by: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it at once by default. `by=signal.SIGTERM` lets requests finish first."""
        super().stop(timeout, by)


class Nginx(Server):
    """The repository's nginx.conf, with the edits that each machine needs. Each edit must find its text.

    `upstream` is `127.0.0.1:8000` or `unix:/path`; `edits` are further exact replacements, as an operator's.
    """

    name = "nginx"

    def __init__(self, directory: Path, upstream: str, edits: Mapping[str, str] | None = None) -> None:
        super().__init__(directory)
        self.http_port, self.https_port = free_port(), free_port()
        self.url = f"https://127.0.0.1:{self.https_port}"
        self.http_url = f"http://127.0.0.1:{self.http_port}"
        self.access_log, self.error_log = self.dir / "throughline.log", self.dir / "error.log"
        logs.update((self.access_log, self.error_log))
        self.config = self.dir / "nginx.conf"
        files = self.files()
        for old, new in {**self.places(upstream), **(edits or {})}.items():
            assert any(old in text for text in files.values()), f"nginx's configuration has no {old!r}"
            files = {name: text.replace(old, new) for name, text in files.items()}
        for name, text in files.items():
            (self.dir / name).parent.mkdir(exist_ok=True)
            (self.dir / name).write_text(text)
        make_certificate(self.dir / "throughline.crt", self.dir / "throughline.key")

    def places(self, upstream: str) -> dict[str, str]:
        """Return the edits that have it run in `dir`, on free ports."""
        temporary = "".join(
            f"    {kind}_temp_path {self.dir}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return {
            "server_name push.example;": "server_name localhost;",
            "server 127.0.0.1:8000;": f"server {upstream};",
            "user www-data;": "user root;" if os.getuid() == 0 else "",
            "worker_processes auto;": "worker_processes 1;",
            "/run/nginx.pid": f"{self.dir}/nginx.pid",
            "/var/log/nginx/": f"{self.dir}/",
            "/etc/nginx/throughline.": f"{self.dir}/throughline.",
            "listen 80;": f"listen 127.0.0.1:{self.http_port};",
            "listen [::]:80;": "",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{self.https_port} ssl http2;",
            "listen [::]:443 ssl http2;": "",
            "http {\n": f"http {{\n{temporary}",
        }

    def files(self) -> dict[str, str]:
        """Return the text of each file below /etc/nginx, by name."""
        return {"nginx.conf": (ROOT / "nginx.conf").read_text()}

    def command(self) -> Sequence[str]:
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert program, "nginx is not installed"
        return [program, "-c", str(self.config), "-e", str(self.error_log), "-g", "daemon off;"]

    def logs(self) -> str:
        errors = self.error_log.read_text(errors="replace")[-4000:] if self.error_log.exists() else ""
        return super().logs() + errors

    def test(self) -> subprocess.CompletedProcess[str]:
        """Return the result of `nginx -t`."""
        return subprocess.run([*self.command(), "-t"], check=False, capture_output=True, text=True, timeout=20)

    def ready(self) -> bool:
        try:
            client.connect(self.url, 5).close()
        except OSError:
            return False
        return True


class NginxBeside(Nginx):
    """Debian's nginx with two other sites, and deploy/nginx/throughline.conf as docs/deploying.md installs it.

    Neither of the other sites says default_server, and their names sort around "throughline".
    """

    # Debian 12's and Ubuntu 24.04's, without the comments, and without `gzip on`, which a test adds.
    DEBIAN = """\
user www-data;
worker_processes auto;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log;
include /etc/nginx/modules-enabled/*.conf;

events {
\tworker_connections 768;
\t# multi_accept on;
}

http {
\tsendfile on;
\ttcp_nopush on;
\ttypes_hash_max_size 2048;
\tinclude /etc/nginx/mime.types;
\tdefault_type application/octet-stream;
\tssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3; # Dropping SSLv3, ref: POODLE
\tssl_prefer_server_ciphers on;
\taccess_log /var/log/nginx/access.log;
\tinclude /etc/nginx/sites-enabled/*;
}
"""
    # With all that a site may set for the others too, and with the names that come to mind first.
    OTHER = """\
upstream app { server 127.0.0.1:9; }
upstream sse { server 127.0.0.1:9; }
limit_req_zone $binary_remote_addr zone=subscribe:1m rate=1r/m;
limit_req_zone $binary_remote_addr zone=publish:1m rate=1r/m;
limit_conn_zone $binary_remote_addr zone=held:1m;
log_format no_query '$remote_addr';
map $http_origin $any_origin { default "other"; }
server_tokens on;
limit_req_status 444;
limit_conn_status 444;
proxy_intercept_errors on;
proxy_next_upstream error timeout non_idempotent http_503;
proxy_ignore_client_abort on;
proxy_buffering on;
error_page 404 429 500 502 503 504 =418 /broken;
server {
    server_name shop.example;
    listen 80;
    listen 443 ssl;
    ssl_certificate /etc/nginx/throughline.crt;
    ssl_certificate_key /etc/nginx/throughline.key;
    ssl_session_cache shared:tls:1m;
    location / { default_type text/plain; return 200 "the shop"; }
}
"""
    LAST = """\
server {
    server_name www.example;
    listen 80;
    listen 443 ssl;
    ssl_certificate /etc/nginx/throughline.crt;
    ssl_certificate_key /etc/nginx/throughline.key;
    location / { default_type text/plain; return 200 "the website"; }
}
"""

    def __init__(self, directory: Path, upstream: str, edits: Mapping[str, str] | None = None) -> None:
        super().__init__(directory, upstream, edits)
        # By name: an address would reach the first of the sites.
        self.url, self.http_url = (url.replace("127.0.0.1", "localhost") for url in (self.url, self.http_url))

    def places(self, upstream: str) -> dict[str, str]:
        """Return the edits that have it run in `dir`, on free ports."""
        return {
            **super().places(upstream),
            "/etc/nginx/sites-enabled/": f"{self.dir}/sites-enabled/",
            "listen 443 ssl;": f"listen 127.0.0.1:{self.https_port} ssl;",
        }

    def files(self) -> dict[str, str]:
        """Return the text of each file below /etc/nginx, by name."""
        site = (ROOT / "deploy/nginx/throughline.conf").read_text()
        return {
            "nginx.conf": self.DEBIAN,
            "sites-enabled/shop": self.OTHER,
            "sites-enabled/www": self.LAST,
            "sites-enabled/zz-throughline.conf": site,
        }


class HttpServer(ThreadingHTTPServer):
    """An HTTP server in a thread of the tests, which answers with its handler while its block runs."""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join(5)
        self.server_close()


def make_certificate(certificate: Path, key: Path) -> None:
    """Make a self-signed certificate for localhost."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "7",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
