"""The remedy for each fault, in the words of the proxy that has it.

`_GENERAL` has a remedy for each code. `_OF` has the lines of each proxy. In both, a word in angle brackets, such as
`<heartbeat>`, stands for a value that depends on the measurements; `_values` lists them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sse.doctor.proxies import name_of

_SHORTEST_HEARTBEAT: Final = 3  # as SSE_HEARTBEAT has it
_SHORTEST_LIFETIME: Final = 5
_LONGEST_POLL: Final = 60
_JITTER: Final = 1.2  # SSE_STREAM_LIFETIME is varied by up to 20 %
_MOST_PROXIES: Final = 2  # whose lines are told


class Remedy(NamedTuple):
    """A sentence, and the lines to paste."""

    text: str
    paste: str = ""


_GENERAL: Final[Mapping[str, Remedy]] = {
    "unreachable": Remedy(
        "Check the name, the port and the certificate, that the service runs, that a firewall lets this machine in, "
        "and that each proxy points to the address on which the service listens."
    ),
    "not_ours": Remedy(
        "Give the service's prefix, such as https://push.example/sse. If a login or another page stands before it, let "
        "the paths below the prefix through: the service checks who may read by itself."
    ),
    "doctor_closed": Remedy(
        "Set THROUGHLINE_KEY to a publishing key of the service and run the command again, or start the service with "
        "SSE_DOCTOR=1 for as long as you look for the fault.",
        "SSE_DOCTOR=1",
    ),
    "few_streams": Remedy(
        "Run the app in gunicorn with this worker, in which a stream that waits takes neither a process nor a thread.",
        'worker_class = "sse.worker.Worker"',
    ),
    "cached": Remedy(
        "Let the cache obey Cache-Control, which says no-store here, or take the paths below the prefix out of it."
    ),
    "shared": Remedy(
        "Take the paths below the prefix out of the cache, and switch off the joining of equal requests. Until then, "
        "one user can see the events of another."
    ),
    "buffered": Remedy(
        "Switch off buffering of responses in each proxy on the way, at least for text/event-stream. Until then, pages "
        "with sse.js poll, and lose nothing. Programs that read the stream itself hear nothing."
    ),
    "compressed": Remedy(
        "Switch off compression for text/event-stream: the service asks for that by Cache-Control: no-transform. "
        "Compressors gather bytes before they give some out."
    ),
    "content_length": Remedy(
        "The service sends none. A proxy reads the whole response before it passes it on: switch off its buffering of "
        "responses, and whatever looks through them, such as a virus scanner."
    ),
    "cors_not_allowed": Remedy(
        "Allow the origin in the service's settings. Give all origins with commas between.", "SSE_ORIGINS=<origin>"
    ),
    "cors_missing": Remedy(
        "Let the service answer for CORS by itself: have no proxy remove or set Access-Control headers, or answer "
        "OPTIONS in place of the service."
    ),
    "cors_doubled": Remedy(
        "Take out the Access-Control headers that a proxy adds: the service sends its own, as SSE_ORIGINS says."
    ),
    "request_timeout": Remedy(
        "Raise the time limit of responses to an hour, where that is possible. Otherwise let the service end streams "
        "first, so that clients reconnect in time and without an error.",
        "SSE_STREAM_LIFETIME=<lifetime>",
    ),
    "lifetime": Remedy(
        "Raise the platform's request timeout above SSE_STREAM_LIFETIME and a fifth, or let the service end streams "
        "first.",
        "SSE_STREAM_LIFETIME=<lifetime>",
    ),
    "idle_cutoff": Remedy(
        "Raise the time limit for quiet responses to an hour, where that is possible. Otherwise let heartbeats come "
        "more often.",
        "SSE_HEARTBEAT=<heartbeat>",
    ),
    "poll_cut": Remedy(
        "Raise the time limit for answers above 60 s, which is the longest that a poll waits. Otherwise let polls wait "
        "less.",
        "SSE_POLL_TIMEOUT=<poll>",
    ),
    "frozen": Remedy(
        "Have the CPU always allocated, and keep one instance at least. Otherwise runs, sources and the connection to "
        "Redis stand still with it."
    ),
    "stalled": Remedy(
        "Something holds the process up: code that computes or waits without giving way, a machine without CPU to "
        "spare, or memory that is swapped. The service's log names a source that blocks."
    ),
    "last_event_id_stripped": Remedy(
        "Let the request header Last-Event-ID through unchanged. Until then, an EventSource of the browser misses "
        "events after each reconnect. Pages with sse.js are not affected, because it has the id in the query."
    ),
    "status_rewritten": Remedy(
        "Let statuses and bodies of errors through: switch off error pages of the proxy for paths below the prefix. "
        "Clients decide by them whether to come back."
    ),
    "leaving_unnoticed": Remedy(
        "Have the proxy close its connection to the service when a client leaves. Until then, each client that has "
        "left takes a seat until its stream's lifetime is over, and presence still counts it."
    ),
    "clock_skew": Remedy(
        "Let both machines keep time by NTP. Tokens are refused if the clock that dates them is ahead by over 5 s.",
        "timedatectl set-ntp true",
    ),
    "http1": Remedy(
        "Serve the page over HTTP/2, with which a browser needs one connection for all of its tabs. Pages with sse.js "
        "share one stream among tabs anyway."
    ),
    "forwarded_untrusted": Remedy(
        "If this service is reached through your proxies only, say how many there are. Otherwise limits for each "
        "address take all clients for one.",
        "SSE_PROXIES=<count>",
    ),
    "unsure": Remedy("Mend the other faults first. Then run the doctor again, on a machine with little else to do."),
}
"""The remedy for each code, where the proxy is unknown."""

_CASES: Final[Mapping[str, Remedy]] = {
    "moved": Remedy("Give the address that it points to if the service is there. Otherwise let its paths through."),
    "blocked": Remedy(
        "Allow the page's origin in the service's settings, with commas between all origins. If it is there already, a "
        "proxy removes or adds Access-Control headers: `flask sse doctor URL --origin <origin>` tells which.",
        "SSE_ORIGINS=<origin>",
    ),
    "foreign": Remedy(
        "Allow the origin in the service's settings, and take the Access-Control headers out of the proxy: the service "
        "sends its own. Give all origins with commas between.",
        "SSE_ORIGINS=<origin>",
    ),
}
"""The remedies for cases in which a code has another cause than usual."""

_NGINX_STREAM: Final = """\
location <prefix>/ {
    proxy_pass http://127.0.0.1:8000;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    # and your other proxy_set_header lines: beside the one above, none is inherited
    proxy_buffering off;
    proxy_cache off;
    gzip off;
    proxy_read_timeout 1h;
}"""
_VARNISH_PIPE: Final = """\
sub vcl_recv {
    if (req.url ~ "^<prefix>/") {
        return (pipe);
    }
}
sub vcl_pipe {
    set bereq.http.Connection = "close";
}"""
_LIGHTTPD_STREAM: Final = "server.stream-response-body = 1"
_HAPROXY_TIMEOUTS: Final = "timeout client 1h\ntimeout server 1h"
_CLOUD_RUN_TIMEOUT: Final = "gcloud run services update SERVICE --timeout=3600"
_OWN_ORIGIN: Final = "flask sse embed --url https://SERVICE<prefix> --channel CHANNEL"

_OF: Final[Mapping[str, Mapping[str, Remedy]]] = {
    "nginx": {
        "buffered": Remedy(
            "Switch off buffering, and take out proxy_ignore_headers X-Accel-Buffering if it is there.", _NGINX_STREAM
        ),
        "compressed": Remedy("Switch off gzip, or take text/event-stream out of gzip_types.", _NGINX_STREAM),
        "content_length": Remedy("Switch off buffering, and filters that look through the body.", _NGINX_STREAM),
        "cached": Remedy(
            "Switch off proxy_cache, and take Cache-Control out of proxy_ignore_headers.", "proxy_cache off;"
        ),
        "shared": Remedy(
            "Switch off proxy_cache and proxy_cache_lock for the service's paths.",
            "proxy_cache off;\nproxy_cache_lock off;",
        ),
        "idle_cutoff": Remedy("Raise proxy_read_timeout, which is 60 s by default.", "proxy_read_timeout 1h;"),
        "request_timeout": Remedy(
            "nginx itself has no limit for a response that goes on. Look for one before or behind it. A reload of "
            "nginx ends streams only after worker_shutdown_timeout.",
            "worker_shutdown_timeout 1h;",
        ),
        "poll_cut": Remedy("Raise proxy_read_timeout above 60 s.", "proxy_read_timeout 90s;"),
        "leaving_unnoticed": Remedy("Take out proxy_ignore_client_abort.", "proxy_ignore_client_abort off;"),
        "status_rewritten": Remedy(
            "Switch off proxy_intercept_errors for the service's paths.", "proxy_intercept_errors off;"
        ),
        "last_event_id_stripped": Remedy(
            "Take out proxy_set_header Last-Event-ID and proxy_pass_request_headers off.",
            "proxy_set_header Last-Event-ID $http_last_event_id;",
        ),
        "cors_missing": Remedy(
            "Take out proxy_hide_header Access-Control-…, and each `return 204` for OPTIONS.",
        ),
        "cors_doubled": Remedy(
            "Take out add_header Access-Control-… where requests go to the service. If other answers need it, put the "
            "service into a location of its own, in which a single add_header ends the inheritance of all others.",
            "add_header X-Content-Type-Options nosniff;   # ends the inheritance of add_header",
        ),
        "http1": Remedy(
            "Switch on HTTP/2.", "http2 on;              # nginx 1.25.1 or newer\nlisten 443 ssl http2;   # older"
        ),
        "not_ours": Remedy(
            "Take the service's paths out of auth_basic, auth_request and catch-all locations.",
            "location <prefix>/ {\n    auth_basic off;\n    auth_request off;\n    proxy_pass http://127.0.0.1:8000;\n}",
        ),
    },
    "apache": {
        "buffered": Remedy(
            "Flush each packet, and take out the output filter BUFFER.",
            "ProxyPass <prefix>/ http://127.0.0.1:8000<prefix>/ flushpackets=on timeout=3600",
        ),
        "compressed": Remedy(
            "Switch off mod_deflate and mod_brotli for the service's paths.",
            '<Location "<prefix>/">\n    SetEnv no-gzip 1\n    SetEnv no-brotli 1\n</Location>',
        ),
        "content_length": Remedy("Take out the output filter BUFFER."),
        "cached": Remedy("Take the service's paths out of mod_cache.", 'CacheDisable "<prefix>/"'),
        "shared": Remedy("Take the service's paths out of mod_cache.", 'CacheDisable "<prefix>/"\nCacheLock off'),
        "idle_cutoff": Remedy(
            "Raise the timeout, which is that of Timeout (60 s) by default.",
            "ProxyPass <prefix>/ http://127.0.0.1:8000<prefix>/ flushpackets=on timeout=3600",
        ),
        "poll_cut": Remedy(
            "Raise the timeout above 60 s.",
            "ProxyPass <prefix>/ http://127.0.0.1:8000<prefix>/ flushpackets=on timeout=3600",
        ),
        "status_rewritten": Remedy("Switch off ProxyErrorOverride for the service's paths.", "ProxyErrorOverride Off"),
        "last_event_id_stripped": Remedy("Take out RequestHeader unset Last-Event-ID."),
        "cors_missing": Remedy("Take out Header unset Access-Control-Allow-Origin, and each rewrite of OPTIONS."),
        "cors_doubled": Remedy(
            "Take out Header set, add and append Access-Control-Allow-Origin where requests go to the service, also in "
            ".htaccess."
        ),
        "http1": Remedy(
            "Switch on HTTP/2, with mpm_event and mod_http2. Even so, Apache works on six requests of a connection at "
            "a time at first, and open streams are among them.",
            "Protocols h2 http/1.1",
        ),
        "leaving_unnoticed": Remedy(
            "Apache learns of a client that has left when it writes to it. Flush each packet, so that it does so at "
            "the second heartbeat.",
            "ProxyPass <prefix>/ http://127.0.0.1:8000<prefix>/ flushpackets=on timeout=3600",
        ),
    },
    "caddy": {
        "buffered": Remedy(
            "Take out buffer_responses or response_buffers, and let no encode match text/event-stream. Caddy hands "
            "streams over at once by itself.",
            "reverse_proxy 127.0.0.1:8000",
        ),
        "compressed": Remedy(
            "Let encode leave the service's paths alone.", "@others not path <prefix>/*\nencode @others gzip"
        ),
        "content_length": Remedy("Take out buffer_responses or response_buffers.", "reverse_proxy 127.0.0.1:8000"),
        "idle_cutoff": Remedy(
            "Take out read_timeout in the transport; Caddy has none by default.",
            "reverse_proxy 127.0.0.1:8000 {\n    transport http {\n        read_timeout 1h\n    }\n}",
        ),
        "request_timeout": Remedy(
            "Take the time-out `write` out of the global options; Caddy has none by default.",
            "{\n    servers {\n        timeouts {\n            write 0\n        }\n    }\n}",
        ),
        "poll_cut": Remedy(
            "Take out response_header_timeout and read_timeout in the transport, and the global time-out `write`.",
            "reverse_proxy 127.0.0.1:8000",
        ),
        "leaving_unnoticed": Remedy(
            "Take out flush_interval -1: with it, Caddy goes on reading for clients that have left.",
            "reverse_proxy 127.0.0.1:8000",
        ),
        "last_event_id_stripped": Remedy("Take out header_up -Last-Event-ID."),
        "cors_missing": Remedy("Take out header_down -Access-Control-Allow-Origin, and each respond for OPTIONS."),
        "cors_doubled": Remedy("Take out header Access-Control-Allow-Origin where requests go to the service."),
        "status_rewritten": Remedy("Take out handle_response, or let it match other paths only."),
        "http1": Remedy("Take `protocols h1` out of the global options: Caddy speaks HTTP/2 by itself."),
    },
    "haproxy": {
        "buffered": Remedy(
            "Take out http-response wait-for-body, and filters that look through the body.", "option http-no-delay"
        ),
        "compressed": Remedy(
            "Take text/event-stream out of `compression type`. Without a list, HAProxy compresses all types.",
            "compression type text/html text/css application/javascript application/json",
        ),
        "content_length": Remedy("Take out http-response wait-for-body.", "option http-no-delay"),
        "cached": Remedy(
            "Take the service's paths out of the cache.", "http-request cache-use NAME unless { path_beg <prefix>/ }"
        ),
        "shared": Remedy(
            "Take the service's paths out of the cache.", "http-request cache-use NAME unless { path_beg <prefix>/ }"
        ),
        "idle_cutoff": Remedy("Raise the time-outs on both sides.", _HAPROXY_TIMEOUTS),
        "poll_cut": Remedy("Raise the time-outs on both sides above 60 s.", _HAPROXY_TIMEOUTS),
        "request_timeout": Remedy(
            "HAProxy itself has no limit for a response that goes on, but a reload with hard-stop-after.",
            "hard-stop-after 1h",
        ),
        "leaving_unnoticed": Remedy("Pass the leaving of clients on.", "option abortonclose"),
        "last_event_id_stripped": Remedy("Take out http-request del-header Last-Event-ID."),
        "cors_missing": Remedy("Take out http-response del-header, and rules that deny or answer OPTIONS."),
        "cors_doubled": Remedy(
            "Take out http-response add-header Access-Control-Allow-Origin for the service's backend."
        ),
        "status_rewritten": Remedy(
            "Take out http-response set-status, return and http-errors for the service's backend."
        ),
        "http1": Remedy("Offer HTTP/2 on the TLS port.", "bind :443 ssl crt /etc/haproxy/site.pem alpn h2,http/1.1"),
    },
    "varnish": {
        "buffered": Remedy(
            "Pipe the service's paths: with do_stream = false or do_gzip, Varnish gathers.", _VARNISH_PIPE
        ),
        "compressed": Remedy("Pipe the service's paths, which do_gzip then leaves alone.", _VARNISH_PIPE),
        "content_length": Remedy("Pipe the service's paths, or leave do_stream as it is.", _VARNISH_PIPE),
        "cached": Remedy("Pipe the service's paths, before any rule that returns hash.", _VARNISH_PIPE),
        "shared": Remedy("Pipe the service's paths, before any rule that returns hash.", _VARNISH_PIPE),
        "idle_cutoff": Remedy(
            "Pipe the service's paths, and raise pipe_timeout, or raise between_bytes_timeout, which is 60 s by "
            "default.",
            "varnishd … -p pipe_timeout=3600 -p between_bytes_timeout=3600 -p first_byte_timeout=90",
        ),
        "poll_cut": Remedy("Raise first_byte_timeout above 60 s.", "varnishd … -p first_byte_timeout=90"),
        "leaving_unnoticed": Remedy("Pipe the service's paths.", _VARNISH_PIPE),
        "last_event_id_stripped": Remedy("Take out unset req.http.Last-Event-ID."),
        "cors_missing": Remedy("Take out unset resp.http.Access-Control-Allow-Origin, and each synth for OPTIONS."),
        "cors_doubled": Remedy("Take out set resp.http.Access-Control-Allow-Origin for the service's paths."),
        "status_rewritten": Remedy("Take the service's paths out of vcl_backend_error and of rules that return synth."),
        "http1": Remedy("Switch on HTTP/2 in the server that ends TLS, and here.", "varnishd … -p feature=+http2"),
    },
    "squid": {
        "cached": Remedy(
            "Take the service's paths out of the cache.",
            "acl throughline urlpath_regex ^<prefix>/\ncache deny throughline",
        ),
        "shared": Remedy(
            "Switch off the joining of equal requests, and take the service's paths out of the cache.",
            "collapsed_forwarding off\nacl throughline urlpath_regex ^<prefix>/\ncache deny throughline",
        ),
        "buffered": Remedy(
            "Take the service's paths out of each ICAP and eCAP service.",
            "acl throughline urlpath_regex ^<prefix>/\nadaptation_access NAME deny throughline",
        ),
        "idle_cutoff": Remedy("Raise read_timeout, which is 15 minutes by default.", "read_timeout 1 hour"),
        "poll_cut": Remedy("Raise read_timeout and request_timeout above 60 s.", "read_timeout 1 hour"),
        "request_timeout": Remedy("Raise client_lifetime, which is a day by default.", "client_lifetime 1 day"),
        "leaving_unnoticed": Remedy(
            "Have fetches end with their clients.", "quick_abort_min 0 KB\nquick_abort_max 0 KB"
        ),
        "last_event_id_stripped": Remedy("Take out request_header_access Last-Event-ID deny."),
        "cors_missing": Remedy("Take out reply_header_access Access-Control-Allow-Origin deny."),
        "cors_doubled": Remedy("Take out reply_header_add Access-Control-Allow-Origin."),
        "http1": Remedy("Squid speaks HTTP/1.1 only: put nginx, Caddy or HAProxy with TLS before it."),
    },
    "lighttpd": {
        "buffered": Remedy(
            "Pass responses on as they come; lighttpd waits for their end by default.", _LIGHTTPD_STREAM
        ),
        "content_length": Remedy("Pass responses on as they come.", _LIGHTTPD_STREAM),
        "compressed": Remedy(
            "Take text/event-stream out of deflate.mimetypes.", 'deflate.mimetypes = ("text/html", "text/css")'
        ),
        "leaving_unnoticed": Remedy("Pass responses on as they come.", _LIGHTTPD_STREAM),
        "idle_cutoff": Remedy(
            "Raise the time-outs for reading from the service and for writing to clients.",
            'proxy.server = ("" => (("host" => "127.0.0.1", "port" => 8000, "read-timeout" => 3600)))\n'
            "server.max-write-idle = 3600",
        ),
        "poll_cut": Remedy(
            "Raise the time-out for reading from the service.",
            'proxy.server = ("" => (("host" => "127.0.0.1", "port" => 8000, "read-timeout" => 90)))',
        ),
        "cors_doubled": Remedy("Take out setenv.add-response-header for Access-Control-Allow-Origin."),
    },
    "traefik": {
        "buffered": Remedy("Take the middleware `buffering` out of the service's router."),
        "compressed": Remedy(
            "Exclude streams in the middleware `compress`.",
            "compress:\n  excludedContentTypes:\n    - text/event-stream",
        ),
        "request_timeout": Remedy(
            "Set the entry point's writeTimeout to 0, as it is by default.",
            "entryPoints:\n  websecure:\n    transport:\n      respondingTimeouts:\n        writeTimeout: 0",
        ),
        "poll_cut": Remedy(
            "Take responseHeaderTimeout out of the servers transport.",
            "serversTransport:\n  forwardingTimeouts:\n    responseHeaderTimeout: 0s",
        ),
        "status_rewritten": Remedy("Take the middleware `errors` out of the service's router."),
        "cors_doubled": Remedy("Take accessControlAllowOriginList out of the middleware `headers` of this router."),
    },
    "envoy": {
        "buffered": Remedy(
            "Take the filter envoy.filters.http.buffer out for this route, and filters that read bodies."
        ),
        "compressed": Remedy("Take text/event-stream out of the compressor's content_type."),
        "request_timeout": Remedy(
            "Switch off the route's timeout, which is 15 s by default.", "route:\n  timeout: 0s\n  idle_timeout: 3600s"
        ),
        "poll_cut": Remedy(
            "Raise the route's timeout, which is 15 s by default.", "route:\n  timeout: 0s\n  idle_timeout: 3600s"
        ),
        "idle_cutoff": Remedy(
            "Raise the route's idle_timeout, or stream_idle_timeout, which is 5 minutes by default.",
            "route:\n  timeout: 0s\n  idle_timeout: 3600s",
        ),
        "cors_doubled": Remedy("Take the filter envoy.filters.http.cors out for this route."),
        "http1": Remedy("Offer HTTP/2.", 'common_tls_context:\n  alpn_protocols: ["h2", "http/1.1"]'),
    },
    "cloudflare": {
        "buffered": Remedy(
            "Let Workers, Apps and virus scanners not read the stream, and switch off response buffering (Enterprise). "
            "Cloudflare itself passes text/event-stream on at once."
        ),
        "compressed": Remedy(
            "Add a compression rule that disables it for the service's paths.",
            'When:  starts_with(http.request.uri.path, "<prefix>/")\nThen:  Disable compression',
        ),
        "cached": Remedy(
            "Take `Cache Everything` away from the service's paths by a cache rule.",
            'When:  starts_with(http.request.uri.path, "<prefix>/")\nThen:  Bypass cache',
        ),
        "shared": Remedy(
            "Take `Cache Everything` away from the service's paths by a cache rule.",
            'When:  starts_with(http.request.uri.path, "<prefix>/")\nThen:  Bypass cache',
        ),
        "idle_cutoff": Remedy(
            "Cloudflare cuts what is quiet for some 100 s, which only Enterprise plans can raise. If the cut-off is "
            "shorter, it is set on your own server. Otherwise let heartbeats come more often.",
            "SSE_HEARTBEAT=<heartbeat>",
        ),
        "not_ours": Remedy(
            "Take the service's paths out of Access, Under Attack mode and challenges.",
            'When:  starts_with(http.request.uri.path, "<prefix>/")\nThen:  Skip all remaining custom rules',
        ),
        "status_rewritten": Remedy("Take custom error pages and Workers away from the service's paths."),
        "http1": Remedy("Switch on HTTP/2 for visitors in the dashboard: Speed, Settings, Protocol Optimization."),
    },
    "cloudfront": {
        "buffered": Remedy("Let no Lambda@Edge read the response, and switch off compression for these paths."),
        "compressed": Remedy("Switch off `Compress objects automatically` in the cache behavior for these paths."),
        "cached": Remedy(
            "Give the service's paths a cache behavior of their own, with the managed policies CachingDisabled and "
            "AllViewer."
        ),
        "shared": Remedy(
            "Give the service's paths a cache behavior of their own, with the managed policies CachingDisabled and "
            "AllViewer."
        ),
        "idle_cutoff": Remedy(
            "Raise the origin's response timeout, which is 30 s by default and holds for each packet. Heartbeats come "
            "in time if it is above SSE_HEARTBEAT.",
            "SSE_HEARTBEAT=<heartbeat>",
        ),
        "poll_cut": Remedy(
            "Raise the origin's response timeout, which is 30 s by default, or let polls wait less.",
            "SSE_POLL_TIMEOUT=<poll>",
        ),
        "request_timeout": Remedy(
            "Raise or take away the origin's response completion timeout, or let the service end streams first.",
            "SSE_STREAM_LIFETIME=<lifetime>",
        ),
        "last_event_id_stripped": Remedy("Give the behavior an origin request policy that forwards it: AllViewer."),
        "cors_missing": Remedy(
            "Give the behavior the origin request policy AllViewer, so that Origin reaches the service, and allow the "
            "methods GET, HEAD, OPTIONS, PUT, POST, PATCH, DELETE."
        ),
        "cors_doubled": Remedy("Take the CORS headers out of the response headers policy of this behavior."),
        "status_rewritten": Remedy("Take out the custom error responses of the distribution, or use a second one."),
    },
    "fastly": {
        "buffered": Remedy(
            "Pass the service's paths, and let VCL stream misses, which beresp.do_stream = true does.",
            'sub vcl_recv {\n    if (req.url ~ "^<prefix>/") { return (pass); }\n}',
        ),
        "compressed": Remedy("Take text/event-stream out of the gzip and Brotli policies of the service."),
        "cached": Remedy(
            "Pass the service's paths.", 'sub vcl_recv {\n    if (req.url ~ "^<prefix>/") { return (pass); }\n}'
        ),
        "shared": Remedy(
            "Pass the service's paths, which also ends request collapsing.",
            'sub vcl_recv {\n    if (req.url ~ "^<prefix>/") { return (pass); }\n}',
        ),
        "idle_cutoff": Remedy(
            "Raise between_bytes_timeout of the backend, or let heartbeats come more often.",
            "SSE_HEARTBEAT=<heartbeat>",
        ),
        "poll_cut": Remedy(
            "Raise first_byte_timeout of the backend, which is 15 s by default, or let polls wait less.",
            "SSE_POLL_TIMEOUT=<poll>",
        ),
    },
    "firebase": {
        "buffered": Remedy(
            "Each response is gathered to its end, and no setting changes that. Let pages go to the service's own "
            "address, and allow the site's origin there by SSE_ORIGINS.",
            _OWN_ORIGIN,
        ),
        "request_timeout": Remedy(
            "Each request ends after 60 s, and no setting changes that. Let pages go to the service's own address.",
            _OWN_ORIGIN,
        ),
        "lifetime": Remedy(
            "Each request ends after 60 s, and no setting changes that. Let pages go to the service's own address.",
            _OWN_ORIGIN,
        ),
        "idle_cutoff": Remedy(
            "Each request ends after 60 s, and no setting changes that. Let pages go to the service's own address.",
            _OWN_ORIGIN,
        ),
        "content_length": Remedy("Let pages go to the service's own address.", _OWN_ORIGIN),
        "cached": Remedy("Let pages go to the service's own address.", _OWN_ORIGIN),
        "not_ours": Remedy(
            'The rewrite to index.html answers in place of the service. Put one for the service before "**".',
            '"rewrites": [\n  {"source": "<prefix>/**", "run": {"serviceId": "SERVICE", "region": "REGION"}},\n'
            '  {"source": "**", "destination": "/index.html"}\n]',
        ),
    },
    "cloudrun": {
        "request_timeout": Remedy(
            "Raise the request timeout, which is 300 s by default and an hour at most.", _CLOUD_RUN_TIMEOUT
        ),
        "lifetime": Remedy(
            "Raise the request timeout, which is 300 s by default and an hour at most. If you have done so, this is no "
            "fault.",
            _CLOUD_RUN_TIMEOUT,
        ),
        "frozen": Remedy(
            "Have the CPU always allocated, and one instance at least.",
            "gcloud run services update SERVICE --no-cpu-throttling --min-instances=1",
        ),
        "cors_missing": Remedy(
            "If Cloud Run refuses OPTIONS, the service wants authentication by IAM: allow unauthenticated requests.",
            "gcloud run services add-iam-policy-binding SERVICE --member=allUsers --role=roles/run.invoker",
        ),
    },
    "google": {
        "request_timeout": Remedy(
            "Raise the timeout of the backend service, which is 30 s by default and holds for the whole response.",
            "gcloud compute backend-services update NAME --global --timeout=3600",
        ),
        "idle_cutoff": Remedy(
            "Raise the timeout of the backend service, which is 30 s by default.",
            "gcloud compute backend-services update NAME --global --timeout=3600",
        ),
        "poll_cut": Remedy(
            "Raise the timeout of the backend service, which is 30 s by default.",
            "gcloud compute backend-services update NAME --global --timeout=3600",
        ),
        "cached": Remedy(
            "Let Cloud CDN obey the service's headers.",
            "gcloud compute backend-services update NAME --global --cache-mode=USE_ORIGIN_HEADERS",
        ),
        "compressed": Remedy(
            "Switch off dynamic compression.",
            "gcloud compute backend-services update NAME --global --compression-mode=DISABLED",
        ),
    },
    "heroku": {
        "idle_cutoff": Remedy(
            "The router cuts what is quiet for 55 s, and no setting changes that. Heartbeats have to come more often.",
            "heroku config:set SSE_HEARTBEAT=<heartbeat>",
        ),
        "poll_cut": Remedy(
            "The router wants the first byte within 30 s, and no setting changes that. Polls have to wait less.",
            "heroku config:set SSE_POLL_TIMEOUT=25",
        ),
        "frozen": Remedy("Eco dynos sleep. Take a dyno type that does not.", "heroku ps:type web=basic"),
    },
    "vercel": {
        "buffered": Remedy("Let pages go to the service's own address, past Vercel's rewrites.", _OWN_ORIGIN),
        "request_timeout": Remedy(
            "The time of external rewrites is limited. Let pages go to the service's own address.", _OWN_ORIGIN
        ),
        "idle_cutoff": Remedy("Let pages go to the service's own address, past Vercel's rewrites.", _OWN_ORIGIN),
    },
    "netlify": {
        "buffered": Remedy("Let pages go to the service's own address, past Netlify's redirects.", _OWN_ORIGIN),
        "request_timeout": Remedy(
            "The time of proxied requests is limited. Let pages go to the service's own address.", _OWN_ORIGIN
        ),
        "idle_cutoff": Remedy("Let pages go to the service's own address, past Netlify's redirects.", _OWN_ORIGIN),
        "not_ours": Remedy(
            "The rule for single-page apps answers in place of the service. Put a rule for the service before it.",
            "<prefix>/*  https://SERVICE<prefix>/:splat  200",
        ),
    },
    "alb": {
        "idle_cutoff": Remedy(
            "Raise the idle timeout, which is 60 s by default, or let heartbeats come more often.",
            "aws elbv2 modify-load-balancer-attributes --load-balancer-arn ARN \\\n"
            "  --attributes Key=idle_timeout.timeout_seconds,Value=3600",
        ),
        "poll_cut": Remedy(
            "Raise the idle timeout, which is 60 s by default.",
            "aws elbv2 modify-load-balancer-attributes --load-balancer-arn ARN \\\n"
            "  --attributes Key=idle_timeout.timeout_seconds,Value=3600",
        ),
        "http1": Remedy(
            "Switch on HTTP/2.",
            "aws elbv2 modify-load-balancer-attributes --load-balancer-arn ARN \\\n"
            "  --attributes Key=routing.http2.enabled,Value=true",
        ),
    },
    "azure": {
        "idle_cutoff": Remedy(
            "App Service cuts what is quiet for 230 s, and no setting changes that. Front Door waits for 30 s by "
            "default, and Application Gateway as long as its backend setting says: raise that.",
            "az afd profile update --resource-group GROUP --profile-name NAME --origin-response-timeout-seconds 240",
        ),
        "poll_cut": Remedy(
            "Raise the origin response timeout of Front Door, or the request time-out of Application Gateway.",
            "az afd profile update --resource-group GROUP --profile-name NAME --origin-response-timeout-seconds 240",
        ),
        "buffered": Remedy(
            "In Application Gateway v2, switch off response buffering. In API Management, set buffer-response.",
            '<forward-request buffer-response="false" />',
        ),
        "frozen": Remedy(
            "Switch on Always On.", "az webapp config set --resource-group GROUP --name NAME --always-on true"
        ),
        "http1": Remedy(
            "Switch on HTTP/2.", "az webapp config set --resource-group GROUP --name NAME --http20-enabled true"
        ),
    },
}
"""The remedies of each proxy. What a proxy has no lines for is told in general words."""


def remedy_for(code: str, proxies: Sequence[str], facts: Mapping[str, Any]) -> tuple[str, str]:
    """Return sentences that tell the remedy, and the lines to paste, which may be empty.

    :param proxies: the proxies on the way, as `sse.doctor.proxies` names them.
    :param facts: what the remedy has to name, such as `seconds` and `origin`, the service's settings, and the `case`
        if the cause is not the usual one.
    """
    values = _values(facts)
    if special := _CASES.get(facts.get("case", "")):
        return _filled(special.text, values), _filled(special.paste, values)
    known = [(name_of(proxy), _OF[proxy][code]) for proxy in proxies if code in _OF.get(proxy, ())][:_MOST_PROXIES]
    if not known:
        text, paste = _GENERAL[code]
        if not proxies and facts.get("client") == "command" and code in _OF["nginx"] and code != "http1":
            text += " If you know which proxy it is, --proxy NAME tells the lines for it."
        return _filled(text, values), _filled(paste, values)
    if len(known) == 1:
        [(name, (text, paste))] = known
        return _filled(f"{name}: {text}", values), _filled(paste, values)
    text = " ".join(f"{name}: {remedy.text}" for name, remedy in known)
    paste = "\n\n".join(f"# {name}\n{remedy.paste}" for name, remedy in known if remedy.paste)
    return _filled(text, values), _filled(paste, values)


def _values(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the text for each word in angle brackets."""
    seconds = float(facts.get("seconds") or 60)
    return {
        "heartbeat": f"{max(seconds // 2, _SHORTEST_HEARTBEAT):.0f}",
        "lifetime": f"{max(seconds / _JITTER // 1, _SHORTEST_LIFETIME):.0f}",
        "poll": f"{min(max(seconds * 0.7 // 1, 1), _LONGEST_POLL):.0f}",
        "origin": str(facts.get("origin", "https://www.example")),
        "count": str(facts.get("count", 1)),
        "prefix": _prefix(str(facts.get("url", ""))),
    }


def _prefix(url: str) -> str:
    found = re.match(r"https?://[^/?#]*(/[\w./~-]{1,100})", url, re.ASCII)
    return found[1].rstrip("/") or "/sse" if found else "/sse"


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"<([a-z]+)>", lambda found: values.get(found[1], found[0]), text)
