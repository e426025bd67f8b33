"""Exit with 0 if the service in this container is ready, and with 1 and the reason if it is not.

For HEALTHCHECK in the image, and for anything else that can run a command in the container. It asks PREFIX/ready, or
the path in its argument, where the service listens: BIND, else PORT of this machine.
"""

import http.client
import os
import socket
import sys

SECONDS = 4


class UnixConnection(http.client.HTTPConnection):
    """A connection over the unix socket whose path is given in the place of a host."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def connection(bind: str) -> http.client.HTTPConnection:
    if bind.startswith("unix:"):
        return UnixConnection(bind.removeprefix("unix:"), timeout=SECONDS)
    host, _, port = bind.rpartition(":")
    return http.client.HTTPConnection(host.strip("[]"), int(port), timeout=SECONDS)  # 0.0.0.0 and :: are here, too


def main() -> str | None:
    """Return the reason why the service is not ready."""
    bind = os.environ.get("BIND") or f"127.0.0.1:{os.environ.get('PORT') or 8000}"
    path = sys.argv[1] if len(sys.argv) > 1 else f"{os.environ.get('SSE_PREFIX') or '/sse'}/ready"
    try:
        asked = connection(bind)
        asked.request("GET", path)
        answer = asked.getresponse()
        text = answer.read(2000).decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{bind} does not answer: {error}"
    return None if answer.status == 200 else f"{path} answers {answer.status}: {text}"


if __name__ == "__main__":
    sys.exit(main())
