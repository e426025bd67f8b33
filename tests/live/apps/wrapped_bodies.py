"""The inspected service behind a WSGI middleware that wraps every response body."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.live.apps.inspected import application

inner: Callable[..., Iterable[bytes]] = application.wsgi_app


class Wrapped:
    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close:
            close()


def middleware(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    return Wrapped(inner(environ, start_response))


application.wsgi_app = middleware  # type: ignore[method-assign]
