"""Who is measured: how each server is started, and how it is asked.

Every server runs on one core, with all its processes; Redis, where one is needed, runs on the other, with the load.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.load import BUILD, LOAD_CORE, SERVER_CORE, on_core, program
from tests import client
from tests.servers import ROOT, Gunicorn, Nginx, RedisServer, Server, free_port, wait_until

KEY = "a-publishing-key-for-the-benchmark"
ORIGIN = "https://site.example"
RING = 1000
JSON = ("Content-Type: application/json",)
MODULE = "ngx_nchan_module.so"
AGAINST = "@against"
"""End of the name of a peer that is another checkout of this project."""


class CannotRun(Exception):
    """What a peer needs is not here."""


class Own(NamedTuple):
    """How streams on channels of their own are asked for and published to: templates in which %C is the channel.

    `both` asks for a stream on a channel of its own and on one for all, that of `Target.item`. `comes_back` is True
    where the scenario "own" restarts the server, because a stream's first block has an id.
    """

    stream: str
    publish: str
    item: str
    both: str = ""
    comes_back: bool = False


@dataclass
class Target:
    """A server that runs: its requests as templates, in which %D is an event's data and %C its channel's digit."""

    port: int
    servers: Sequence[Server]  # whose memory counts
    stream: str
    publish: str
    item: str = '"%D"'
    around: tuple[str, str, str] = ("[", ",", "]")  # before the first item, between two, after the last
    each: bool = False  # a request for each event
    channels: int = 1
    answers_first: bool = True  # sends a stream's head before its first event
    health: str = ""
    empty_poll: str = ""  # one that is answered at once, with nothing
    poll: Callable[[], str] | None = None  # one that is answered at once, with one event
    page: str = ""  # the first request of a page, which is answered at once
    page_stream: str = ""  # the second one, in which %I is the id that the first was answered with
    parked: Callable[[], str] | None = None  # one that waits
    redis: RedisServer | None = None
    scripts: bool = False  # it publishes by a script in Redis, to compare with that script alone
    own: Own | None = None
    resumes: bool = False  # a stream goes on after its Last-Event-ID
    busy: str = ""  # what a stream's first block has when the server is busy
    checks: Mapping[str, str] = field(default_factory=dict)
    """A text that each answer to a request has to contain, by the name of the request's field above."""

    def resumed(self, stream: str) -> str:
        """Return a stream's request as a client sends it that has been told an id."""
        return stream.replace("\r\n\r\n", "\r\nLast-Event-ID: %I\r\n\r\n")


@dataclass(frozen=True)
class Peer:
    """One row of the tables."""

    name: str
    label: str
    start: Callable[[ExitStack, Path], Target]
    scenarios: tuple[str, ...] = ("requests", "streams")
    every_round: tuple[str, ...] = ()  # the scenarios that goals compare; one round does for the others
    most: int = 10_000  # streams that it can hold with 20,000 files


class Process(Server):
    """A server that is ready when it answers; one that answers no GET, when it listens."""

    def __init__(
        self, directory: Path, name: str, port: int, *words: object, knock: str = "", env: dict[str, str] | None = None
    ) -> None:
        self.name = name
        super().__init__(directory)
        self.port, self.words, self.knock, self.env = port, [str(word) for word in words], knock, env or {}

    def command(self) -> Sequence[str]:
        return self.words

    def environment(self) -> dict[str, str]:
        return super().environment() | self.env

    def ready(self) -> bool:
        url = f"http://127.0.0.1:{self.port}"
        try:
            if self.knock:
                return client.request(url, "GET", self.knock, timeout=5).status == 200
            client.connect(url, 5).close()
        except OSError:
            return False
        return True


def get(path: str) -> str:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {ORIGIN}\r\n\r\n"


def post(path: str, *headers: str) -> str:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers, "Content-Length: %L"]
    return "\r\n".join(lines) + "\r\n\r\n"


def start(stack: ExitStack, server: Server, core: int = SERVER_CORE) -> None:
    with on_core(core):
        stack.enter_context(server)


def start_redis(stack: ExitStack, folder: Path) -> RedisServer:
    server = RedisServer(folder, maxclients=15000)
    start(stack, server, LOAD_CORE)
    return server


# Throughline


