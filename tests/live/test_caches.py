"""A cache that many users share never gives one what another was told, whatever it was made to ignore."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from tests import client
from tests.browser.proxies import Proxy
from tests.client import Stream
from tests.live.load import APP, KEY, address
from tests.servers import Gunicorn
from tests.tokens import SECRET, claims, signed

SECRETS = "the private news of ann"


class Varnish(Proxy):
    """varnish with its own rules."""

    name = "varnish"
    RULES: ClassVar[str] = ""
    CONFIG = 'vcl 4.1;\nbackend default { .host = "127.0.0.1"; .port = "$upstream"; }\nRULES\n'

    def command(self) -> Sequence[str]:
        path = Path(self.configure())
        path.write_text(path.read_text().replace("RULES", self.RULES))
        listen = f"127.0.0.1:{self.port}"
        return [self.program("varnishd"), "-F", "-j", "none", "-n", str(self.dir / f"varnish-{self.port}"),
                "-a", listen, "-f", str(path), "-s", "malloc,16m", "-T", "none"]  # fmt: skip


class GreedyVarnish(Varnish):
    """varnish that looks up requests with cookies and keeps whatever it gets."""

    name = "varnish-greedy"
    RULES = """
sub vcl_recv { if (req.method == "GET") { return (hash); } }
sub vcl_backend_response {
    unset beresp.http.Cache-Control;
    set beresp.ttl = 60s;
    set beresp.uncacheable = false;
    return (deliver);
}
"""


class Squid(Proxy):
    """squid in front of a site, with its own rules."""

    name = "squid"
    RULES: ClassVar[str] = ""
    CONFIG = """\
http_port 127.0.0.1:$port accel defaultsite=localhost no-vhost
cache_peer 127.0.0.1 parent $upstream 0 no-query no-digest originserver login=PASSTHRU
http_access allow all
cache_mem 16 MB
pid_filename $dir/squid-$port.pid
cache_log $dir/squid-cache.log
access_log none
coredump_dir $dir
shutdown_lifetime 0 seconds
pinger_enable off
RULES
"""

    def command(self) -> Sequence[str]:
        path = Path(self.configure())
        path.write_text(path.read_text().replace("RULES", self.RULES))
        self.dir.chmod(0o777)  # it gives up root
        return [self.program("squid"), "-N", "-f", str(path), "-n", f"s{self.port}"]


class GreedySquid(Squid):
    """squid that passes over everything that keeps it from keeping an answer."""

    name = "squid-greedy"
    RULES = (
        "refresh_pattern . 60 100% 60 override-expire override-lastmod ignore-reload ignore-no-store ignore-private\n"
        "collapsed_forwarding on"
    )


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    env = {"SSE_SECRET": SECRET, "SSE_PUBLISH_KEYS": KEY, "SSE_HEARTBEAT": "3"}
    with Gunicorn(tmp_path_factory.mktemp("origin"), APP, env) as server:
        assert client.publish(server.url, "user/ann", SECRETS, key=KEY).status == 201
        yield server


@pytest.fixture(scope="module", params=[Varnish, GreedyVarnish, Squid, GreedySquid])
def cache(request: pytest.FixtureRequest, origin: Gunicorn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with request.param(tmp_path_factory.mktemp("cache"), address(origin.url)[1]) as proxy:
        yield f"http://127.0.0.1:{proxy.port}"


def credentials(way: str, sub: str) -> dict[str, str]:
    token = signed(claims(sub=sub, subscribe=[f"user/{sub}"]))
    return {"Cookie": f"sse_token={token}"} if way == "cookie" else {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("way", ["cookie", "header"])
def test_a_poll_s_answer_is_for_whoever_asked(cache: str, way: str) -> None:
    query = {"channel": "user/ann", "timeout": "0", "replay": "1", "v": way}
    for _ in range(2):
        mine = client.request(cache, "GET", "/sse/poll", query, headers=credentials(way, "ann"))
        assert mine.status == 200
        assert SECRETS.encode() in mine.body
        for headers, status in ((credentials(way, "bob"), 403), ({}, 401)):
            answer = client.request(cache, "GET", "/sse/poll", query, headers=headers)
            assert answer.status == status
            assert SECRETS.encode() not in answer.body


@pytest.mark.parametrize("way", ["cookie", "header"])
def test_a_stream_is_for_whoever_opened_it(cache: str, way: str) -> None:
    query = {"channel": "user/ann", "replay": "1", "w": way}
    with Stream(cache, query, headers=credentials(way, "ann")) as mine:
        assert mine.take(1)[0].data == SECRETS
        for headers, status in ((credentials(way, "bob"), 403), ({}, 401)):
            with Stream(cache, query, headers=headers) as other:
                assert other.status == status
                assert other.next() is None
                assert SECRETS.encode() not in other.received


def test_a_refusal_is_not_kept_for_one_who_may(cache: str) -> None:
    query = {"channel": "user/ann", "timeout": "0", "replay": "1", "x": "1"}
    for headers, status in (({}, 401), (credentials("cookie", "bob"), 403), (credentials("cookie", "ann"), 200)):
        assert client.request(cache, "GET", "/sse/poll", query, headers=headers).status == status
