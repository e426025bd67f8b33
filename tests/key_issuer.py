"""A web server on loopback that answers with a set of keys, as an identity provider does."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler

from tests.servers import HttpServer
from tests.tokens import jwk_set


class Issuer(HttpServer):
    """Serves `body` with `status` at `url`, byte by byte while it `drips`, and counts how often it was asked."""

    def __init__(self) -> None:
        self.status, self.body, self.asked = 200, jwk_set("RS256"), 0
        self.drips = False
        self.go_on = threading.Event()
        self.go_on.set()
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/keys"


class _Answer(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.server.asked += 1
        body = self.server.body.encode()
        self.send_response(self.server.status)
        self.send_header("Location", "/keys")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.server.go_on.wait(20)
        while body and self.server.drips:
            self.wfile.write(body[:1])
            body = body[1:]
            time.sleep(0.1)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
