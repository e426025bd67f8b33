"""Real proxies and caches as people run them, right and wrong: each on a free port of loopback, before one upstream."""

from __future__ import annotations

import os
import shutil
import socket
import string
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tests.servers import Server, free_port

APACHE = "/usr/lib/apache2/modules"


class ProxyServer(Server):
    """A proxy that forwards HTTP from `port` to the port `upstream`, as `CONFIG` says."""

    CONFIG: ClassVar[str]

    def __init__(self, directory: Path, upstream: int) -> None:
        super().__init__(directory)
        self.port, self.upstream = free_port(), upstream
        self.config = self.dir / f"{self.name}.conf"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def program(self, name: str) -> str:
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        assert found, f"{name} is not installed"
        return found

    def configure(self) -> str:
        values = {"dir": self.dir, "port": self.port, "upstream": self.upstream}
        self.config.write_text(string.Template(self.CONFIG).substitute(values))
        return str(self.config)

    def ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


class PlainNginx(ProxyServer):
    """nginx with nothing but `proxy_pass`."""

    name = "nginx-plain"
    EXTRA: ClassVar[str] = ""
    CONFIG = """\
worker_processes 1;
pid $dir/nginx.pid;
events { }
http {
    access_log off;
    client_body_temp_path $dir/client_body;
    proxy_temp_path $dir/proxy;
    fastcgi_temp_path $dir/fastcgi;
    uwsgi_temp_path $dir/uwsgi;
    scgi_temp_path $dir/scgi;
    server {
        listen 127.0.0.1:$port;
        location / {
            proxy_pass http://127.0.0.1:$upstream;
            EXTRA
        }
    }
}
"""

    def command(self) -> Sequence[str]:
        path = Path(self.configure())
        user = "user root;\n" if os.getuid() == 0 else ""
        path.write_text(user + path.read_text().replace("EXTRA", self.EXTRA))
        return [self.program("nginx"), "-c", str(path), "-e", f"{self.dir}/error.log", "-g", "daemon off;"]


class BufferingNginx(PlainNginx):
    """nginx that buffers whatever the app asks for: a stream stays mute, its headers too."""

    name = "nginx-buffering"
    EXTRA = "proxy_ignore_headers X-Accel-Buffering; proxy_buffering on;"


class Lighttpd(ProxyServer):
    """lighttpd as it comes: it hands a body over when that is complete."""

    name = "lighttpd"
    CONFIG = """\
server.modules = ("mod_proxy")
server.bind = "127.0.0.1"
server.port = $port
server.document-root = "$dir"
server.upload-dirs = ("$dir")
proxy.server = ("" => (("host" => "127.0.0.1", "port" => $upstream)))
"""

    def command(self) -> Sequence[str]:
        return [self.program("lighttpd"), "-D", "-f", self.configure()]


class Caddy(ProxyServer):
    """Caddy that compresses streams: their headers arrive, and never an event."""

    name = "caddy"
    CONFIG = """\
{
    admin off
    auto_https off
    storage file_system $dir/storage
}
http://127.0.0.1:$port {
    bind 127.0.0.1
    encode {
        gzip
        minimum_length 1
        match header Content-Type text/event-stream*
    }
    reverse_proxy 127.0.0.1:$upstream
}
"""

    def command(self) -> Sequence[str]:
        return [self.program("caddy"), "run", "--adapter", "caddyfile", "--config", self.configure()]

    def environment(self) -> dict[str, str]:
        return super().environment() | caddy_folders(self.dir)


