"""Proxies as people have them, right and wrong: each on a free port of loopback, before one upstream there."""

from __future__ import annotations

import os
import shutil
import socket
import string
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tests.servers import Server, free_port


class Proxy(Server):
    """Forwards HTTP from `port` to `upstream`, as `CONFIG` says."""

    CONFIG: ClassVar[str]

    def __init__(self, directory: Path, upstream: int) -> None:
        super().__init__(directory)
        self.port, self.upstream = free_port(), upstream
        self.config = self.dir / f"{self.name}.conf"

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


class PlainNginx(Proxy):
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


class Lighttpd(Proxy):
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


class Caddy(Proxy):
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
        folders = {f"XDG_{kind}_HOME": str(self.dir) for kind in ("CACHE", "CONFIG", "DATA")}
        return super().environment() | folders | {"HOME": str(self.dir)}


class Haproxy(Proxy):
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
