"""The doctor's remedies: one for each fault, for the proxy that is recognised, and lines that the real proxy takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sse.doctor.findings import CODES
from sse.doctor.judge import judge
from sse.doctor.proxies import NAMES, PLATFORM_TIMEOUTS, on_the_way, recognise
from sse.doctor.remedies import _GENERAL, _OF, remedy_for
from tests.measurements import changed

FACTS = {"seconds": 30.0, "origin": "https://www.example", "count": 2, "url": "https://push.example/events"}

MARKS = [
    ("nginx", {"server": ["nginx/1.22.1"]}, ""),
    ("nginx", {"server": ["openresty"]}, ""),
    ("nginx", {}, "<html><body><hr><center>nginx/1.22.1</center>"),
    ("apache", {"server": ["Apache/2.4.57 (Debian)"]}, ""),
    ("caddy", {"server": ["Caddy", "gunicorn"]}, ""),
    ("caddy", {"via": ["1.1 Caddy"]}, ""),
    ("haproxy", {}, "<html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n</body></html>"),
    ("varnish", {"x-varnish": ["32770"], "via": ["1.1 varnish (Varnish/7.1)"]}, ""),
    ("squid", {"via": ["1.1 vm (squid/5.7)"]}, ""),
    ("lighttpd", {"server": ["lighttpd/1.4.69"]}, ""),
    ("envoy", {"server": ["istio-envoy"], "x-envoy-upstream-service-time": ["3"]}, ""),
    ("cloudflare", {"server": ["cloudflare"], "cf-ray": ["8f1-FRA"], "cf-cache-status": ["DYNAMIC"]}, ""),
    ("cloudfront", {"via": ["1.1 0a1b.cloudfront.net (CloudFront)"], "x-amz-cf-id": ["Zx=="]}, ""),
    ("fastly", {"via": ["1.1 varnish"], "x-served-by": ["cache-fra-eddf8230020-FRA"], "x-cache": ["MISS"]}, ""),
    ("firebase", {"x-served-by": ["cache-fra-1"], "vary": ["x-fh-requested-host, accept-encoding"]}, ""),
    ("cloudrun", {"server": ["Google Frontend"], "via": ["1.1 google"]}, ""),
    ("google", {"via": ["1.1 google"]}, ""),
    ("heroku", {"via": ["1.1 vegur"], "server": ["gunicorn"]}, ""),
    ("heroku", {"via": ["1.1 heroku-router"], "server": ["Heroku"]}, ""),
    ("vercel", {"server": ["Vercel"], "x-vercel-id": ["fra1::1"]}, ""),
    ("netlify", {"server": ["Netlify"], "x-nf-request-id": ["01J"]}, ""),
    ("alb", {"server": ["awselb/2.0"]}, ""),
    ("azure", {"x-azure-ref": ["2026"]}, ""),
    ("azure", {"server": ["Microsoft-Azure-Application-Gateway/v2"]}, ""),
]


@pytest.mark.parametrize(("name", "headers", "body"), MARKS, ids=[mark[0] for mark in MARKS])
def test_a_proxy_is_recognised_by_its_marks(name: str, headers: dict[str, list[str]], body: str) -> None:
    assert recognise(headers, body) == [name]


def test_squid_is_recognised_by_its_error_page() -> None:
    assert recognise({}, "<p>Generated Sat, 28 Nov 2026 12:00:00 GMT by vm.example (squid/5.7)</p>") == ["squid"]


def test_no_error_page_takes_long_to_read() -> None:
    """Anybody may send one to the judge, whose process serves streams meanwhile."""
    pages = ("generated " * 205 + " by " * 500, "by x " * 800, "<title>400 bad request</title></head><body>" * 95)
    began = time.process_time()
    assert [recognise({}, page[:4_096]) for page in pages] == [[], [], []]
    assert time.process_time() - began < 0.02


def test_a_service_alone_is_no_proxy() -> None:
    assert recognise({"server": ["gunicorn"], "vary": ["Origin, Cookie"]}) == []


def test_two_proxies_are_told_from_the_outermost() -> None:
    measured = {"echo_headers": {"server": ["cloudflare"]}, "error_page": {"headers": {"server": ["nginx"]}}}
    assert on_the_way(measured) == ["cloudflare", "nginx"]
    assert on_the_way({**measured, "proxy": "haproxy"}) == ["haproxy", "cloudflare", "nginx"]
    assert on_the_way({"proxy": "no such proxy"}) == []


def test_every_proxy_that_can_be_told_is_one_that_has_remedies() -> None:
    assert {mark[0] for mark in MARKS} | {"traefik"} == NAMES.keys() == _OF.keys()
    assert PLATFORM_TIMEOUTS.keys() <= NAMES.keys()


def test_every_fault_has_a_remedy_and_no_remedy_is_for_another() -> None:
    assert _GENERAL.keys() == CODES.keys()
    assert {code for remedies in _OF.values() for code in remedies} <= CODES.keys()


@pytest.mark.parametrize("proxy", ["", *NAMES])
@pytest.mark.parametrize("code", CODES)
def test_every_remedy_is_complete(code: str, proxy: str) -> None:
    text, paste = remedy_for(code, [proxy] if proxy else [], FACTS)
    assert text.endswith(".")
    assert not re.search(r"<(heartbeat|lifetime|poll|origin|count|prefix)>", text + paste)
    assert "/sse" not in paste or "sse.js" in paste or "flask sse" in paste, "the prefix is the service's own"
    if code in _OF.get(proxy, ()):
        assert text.startswith(f"{NAMES[proxy]}: ")


def test_the_values_in_a_remedy_are_below_what_was_measured() -> None:
    told = {code: remedy_for(code, [], FACTS)[1] for code in ("idle_cutoff", "request_timeout", "poll_cut")}
    assert told == {
        "idle_cutoff": "SSE_HEARTBEAT=15",
        "request_timeout": "SSE_STREAM_LIFETIME=25",
        "poll_cut": "SSE_POLL_TIMEOUT=21",
    }
    assert remedy_for("idle_cutoff", [], {"seconds": 4})[1] == "SSE_HEARTBEAT=3"


def test_two_proxies_have_a_remedy_each() -> None:
    text, paste = remedy_for("cached", ["cloudflare", "nginx"], FACTS)
    assert text.startswith("Cloudflare: ")
    assert " nginx: " in text
    assert "# Cloudflare" in paste
    assert paste.endswith("# nginx\nproxy_cache off;")


def test_lines_for_nginx_tell_that_headers_of_the_level_above_are_lost() -> None:
    _, paste = remedy_for("buffered", ["nginx"], {})
    assert "proxy_set_header Connection" in paste and "your other proxy_set_header lines" in paste


def test_a_proxy_that_is_not_recognised_may_be_named_by_the_user() -> None:
    [finding] = judge(changed({"shared": True, "echo_headers": None}))
    assert "--proxy NAME" in finding.remedy
    [finding] = judge(changed({"shared": True, "echo_headers": None, "client": "page"}))
    assert "--proxy" not in finding.remedy


# ---- the real proxies read the lines

MODULES = "/usr/lib/apache2/modules"


def pastes(proxy: str) -> Iterator[str]:
    """Yield the different lines that belong to a proxy, and not to the service."""
    told = {remedy_for(code, [proxy], FACTS)[1] for code in _OF[proxy]}
    yield from sorted(paste for paste in told if paste and "SSE_" not in paste)


def takes(*command: str | Path) -> bool:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    program = shutil.which(str(command[0]), path=path)
    assert program, f"{command[0]} is not installed"
    done = subprocess.run([program, *map(str, command[1:])], capture_output=True, text=True, timeout=60)
    return done.returncode == 0 and not re.search(r"ERROR:|unrecognized", done.stderr)


def nginx_takes(lines: str, directory: Path) -> bool:
    lines = "\n".join(line for line in lines.splitlines() if "1.25.1" not in line)  # newer than Debian's
    fixed = [f"pid {directory}/pid;\nerror_log stderr;", "".join(
        f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + "access_log off;", "", ""]  # fmt: skip
    for place in range(4):
        parts = [f"{part}\n{lines if number == place else ''}" for number, part in enumerate(fixed)]
        text = "events { }\n" + parts[0] + "\nhttp {\n" + parts[1] + "\nserver {\nlisten 127.0.0.1:1;\n" + parts[2]
        text += "\nlocation /x {\n" + parts[3] + "\n}\n}\n}\n"
        (directory / "nginx.conf").write_text(text.replace("listen 443 ssl http2", "listen 127.0.0.1:2 http2"))
        if takes("nginx", "-t", "-q", "-c", directory / "nginx.conf", "-e", "stderr"):
            return True
    return False


def apache_takes(lines: str, directory: Path) -> bool:
    names = ("mpm_event", "authz_core", "proxy", "proxy_http", "headers", "env", "cache", "cache_socache", "http2")
    loads = "".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so\n" for name in names)
    (directory / "apache.conf").write_text(
        f"ServerName x\nErrorLog {directory}/log\nListen 127.0.0.1:1\n{loads}{lines}\n"
    )
    return takes("apache2", "-t", "-f", directory / "apache.conf")


def haproxy_takes(lines: str, directory: Path) -> bool:
    (directory / "site.pem").write_text("")
    lines = lines.replace("bind :443 ssl crt /etc/haproxy/site.pem", "bind 127.0.0.1:1 proto h2 #")
    for top, inner in ((lines, ""), ("", lines)):
        text = f"global\n{top}\ncache NAME\n total-max-size 4\ndefaults\n mode http\n timeout connect 5s\n"
        text += " timeout client 5s\n"
        text += f" timeout server 5s\nlisten app\n bind 127.0.0.1:2\n server app 127.0.0.1:3\n{inner}\n"
        (directory / "haproxy.cfg").write_text(text)
        if takes("haproxy", "-c", "-q", "-f", directory / "haproxy.cfg"):
            return True
    return False


def caddy_takes(lines: str, directory: Path) -> bool:
    whole = lines if lines.startswith("{") else f"http://127.0.0.1:1 {{\n{lines}\n}}"
    (directory / "Caddyfile").write_text(f"{whole}\n")
    return takes("caddy", "adapt", "--adapter", "caddyfile", "--config", directory / "Caddyfile")


def varnish_takes(lines: str, directory: Path) -> bool:
    backend = 'vcl 4.1;\nbackend default { .host = "127.0.0.1"; }\n'
    parameters: Sequence[str] = ()
    if lines.startswith("varnishd …"):
        parameters, lines = lines.split()[2:], ""
    (directory / "test.vcl").write_text(f"{backend}{lines}\n")
    return takes("varnishd", "-j", "none", *parameters, "-C", "-n", directory / "varnish", "-f", directory / "test.vcl")


def squid_takes(lines: str, directory: Path) -> bool:
    lines = lines.replace(
        "adaptation_access NAME", "icap_service NAME respmod_precache icap://127.0.0.1:1/x\nadaptation_access NAME"
    )
    (directory / "squid.conf").write_text(f"http_port 127.0.0.1:1\npid_filename none\n{lines}\n")
    return takes("squid", "-k", "parse", "-f", directory / "squid.conf")


def lighttpd_takes(lines: str, directory: Path) -> bool:
    head = f'server.modules = ("mod_proxy", "mod_deflate")\nserver.document-root = "{directory}"\n'
    (directory / "lighttpd.conf").write_text(f"{head}{lines}\n")
    return takes("lighttpd", "-tt", "-f", directory / "lighttpd.conf")


TAKES = {
    "nginx": nginx_takes,
    "apache": apache_takes,
    "haproxy": haproxy_takes,
    "caddy": caddy_takes,
    "varnish": varnish_takes,
    "squid": squid_takes,
    "lighttpd": lighttpd_takes,
}


@pytest.mark.parametrize("proxy", TAKES)
def test_the_real_proxy_takes_the_lines(proxy: str, tmp_path: Path) -> None:
    check = TAKES[proxy]
    told = [*pastes(proxy)]
    assert told
    assert [lines for lines in told if not check(lines, tmp_path)] == []
    assert not check("no such directive;\n", tmp_path), "this check tells right lines from wrong ones"
