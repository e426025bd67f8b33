"""The proxies of deploy/, each with its files as they are written there, and the edits that each machine needs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tests.proxy_servers import APACHE, ProxyServer, caddy_folders
from tests.servers import ROOT, free_port, logs, make_certificate


class Deployed(ProxyServer):
    """A proxy with a file of deploy/. Each edit must find its text, as in `servers.Nginx`."""

    FILE: ClassVar[str]
    LOGS: ClassVar[Sequence[str]] = ()

    def __init__(self, directory: Path, upstream: int, edits: Mapping[str, str] | None = None) -> None:
        super().__init__(directory, upstream)
        self.plain_port = free_port()
        self.plain_url = f"http://localhost:{self.plain_port}"
        text = (ROOT / "deploy" / self.FILE).read_text()
        for old, new in {**self.places(), **(edits or {})}.items():
            assert old in text, f"deploy/{self.FILE} has no {old!r}"
            text = text.replace(old, new)
        self.CONFIG = text  # type: ignore[misc]
        self.certificate, self.key = self.dir / "throughline.crt", self.dir / "throughline.key"
        make_certificate(self.certificate, self.key)
        (self.dir / "throughline.pem").write_text(self.certificate.read_text() + self.key.read_text())
        logs.update(self.dir / name for name in self.LOGS)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def configure(self) -> str:
        self.config.write_text(self.CONFIG)
        return str(self.config)

    def places(self) -> dict[str, str]:
        """Return the edits that have it run in `dir`, on free ports of loopback, in front of `upstream`."""
        return {"127.0.0.1:8000": f"127.0.0.1:{self.upstream}"}


class DeployedCaddy(Deployed):
    """deploy/caddy, with a certificate of the tests' own."""

    name = "caddy-deployed"
    FILE = "caddy/Caddyfile"

    def places(self) -> dict[str, str]:
        options = f"admin off\n    auto_https disable_redirects\n    storage file_system {self.dir}/storage"
        site = f"bind 127.0.0.1\n    tls {self.dir}/throughline.crt {self.dir}/throughline.key"
        return super().places() | {
            "\n{\n    #": f"\n{{\n    {options}\n    #",
            "\npush.example {\n": f"\nhttps://localhost:{self.port} {{\n    {site}\n",
        }

    def command(self) -> Sequence[str]:
        return [self.program("caddy"), "run", "--adapter", "caddyfile", "--config", self.configure()]

    def environment(self) -> dict[str, str]:
        return super().environment() | caddy_folders(self.dir)


class DeployedApache(Deployed):
    """deploy/apache as a site of Debian's apache2.conf, with the modules that its README enables."""

    name = "apache-deployed"
    FILE = "apache/throughline.conf"
    LOGS = ("throughline.log", "throughline-error.log", "error.log")

    def places(self) -> dict[str, str]:
        return super().places() | {
            "*:443>": f"127.0.0.1:{self.port}>",
            "*:80>": f"127.0.0.1:{self.plain_port}>",
            "ServerName push.example": "ServerName localhost",
            "https://push.example/": f"https://localhost:{self.port}/",
            "/etc/apache2/throughline.": f"{self.dir}/throughline.",
            "/etc/apache2/throughline-later.asis": f"{ROOT}/deploy/apache/throughline-later.asis",
            "MaxRequestWorkers 4096": "MaxRequestWorkers 4096\n    StartServers 1",
        }

    def configure(self) -> str:
        readme = (ROOT / "deploy/apache/README.md").read_text()
        modules = readme.partition("a2enmod ")[2].partition("\n")[0].split()
        extra = "".join(f"LoadModule {name}_module {APACHE}/mod_{name}.so\n" for name in [*modules, "socache_shmcb"])
        head = apache_head(self.dir, [self.port, self.plain_port], extra)
        self.config.write_text(head + self.CONFIG)
        return str(self.config)

    def command(self) -> Sequence[str]:
        return [self.program("apache2"), "-D", "FOREGROUND", "-f", self.configure()]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"APACHE_LOG_DIR": str(self.dir)}


def apache_head(directory: Path, ports: Sequence[int], extra: str = "") -> str:
    """Return what a configuration of Apache needs to run in `directory`, with Debian's modules and `extra`."""
    base = ("mpm_event", "alias", "authz_core", "env", "reqtimeout", "setenvif")
    loaded = "".join(f"LoadModule {name}_module {APACHE}/mod_{name}.so\n" for name in base)
    user = "User www-data\nGroup www-data\n" if os.getuid() == 0 else ""
    listens = "".join(f"Listen 127.0.0.1:{port}\n" for port in ports)
    return f"""\
ServerRoot {directory}
DefaultRuntimeDir {directory}
PidFile {directory}/apache.pid
ErrorLog {directory}/error.log
{user}ServerName localhost
Timeout 300
{loaded}{extra}RequestReadTimeout header=20-40,minrate=500 body=20,minrate=500
{listens}"""


class DeployedHaproxy(Deployed):
    """deploy/haproxy, without the chroot and the user of Debian's package."""

    name = "haproxy-deployed"
    FILE = "haproxy/haproxy.cfg"

    def places(self) -> dict[str, str]:
        return super().places() | {
            "    log /dev/log local0 notice\n": "    log stderr format raw local0\n",
            "    chroot /var/lib/haproxy\n    user haproxy\n    group haproxy\n": "",
            "    maxconn 40000\n": "    maxconn 400\n",
            "bind :80": f"bind 127.0.0.1:{self.plain_port}",
            "bind :443": f"bind 127.0.0.1:{self.port}",
            "/etc/haproxy/throughline.pem": f"{self.dir}/throughline.pem",
        }

    def command(self) -> Sequence[str]:
        return [self.program("haproxy"), "-db", "-f", self.configure()]


class DeployedVarnish(Deployed):
    """deploy/varnish, with the parameters of its README."""

    name = "varnish-deployed"
    FILE = "varnish/throughline.vcl"

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def places(self) -> dict[str, str]:
        return {'"8000"': f'"{self.upstream}"'}

    def command(self) -> Sequence[str]:
        unit = (ROOT / "deploy/varnish/varnish.service.conf").read_text()
        options = [part for parameter in re.findall(r" -p (\S+)", unit) for part in ("-p", parameter)]
        return [self.program("varnishd"), "-F", "-j", "none", "-n", str(self.dir / f"varnish-{self.port}"),
                "-a", f"127.0.0.1:{self.port}", "-f", self.configure(), "-s", "malloc,16m", "-T", "none",
                *options]  # fmt: skip


DEPLOYED: Sequence[type[Deployed]] = (DeployedCaddy, DeployedApache, DeployedHaproxy, DeployedVarnish)