def throughline(
    stack: ExitStack,
    folder: Path,
    *,
    redis: bool = False,
    nginx: bool = False,
    five: bool = False,
    lane: str = "",
    root: Path = ROOT,
) -> Target:
    """As a site has it: public patterns, origins, limits, resumable ids. `root` is the checkout that serves.

    `lane` is SSE_LANE, if it is not left at its default.
    """
    if lane and not _knows(root, "lane"):
        raise CannotRun(f"{root} has no fast lane")
    store = start_redis(stack, folder) if redis else None
    env = {
        "SSE_PUBLIC": "bench/* user/*",
        "SSE_ORIGINS": ORIGIN,
        "SSE_PUBLISH_KEYS": KEY,
        "SSE_RING": str(RING),
        "SSE_MAX_SUBSCRIBERS": "12000",
        # On, and out of the way.
        "SSE_LIMIT_PUBLISH": "1000000/second",
        "SSE_LIMIT_CHANNEL": "1000000/second",
        **({"SSE_LIMIT_PUBLISH_BYTES": "10000000000/second"} if _knows(root, "limit_publish_bytes") else {}),
        **({"SSE_REDIS_URL": store.url} if store else {}),
        **({"SSE_LANE": lane} if lane else {}),
    }
    server = Gunicorn(folder, env=env, bind=f"unix:{folder}/throughline.sock" if nginx else None)
    server.folder = root
    start(stack, server)
    if _knows(root, "lane"):
        _tell_lane(server, "" if root != ROOT else "off" if lane == "off" else "on")
    servers: list[Server] = [server]
    if nginx:
        # As it is, but without TLS, which the others do not have either.
        front = Nginx(folder, server.bind, {"return 308 https://$server_name$request_uri;": ""})
        start(stack, front)
        servers.append(front)
        port = front.http_port
    else:
        port = int(server.bind.rpartition(":")[2])
    url = f"http://127.0.0.1:{port}"

    def published() -> list[str]:
        body = json.dumps([{"channel": "bench/0", "data": "x" * 128}] * 2).encode()
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        ids: list[str] = json.loads(client.request(url, "POST", "/sse/publish", headers=headers, body=body).body)["ids"]
        return ids

    def poll() -> str:
        return get(f"/sse/poll?channel=bench/0&last_event_id={published()[0]}")

    def parked() -> str:
        return get(f"/sse/poll?channel=bench/0&timeout=60&last_event_id={published()[1]}")

    publish = post("/sse/publish", f"Authorization: Bearer {KEY}", *JSON)
    channels = 5 if five else 1
    query = "&".join(f"channel=bench/{number}" for number in range(channels))
    return Target(
        port,
        servers,
        stream=get(f"/sse/stream?{query}"),
        publish=publish,
        item='{"channel":"bench/%C","data":"%D"}',
        channels=channels,
        health=get("/healthz"),
        empty_poll=get("/sse/poll?channel=bench/0&timeout=0"),
        poll=poll,
        # As sse.js asks: each page has an id of its own, and no two requests are the same.
        page=get("/sse/poll?channel=bench/0&timeout=1&max_bytes=1024&client=of-page-%N&_=%N"),
        page_stream=get("/sse/stream?last_event_id=%I&channel=bench/0&client=of-page-%N&_=%N"),
        parked=parked,
        redis=store,
        scripts=True,
        resumes=True,
        busy="event: sse.close",
        checks={
            "stream": "event: sse.open",
            "publish": '"ids"',
            "poll": '"data":"xxxx',
            "page": '"last_event_id":"bench/0=',
            "empty_poll": '"events":[]',
        },
        own=Own(
            get("/sse/stream?channel=user/%C"),
            publish,
            '{"channel":"user/%C","data":"%D"}',
            both=get("/sse/stream?channel=user/%C&channel=bench/0"),
            comes_back=True,
        ),
    )


def _knows(root: Path, setting: str) -> bool:
    """Tell whether the checkout knows a setting. A service refuses to start with one that it does not know."""
    return f" {setting}:" in (root / "sse/config.py").read_text()


def _tell_lane(server: Server, wanted: str) -> None:
    """Print what the log says of the fast lane. Raise CannotRun if that is not `on` or `off`, as it is wanted."""

    def said() -> str:
        found = re.search(r"fast lane: (.*)", server.logs())
        return found[1] if found else ""

    wait_until(said, 5, what="the log tells of the fast lane")
    if wanted not in ("", said().partition(",")[0]):
        raise CannotRun(f"the fast lane is {said()}")
    if said() != wanted:
        print(f"  the fast lane is {said()}")


def bare(stack: ExitStack, folder: Path) -> Target:
    """A Flask app with one view, on Throughline's worker."""
    target = gunicorn(stack, folder, "bench.apps.bare:app", "sse.worker.Worker", "/bare")
    target.poll = lambda: get("/bare")
    target.checks = {}
    target.stream, target.publish = get("/bare"), ""
    return target