def caddy_folders(directory: Path) -> dict[str, str]:
    """Return the environment that keeps Caddy's files in `directory`."""
    return {name: str(directory) for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HOME")}


class Haproxy(ProxyServer):
    """HAProxy that has five seconds of patience with either side."""

    name = "haproxy"
    CONFIG = """\
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen app
    bind 127.0.0.1:$port
    server app 127.0.0.1:$upstream
"""

    def command(self) -> Sequence[str]:
        return [self.program("haproxy"), "-db", "-f", self.configure()]


class Cache(ProxyServer):
    """A cache with its own rules."""

    RULES: ClassVar[str] = ""
    KEEPS: ClassVar[Sequence[str]] = ()  # what it gives again to those who had it, though that has `no-store`
    JOINS: ClassVar[bool] = False  # whether equal requests wait for the first one's answer

    def configure(self) -> str:
        path = super().configure()
        self.config.write_text(self.config.read_text().replace("RULES", self.RULES))
        return path


class Varnish(Cache):
    """varnish as it comes: it passes on what has a cookie or an Authorization header."""

    name = "varnish"
    CONFIG = 'vcl 4.1;\nbackend default { .host = "127.0.0.1"; .port = "$upstream"; }\nRULES\n'

    def command(self) -> Sequence[str]:
        listen = f"127.0.0.1:{self.port}"
        return [self.program("varnishd"), "-F", "-j", "none", "-n", str(self.dir / f"varnish-{self.port}"),
                "-a", listen, "-f", self.configure(), "-s", "malloc,16m", "-T", "none"]  # fmt: skip


class GreedyVarnish(Varnish):
    """varnish that looks up requests with credentials too, and keeps whatever it gets."""

    name = "varnish-greedy"
    KEEPS = ("health", "cookie", "header", "ticket", "stream", "refusal")
    JOINS = True
    RULES = """
sub vcl_recv { if (req.method == "GET" || req.method == "HEAD") { return (hash); } }
sub vcl_backend_response {
    unset beresp.http.Cache-Control;
    set beresp.ttl = 60s;
    set beresp.grace = 1h;
    set beresp.uncacheable = false;
    return (deliver);
}
"""


class StaleVarnish(GreedyVarnish):
    """varnish that gives what is no longer fresh, and asks for it anew meanwhile."""

    name = "varnish-stale"
    RULES = GreedyVarnish.RULES.replace("60s", "1ms")


class StrippingVarnish(GreedyVarnish):
    """varnish that takes from requests what would tell their users apart."""

    name = "varnish-stripping"
    RULES = GreedyVarnish.RULES.replace(
        "sub vcl_recv {",
        "sub vcl_recv { unset req.http.Cookie; unset req.http.Authorization; "
        'set req.url = regsub(req.url, "[?&]token=[^&]*", "");',
    )


class CarelessVarnish(GreedyVarnish):
    """varnish that throws away what keeps answers apart, and knows them by a URL without the ticket."""

    name = "varnish-careless"
    RULES = (
        GreedyVarnish.RULES.replace("unset", "unset beresp.http.Vary;\n    unset")
        + 'sub vcl_hash { hash_data(regsub(req.url, "[?&]token=[^&]*", "")); return (lookup); }'
    )


class Squid(Cache):
    """squid in front of a site, with Debian's rules."""

    name = "squid"
    RULES = "refresh_pattern -i (/cgi-bin/|\\?) 0 0% 0\nrefresh_pattern . 0 20% 4320"
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
        self.dir.chmod(0o777)  # it gives up root
        return [self.program("squid"), "-N", "-f", self.configure(), "-n", f"s{self.port}"]


class JoiningSquid(Squid):
    """squid that lets equal requests wait for one answer, before it knows whether that may be shared."""

    name = "squid-joining"
    JOINS = True
    RULES = f"{Squid.RULES}\ncollapsed_forwarding on"


class GreedySquid(JoiningSquid):
    """squid with every override that it still knows; it never keeps an answer to an Authorization header."""

    name = "squid-greedy"
    KEEPS = ("health",)
    RULES = (
        "refresh_pattern . 60 100% 60 override-expire override-lastmod ignore-reload ignore-no-store ignore-private "
        "store-stale\nvary_ignore_expire on\ncollapsed_forwarding on"
    )


class OfflineSquid(GreedySquid):
    """squid that never asks again about what it has."""

    name = "squid-offline"
    KEEPS = ("health", "cookie", "ticket")
    RULES = f"{GreedySquid.RULES}\noffline_mode on"


class TicketlessSquid(GreedySquid):
    """squid that knows answers by URLs without the ticket."""

    name = "squid-ticketless"
    RULES = (
        GreedySquid.RULES
        + r"""
store_id_program /bin/sed -u s/.token=[^&[:space:]]*//;s/[[:space:]].*//;s/^/OK\x20store-id=/
store_id_children 1 startup=1
"""
    )
