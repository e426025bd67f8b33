"""Recognises the proxies on the way to a service by what they leave on its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

NAMES: Final = {
    "cloudflare": "Cloudflare",
    "firebase": "Firebase Hosting",
    "fastly": "Fastly",
    "cloudfront": "CloudFront",
    "vercel": "Vercel",
    "netlify": "Netlify",
    "azure": "Azure",
    "heroku": "Heroku",
    "cloudrun": "Google Cloud Run",
    "google": "Google load balancer",
    "alb": "AWS load balancer",
    "envoy": "Envoy",
    "traefik": "Traefik",
    "varnish": "Varnish",
    "squid": "Squid",
    "haproxy": "HAProxy",
    "caddy": "Caddy",
    "apache": "Apache",
    "nginx": "nginx",
    "lighttpd": "lighttpd",
}
"""The proxies that have remedies of their own, from those that usually stand farthest out."""

PLATFORM_TIMEOUTS: Final = {"cloudrun": 300, "firebase": 60}
"""Seconds after which a platform ends a response that is still under way, by default."""

_MARKS: Final[Sequence[tuple[str, str, str]]] = (
    ("cloudflare", "cf-ray", ""),
    ("cloudflare", "server", "^cloudflare"),
    ("firebase", "vary", "x-fh-requested-host"),
    ("fastly", "x-served-by", "^cache-"),
    ("cloudfront", "x-amz-cf-id", ""),
    ("cloudfront", "via", "cloudfront"),
    ("cloudfront", "server", "^cloudfront"),
    ("vercel", "x-vercel-id", ""),
    ("vercel", "server", "^vercel"),
    ("netlify", "x-nf-request-id", ""),
    ("netlify", "server", "^netlify"),
    ("azure", "x-azure-ref", ""),
    ("azure", "server", "^microsoft-azure"),
    ("azure", "x-powered-by", "^arr/"),
    ("azure", "set-cookie", "^arraffinity"),
    ("heroku", "via", "vegur|heroku"),
    ("heroku", "server", "^heroku"),
    ("cloudrun", "server", "^google frontend"),
    ("google", "via", r"\bgoogle\b"),
    ("alb", "server", "^awselb"),
    ("alb", "set-cookie", "^awsalb"),
    ("envoy", "server", "envoy"),
    ("envoy", "x-envoy-upstream-service-time", ""),
    ("traefik", "server", "^traefik"),
    ("varnish", "x-varnish", ""),
    ("varnish", "via", "varnish"),
    ("squid", "via", "squid"),
    ("squid", "x-squid-error", ""),
    ("squid", "server", "^squid"),
    ("haproxy", "server", "^haproxy"),
    ("haproxy", "via", "haproxy"),
    ("caddy", "server", "^caddy"),
    ("caddy", "via", "caddy"),
    ("apache", "server", "^apache"),
    ("apache", "via", "apache"),
    ("nginx", "server", "^(nginx|openresty|tengine)"),
    ("lighttpd", "server", "^lighttpd"),
)
_BODIES: Final = (
    ("haproxy", "your browser sent an invalid request|the server didn't respond in time"),
    ("nginx", "<center>(nginx|openresty)"),
    ("apache", "<title>400 bad request</title>[^<]*</head><body>[^<]*<h1>bad request</h1>|<address>apache"),
    ("squid", r"\bby [^\s<]{1,100} \(squid"),
    ("varnish", "varnish cache server"),
)


def name_of(proxy: str) -> str:
    """Return the name of a proxy as people write it."""
    return NAMES.get(proxy, proxy)


def recognise(headers: Mapping[str, Sequence[str]], body: str = "") -> list[str]:
    """Return the proxies that have left a mark on an answer, from those that usually stand farthest out.

    :param headers: lower-case names, each with its values.
    :param body: the beginning of an error page that a proxy has made itself.
    """
    found = {name for name, header, pattern in _MARKS for value in headers.get(header, ())
             if re.search(pattern, value, re.IGNORECASE)}  # fmt: skip
    found |= {name for name, pattern in _BODIES if re.search(pattern, body[:4_096], re.IGNORECASE | re.DOTALL)}
    # Firebase Hosting runs on Fastly, which runs on Varnish, and both leave the marks of the other.
    if "firebase" in found:
        found -= {"fastly", "varnish", "google", "cloudrun"}
    elif "fastly" in found:
        found -= {"varnish"}
    if "cloudrun" in found:
        found -= {"google"}
    return [name for name in NAMES if name in found]


def on_the_way(measured: Mapping[str, Any]) -> list[str]:
    """Return the proxies on the way that the measurements tell of. A name that the user has given comes first."""
    page = measured.get("error_page", {})
    found = {
        *recognise(measured.get("echo_headers", {})),
        *recognise(measured.get("error_headers", {})),
        *recognise(page.get("headers", {}), page.get("body", "")),
    }
    for stream in measured.get("streams", {}).values():
        found.update(recognise(stream.get("headers", {})))
    if "via" in measured.get("echo", {}).get("headers", {}):
        found.update(recognise({"via": [measured["echo"]["headers"]["via"]]}))
    given = measured.get("proxy", "")
    found.add(given)
    ordered = [name for name in NAMES if name in found]
    return [given, *(name for name in ordered if name != given)] if given in NAMES else ordered