# Others


def gunicorn(
    stack: ExitStack, folder: Path, app: str, worker: str = "gevent", knock: str = "/healthz", **env: str
) -> Target:
    port = free_port()
    words = ["-m", "gunicorn", "-c", "bench/apps/gunicorn_settings.py", "-k", worker, "-b", f"127.0.0.1:{port}", app]
    server = Process(folder, "gunicorn", port, sys.executable, *words, knock=knock, env=env)
    start(stack, server)
    return with_channels(port, server)


def with_channels(port: int, server: Server) -> Target:
    """The target that an app is whose streams name a channel, or else have the one without a name."""
    publish = post("/publish", *JSON)
    own = Own(get("/stream?channel=%C"), publish, '{"channel":"%C","data":"%D"}')
    item = '{"channel":"","data":"%D"}'
    checks = {"stream": ": open"}
    return Target(port, [server], get("/stream"), publish, item, health=get("/healthz"), own=own, checks=checks)


def flask_sse(stack: ExitStack, folder: Path) -> Target:
    redis = start_redis(stack, folder)
    target = gunicorn(stack, folder, "bench.apps.with_flask_sse:app", REDIS_URL=redis.url)
    target.answers_first = False
    target.item, target.own, target.checks = '"%D"', None, {}  # a stream says nothing before its channel's first event
    return target


