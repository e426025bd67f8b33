"""Ways to the service through real proxies, right, naive and hostile, and the faults that the doctor must name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.deployed import APACHE, DEPLOYED, apache_head
from tests.proxy_servers import (
    BufferingNginx,
    Cache,
    Caddy,
    GreedyVarnish,
    Haproxy,
    Lighttpd,
    OfflineSquid,
    PlainNginx,
    ProxyServer,
    Squid,
    Varnish,
)
from tests.servers import Gunicorn, Nginx, NginxBeside, Server, free_port, make_certificate

Make = Callable[[Path, int], Any]
"""Makes a server with a `url`, in a directory, in front of a port."""


@dataclass(frozen=True)
class Front:
    """A way to the service: the codes of the faults and warnings that the doctor must tell, and no others.

    `faults` is true with time-outs of five seconds. `real` are the codes with the time-outs that people have, if these
    are others: there, a heartbeat comes in time.
    """

    name: str
    make: Make | None
    faults: frozenset[str] = frozenset()
    warnings: frozenset[str] = frozenset()
    real: frozenset[str] | None = None
    origin: str = "https://a.example"

    @property
    def proxy(self) -> str:
        """The name of the proxy that the doctor must recognise; empty if it leaves no mark."""
        if "not_ours" in self.faults and self.name.startswith("haproxy"):
            return ""  # its redirect has no header of its own
        found = re.search("nginx|apache|haproxy|caddy|varnish|squid|lighttpd|cloudflare|cloudrun|firebase", self.name)
        return found[0] if found else ""


# ---- nginx


def nginx(location: str = "", http: str = "", server: str = "") -> Make:
    """Return an nginx with `proxy_pass` and these further lines."""
    config = PlainNginx.CONFIG.replace("    server {\n", f"    {http}\n    server {{\n        {server}\n")
    return type("NginxFront", (PlainNginx,), {"CONFIG": config, "EXTRA": location})


class TlsNginx(PlainNginx):
    """nginx with TLS, and without HTTP/2."""

    name = "nginx-tls"
    CONFIG = PlainNginx.CONFIG.replace(
        "listen 127.0.0.1:$port;",
        "listen 127.0.0.1:$port ssl; ssl_certificate $dir/throughline.crt; ssl_certificate_key $dir/throughline.key;",
    )

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def configure(self) -> str:
        make_certificate(self.dir / "throughline.crt", self.dir / "throughline.key")
        return super().configure()


# ---- the others


class Apache(ProxyServer):
    """Apache with `ProxyPass` and further lines."""

    name = "apache"
    MODULES: ClassVar[Sequence[str]] = ("proxy", "proxy_http", "headers")
    PASS: ClassVar[str] = ""
    EXTRA: ClassVar[str] = ""

    def configure(self) -> str:
        modules = "".join(f"LoadModule {name}_module {APACHE}/mod_{name}.so\n" for name in self.MODULES)
        head = apache_head(self.dir, [self.port], modules)
        self.config.write_text(f"{head}{self.EXTRA}\nProxyPass / http://127.0.0.1:{self.upstream}/ {self.PASS}\n")
        return str(self.config)

    def command(self) -> Sequence[str]:
        return [self.program("apache2"), "-D", "FOREGROUND", "-f", self.configure()]


def apache(extra: str = "", options: str = "", modules: Sequence[str] = ()) -> Make:
    more = {"EXTRA": extra, "PASS": options, "MODULES": (*Apache.MODULES, *modules)}
    return type("ApacheFront", (Apache,), more)


def caddy(proxy: str = "", site: str = "", options: str = "") -> Make:
    """Return a Caddy with `reverse_proxy` and these further lines."""
    config = (
        "{\n    admin off\n    auto_https off\n    storage file_system $dir/storage\n    " + options + "\n}\n"
        "http://127.0.0.1:$port {\n    bind 127.0.0.1\n    " + site + "\n"
        "    reverse_proxy 127.0.0.1:$upstream {\n        " + proxy + "\n    }\n}\n"
    )
    return type("CaddyFront", (Caddy,), {"CONFIG": config})


def haproxy(lines: str = "", timeout: str = "1h") -> Make:
    """Return a HAProxy with these lines in its only section."""
    config = Haproxy.CONFIG.replace("client 5s", f"client {timeout}").replace("server 5s", f"server {timeout}")
    return type("HaproxyFront", (Haproxy,), {"CONFIG": config + "".join(f"    {line}\n" for line in lines.split("\n"))})


class TimedVarnish(Varnish):
    """varnish with parameters."""

    PARAMETERS: ClassVar[Sequence[str]] = ()

    def command(self) -> Sequence[str]:
        return [*super().command(), *(part for parameter in self.PARAMETERS for part in ("-p", parameter))]


def varnish(rules: str = "", *parameters: str) -> Make:
    return type("VarnishFront", (TimedVarnish,), {"RULES": rules, "PARAMETERS": parameters})


def lighttpd(lines: str) -> Make:
    return type("LighttpdFront", (Lighttpd,), {"CONFIG": Lighttpd.CONFIG + lines + "\n"})


def squid(lines: str, base: type[Cache] = Squid) -> Make:
    return type("SquidFront", (base,), {"RULES": f"{base.RULES}\n{lines}"})


def alone(directory: Path, upstream: int) -> Server:
    return Nginx(directory, f"127.0.0.1:{upstream}")


def beside(directory: Path, upstream: int) -> Server:
    return NginxBeside(directory, f"127.0.0.1:{upstream}")


def service(*arguments: str, **settings: str) -> Make:
    """Return a service of another kind, which takes the place of the usual one."""
    env = {"SSE_DOCTOR": "1", "SSE_ORIGINS": "https://a.example", "SSE_PUBLIC": "*"} | settings
    return lambda directory, _: Gunicorn(directory, env=env, arguments=arguments)


def nothing_behind(directory: Path, _: int) -> Server:
    return PlainNginx(directory, free_port())


RIGHT_NGINX = (
    'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_cache off; gzip off; '
    "proxy_read_timeout 1h;"
)
LOGIN = "http-request redirect location https://login.example/?next=%[path] code 302"
CAPTIVE = "default_type text/html; return 200 '<html><title>Welcome to the guest network</title>Accept</html>';"
CACHE = "proxy_cache_path $dir/cache keys_zone=all:1m;"
CACHED = (
    "proxy_cache all; proxy_cache_valid any 1m; proxy_cache_lock on; proxy_cache_lock_timeout 20s; "
    "proxy_ignore_headers Cache-Control Expires Vary Set-Cookie X-Accel-Buffering X-Accel-Expires;"
)
PASSWORD = "auth_basic staging; auth_basic_user_file /dev/null;"
CLOCK = """proxy_set_header Accept-Encoding ''; sub_filter_types application/json; sub_filter '"now":1' '"now":2';"""
GZIP = """
sub vcl_backend_fetch { unset bereq.http.Accept-Encoding; }
sub vcl_backend_response { set beresp.do_gzip = true; }
"""
FIREBASE = """
sub vcl_recv { return (pass); }
sub vcl_backend_response { set beresp.do_stream = false; }
sub vcl_deliver { set resp.http.Vary = resp.http.Vary + ", x-fh-requested-host"; }
"""
DEFLATE = "SetOutputFilter DEFLATE\nDeflateBufferSize 8096\nSetEnv force-gzip 1"


def fronts(real: bool) -> list[Front]:
    """Return all ways, with the time-outs that people have, or with time-outs of five seconds."""
    idle = frozenset({"idle_cutoff", "poll_cut"})
    second = 75 if real else 5  # of limits that nobody has by default
    right = [
        Front("nothing in between", None),
        Front("nginx.conf", alone),
        Front("deploy/nginx", beside),
        *(Front(f"deploy/{kind.FILE.partition('/')[0]}", kind) for kind in DEPLOYED),
        Front("nginx, set right by hand", nginx(RIGHT_NGINX)),
        Front("caddy, reverse_proxy alone", caddy()),
        Front("haproxy, 1 h", haproxy()),
        Front("apache, flushpackets", apache(options="flushpackets=on timeout=3600")),
        Front("squid, accel", Squid),
        Front("varnish, pass", varnish("sub vcl_recv { return (pass); }", "between_bytes_timeout=3600")),
    ]
    none: frozenset[str] = frozenset()
    unheard = frozenset({"leaving_unnoticed"})
    naive = [
        Front("nginx, proxy_pass alone", nginx("" if real else "proxy_read_timeout 5s;"), idle, real=none),
        Front("apache, ProxyPass alone", apache(options=f"timeout={60 if real else 5}"), idle, real=none),
        Front("haproxy, Debian's time-outs", haproxy(timeout="50s" if real else "5s"), idle, real=none),
        Front("varnish, as it comes", varnish("", *() if real else ("first_byte_timeout=5", "between_bytes_timeout=5")),
              idle, real=none),
        Front("lighttpd, as it comes", Lighttpd, frozenset({"buffered", "content_length"}), unheard),
        Front("nginx, TLS without HTTP/2", TlsNginx, none, frozenset({"http1"})),
    ]  # fmt: skip
    hostile = [
        Front("nginx, buffering", BufferingNginx, frozenset({"buffered"})),
        Front("caddy, gzip of streams", Caddy, frozenset({"buffered", "compressed"})),
        Front("varnish, do_gzip", varnish(GZIP), frozenset({"buffered", "compressed"}), unheard),
        Front("varnish, no do_stream", varnish("sub vcl_backend_response { set beresp.do_stream = false; }"),
              frozenset({"buffered", "content_length"}), unheard),
        Front("haproxy, wait-for-body", haproxy("http-response wait-for-body time 3600s"), frozenset({"buffered"}),
              unheard),
        Front("apache, DEFLATE", apache(DEFLATE, modules=("deflate", "filter")), none, frozenset({"compressed"})),
        Front("nginx, proxy_cache of all", nginx(CACHED, http=CACHE), frozenset({"cached", "shared", "buffered"}),
              unheard),
        Front("varnish, caching all", GreedyVarnish, frozenset({"cached", "shared"}),
              unheard),  # it goes on reading, to fill its cache
        Front("squid, offline_mode", OfflineSquid, frozenset({"cached", "shared"})),
        Front("nginx, a second CORS header", nginx(f"{RIGHT_NGINX} add_header Access-Control-Allow-Origin * always;"),
              frozenset({"cors_doubled"})),
        Front("apache, CORS headers removed", apache("Header always unset Access-Control-Allow-Origin\n"
              "Header unset Access-Control-Allow-Origin", "timeout=3600"), frozenset({"cors_missing"})),
        Front("haproxy, OPTIONS denied", haproxy("http-request deny deny_status 405 if METH_OPTIONS"),
              frozenset({"cors_missing"})),
        Front("another origin", alone, frozenset({"cors_not_allowed"}), origin="https://other.example"),
        Front("haproxy, a login", haproxy(LOGIN), frozenset({"not_ours"})),
        Front("nginx, a captive page", nginx(http="", server=CAPTIVE), frozenset({"not_ours"})),
        Front("nginx, a password", nginx(PASSWORD), frozenset({"not_ours"})),
        Front("nginx, Last-Event-ID removed", nginx(f'{RIGHT_NGINX} proxy_set_header Last-Event-ID "";'),
              frozenset({"last_event_id_stripped"})),
        Front("nginx, the page of an app for errors", nginx(f"{RIGHT_NGINX} proxy_intercept_errors on; "
              "error_page 403 404 410 =200 /index.html;", server="location = /index.html { return 200 '<html>'; }"),
              frozenset({"status_rewritten"})),
        Front("haproxy, 429 becomes 503", haproxy("http-response set-status 503 if { status 429 }"),
              frozenset({"status_rewritten"})),
        Front("haproxy, no Retry-After", haproxy("http-response del-header Retry-After"), none,
              frozenset({"status_rewritten"})),
        # These pass on that a client has gone when they next write. So nothing is wrong with a stream that has events.
        Front("nginx, proxy_ignore_client_abort", nginx(f"{RIGHT_NGINX} proxy_ignore_client_abort on;")),
        Front("lighttpd, stream-response-body = 1", lighttpd("server.stream-response-body = 1")),
        Front("caddy, flush_interval -1", caddy("flush_interval -1")),
        Front("caddy, a time-out for writing", caddy(options=f"servers {{\n timeouts {{\n write {second}s\n }}\n }}"),
              frozenset({"request_timeout", "poll_cut"}), real=frozenset({"request_timeout"})),
        Front("squid, client_lifetime", squid(f"client_lifetime {second} seconds"),
              frozenset({"request_timeout", "poll_cut"}), real=frozenset({"request_timeout"})),
        Front("nginx, a clock of another year", nginx(f"{RIGHT_NGINX} {CLOCK}"), none, frozenset({"clock_skew"})),
    ]  # fmt: skip
    services = [
        Front("gunicorn's sync worker", service("-k", "sync"), frozenset({"few_streams"})),
        Front(
            "gunicorn's gthread worker", service("-k", "gthread", "--threads", "8"), none, frozenset({"few_streams"})
        ),
        Front("the probes closed", service(SSE_DOCTOR="0"), frozenset({"doctor_closed"})),
        Front("nginx, nothing behind it", nothing_behind, frozenset({"unreachable"})),
    ]
    # What is known of these platforms, and the marks that they leave, by proxies that run here.
    imitated = [
        Front("cloudflare, imitated", haproxy('http-response set-header CF-Ray 8c1f-FRA\n'
              "http-response set-header server cloudflare", timeout="120s" if real else "1h")),
        Front("cloudrun, imitated", haproxy('http-response set-header server "Google Frontend"'), none,
              frozenset({"lifetime"})),
        Front("firebase, imitated", varnish(FIREBASE), frozenset({"buffered", "content_length"}),
              frozenset({"leaving_unnoticed", "lifetime"})),
    ]  # fmt: skip
    return [*right, *naive, *hostile, *services, *imitated]
