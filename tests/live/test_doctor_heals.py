"""A proxy with the lines that the doctor tells has the fault no more."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sse.doctor.judge import judge
from sse.doctor.measure import measure
from sse.doctor.remedies import remedy_for
from tests.proxy_servers import BufferingNginx, Caddy, GreedyVarnish, Haproxy, Lighttpd, PlainNginx, ProxyServer
from tests.servers import Gunicorn

URL = "http://127.0.0.1/sse"
OF_THIS_PLACE = ("http1",)  # the address begins with http


def lines(code: str, proxy: str) -> str:
    return remedy_for(code, [proxy], {"url": URL})[1]


class HealedNginx(PlainNginx):
    """nginx that buffers all but what the lines are for."""

    name = "nginx-healed"
    EXTRA = f"{BufferingNginx.EXTRA} proxy_read_timeout 5s;"

    def configure(self) -> str:
        path = super().configure()
        healed = lines("buffered", "nginx").replace("8000", str(self.upstream))
        self.config.write_text(self.config.read_text().replace("location / {", f"{healed}\nlocation / {{"))
        return path


class HealedLighttpd(Lighttpd):
    """lighttpd as it comes, with the lines."""

    CONFIG = f"{Lighttpd.CONFIG}{lines('buffered', 'lighttpd')}\n"


class HealedHaproxy(Haproxy):
    """HAProxy with five seconds of patience, and then the lines, which come last."""

    CONFIG = f"{Haproxy.CONFIG}{lines('idle_cutoff', 'haproxy')}\n"


class HealedVarnish(GreedyVarnish):
    """varnish that keeps whatever it gets, after the lines."""

    RULES = lines("shared", "varnish") + GreedyVarnish.RULES


class HealedCaddy(Caddy):
    """Caddy that compresses streams at all paths but those of the lines."""

    matcher, _, encode = lines("compressed", "caddy").partition("\n")
    CONFIG = Caddy.CONFIG.replace("    encode {", f"{matcher}\n{encode.removesuffix(' gzip')} {{")


def test_the_lines_heal_the_fault(tmp_path: Path) -> None:
    kinds: list[type[ProxyServer]] = [HealedNginx, HealedLighttpd, HealedHaproxy, HealedVarnish, HealedCaddy]
    with contextlib.ExitStack() as stack:

        def watch(kind: type[ProxyServer]) -> dict[str, Any]:
            directory = tmp_path / kind.name
            directory.mkdir()
            env = {"SSE_DOCTOR": "1", "SSE_PROXIES": "1"}
            service = Gunicorn(directory, env=env)
            service.start(60)  # five of them start at a time
            stack.callback(service.stop)
            proxy = stack.enter_context(kind(directory, int(service.url.rpartition(":")[2])))
            return measure(f"http://127.0.0.1:{proxy.port}/sse", wait=7, quick=True)

        with ThreadPoolExecutor(len(kinds)) as pool:
            measured = dict(zip(kinds, pool.map(watch, kinds), strict=True))
    for kind, told in measured.items():
        assert told["streams"]["small"]["blocks"], kind
        found = [finding for finding in judge(told) if finding.code not in OF_THIS_PLACE]
        assert found == [], kind