def sse_starlette(stack: ExitStack, folder: Path) -> Target:
    port = free_port()
    words = ["-m", "uvicorn", "--port", port, "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    words += ["bench.apps.with_sse_starlette:app"]
    server = Process(folder, "uvicorn", port, sys.executable, *words, knock="/healthz")
    start(stack, server)
    return with_channels(port, server)


def nchan_module() -> Path:
    """The module as Debian has it: installed, or unpacked in our folder."""
    for folder in (Path("/usr/lib/nginx/modules"), BUILD / "nchan/usr/lib/nginx/modules"):
        if (folder / MODULE).exists():
            return folder / MODULE
    BUILD.mkdir(exist_ok=True)
    package = "libnginx-mod-nchan"
    if shutil.which("apt-get") is None or not shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        raise CannotRun(f"nginx with {package} is needed")
    subprocess.run(["apt-get", "download", package], cwd=BUILD, capture_output=True, check=False, timeout=60)
    for found in BUILD.glob(f"{package}_*.deb"):
        subprocess.run(["dpkg", "-x", found, BUILD / "nchan"], check=True, timeout=60)
        return BUILD / "nchan/usr/lib/nginx/modules" / MODULE
    raise CannotRun(f"{package} cannot be had: apt-get install {package}")


def nchan(stack: ExitStack, folder: Path, *, redis: bool = False) -> Target:
    module = nchan_module()
    store = start_redis(stack, folder) if redis else None
    port = free_port()
    upstream = f"upstream store {{ nchan_redis_server {store.url}; }}" if store else ""
    storage = "nchan_redis_pass store;" if store else ""
    channel = f"nchan_channel_id bench; {storage}"
    config = folder / "nchan.conf"
    config.write_text(f"""
        load_module {module};
        worker_processes 1; daemon off; pid {folder}/nchan.pid; error_log {folder}/nchan.log error;
        {"user root;" if os.getuid() == 0 else ""}
        events {{ worker_connections 19000; multi_accept on; }}
        http {{
            access_log off; keepalive_requests 1000000000; keepalive_timeout 75s; tcp_nodelay on;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
            uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
            nchan_shared_memory_size 256M;
            {upstream}
            server {{
                listen 127.0.0.1:{port} backlog=4096;
                location = /publish {{
                    nchan_publisher; {channel}
                    nchan_message_buffer_length {RING}; nchan_message_timeout 1h;
                }}
                location = /stream {{ nchan_subscriber eventsource; {channel} nchan_subscriber_first_message newest; }}
                location = /poll {{ nchan_subscriber longpoll; {channel} nchan_subscriber_first_message oldest; }}
                location = /parked {{ nchan_subscriber longpoll; {channel} nchan_subscriber_first_message newest; }}
                location ~ ^/publish/([0-9]+)$ {{
                    nchan_publisher; nchan_channel_id $1; {storage}
                    nchan_message_buffer_length {RING}; nchan_message_timeout 1h;
                }}
                location ~ ^/stream/([0-9]+)$ {{
                    nchan_subscriber eventsource; nchan_channel_id $1; {storage}
                    nchan_subscriber_first_message newest;
                }}
                location = /healthz {{ return 200 "ok"; }}
            }}
        }}""")
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or "nginx"
    server = Process(folder, "nchan", port, nginx, "-c", config, "-e", folder / "nchan.log", knock="/healthz")
    start(stack, server)

    def stores() -> bool:
        with contextlib.suppress(OSError):
            return (
                client.request(f"http://127.0.0.1:{port}", "POST", "/publish", body=b"x" * 128, timeout=1).status < 300
            )
        return False

    wait_until(stores)  # 503 until it has found Redis

    def stream(path: str) -> str:
        return get(path).replace("\r\n\r\n", "\r\nAccept: text/event-stream\r\n\r\n")

    return Target(
        port,
        [server],
        stream=stream("/stream"),
        publish=post("/publish", "Content-Type: text/plain"),
        item="%D",
        each=True,
        health=get("/healthz"),
        poll=lambda: get("/poll"),
        page=get("/poll"),
        page_stream=stream("/stream"),
        parked=lambda: get("/parked"),
        redis=store,
        resumes=True,
        checks={"stream": ": hi\n", "poll": "xxxx", "page": "xxxx"},
        own=Own(stream("/stream/%C"), post("/publish/%C", "Content-Type: text/plain"), "%D"),
    )


def raw(stack: ExitStack, folder: Path, *words: str) -> Target:
    port = free_port()
    server = Process(folder, "raw", port, program("raw"), port, *words)
    start(stack, server)
    item = "id: bench=%N-2893764512345678\ndata: %D\n\n"
    return Target(port, [server], get("/"), post("/"), item, around=("", "", ""))


OWN: dict[str, Callable[..., Target]] = {
    "throughline": throughline,
    "throughline-redis": partial(throughline, redis=True),
    "throughline-five": partial(throughline, five=True),
    "throughline-nginx": partial(throughline, nginx=True),
    "throughline-off": partial(throughline, lane="off"),
    "throughline-redis-off": partial(throughline, redis=True, lane="off"),
}
LANE = ("requests", "held", "pages", "kept", "busy", "own", "storm", "greedy")
"""The scenarios that measure what the fast lane is for."""
NCHAN = (*LANE, "parked", "streams")
ALL = (*NCHAN, "shared")
REDIS = ("requests", "streams", "busy", "own", "storm", "greedy")
OWN_TOO = ("requests", "streams", "busy", "own")
MANY = ("streams", "busy")
COMPARED = ("requests", "held", "streams", "busy", "own", "storm", "greedy")
PEERS = [
    Peer("throughline", "Throughline", OWN["throughline"], ALL, COMPARED),
    Peer("nchan", "nchan", nchan, NCHAN, ("requests", "held", "streams", "own", "storm")),
    Peer("raw", "raw C loop", raw, ("streams",), ("streams",)),
    Peer("throughline-off", "Throughline, lane off", OWN["throughline-off"], LANE),
    Peer("throughline-redis", "Throughline, Redis", OWN["throughline-redis"], REDIS, COMPARED),
    Peer("nchan-redis", "nchan, Redis", lambda s, f: nchan(s, f, redis=True), REDIS[:-1], ("requests", "streams")),
    Peer("throughline-redis-off", "Throughline, Redis, lane off", OWN["throughline-redis-off"], ("requests", "storm")),
    Peer("bare", "a bare Flask view", bare, ("requests",)),
    Peer("throughline-five", "Throughline, five channels", OWN["throughline-five"], MANY),
    Peer("throughline-nginx", "Throughline behind nginx", OWN["throughline-nginx"], MANY, most=9_500),
    Peer("naive", "Flask, a queue for each", lambda s, f: gunicorn(s, f, "bench.apps.naive:app"), OWN_TOO),
    Peer("flask-sse", "flask-sse, Redis", flask_sse, MANY, most=5_000),
    Peer("sse-starlette", "sse-starlette, uvicorn", sse_starlette, OWN_TOO),
    Peer("raw-joined", "the load generator's limit", lambda s, f: raw(s, f, "joined"), ("streams",)),
]  # fmt: skip


def against(peer: Peer, root: Path) -> Peer | None:
    """The same of this project as another checkout has it; None for what is not of this project."""
    if peer.name not in OWN:
        return None
    start = partial(OWN[peer.name], root=root)
    return replace(peer, name=f"{peer.name}{AGAINST}", label=f"{peer.label}, {root}", start=start)
