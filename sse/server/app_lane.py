"""What the worker needs of an app's fast lane, which is a `web.lane.Lane`. That module must not be imported here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sse.server.publishes import Prepared


class Rule(Protocol):
    """Says whether requests may go past Flask."""

    mode: str
    reasons: tuple[str, ...]
    passed_by: tuple[str, ...]

    def why_off(self) -> str: ...
    def look(self) -> tuple[str, ...]: ...


class Reply(Protocol):
    """An answer, without the headers that say who sends it, when, and how its body is framed."""

    @property
    def status(self) -> str: ...
    @property
    def headers(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def body(self) -> Any:
        """The bytes, or a `Stream`, or a `Poll` that waits."""

    @property
    def breaks_off(self) -> bool: ...


class AppLane(Protocol):
    """Decides on requests. Routes and requests are its own: the worker only passes them on."""

    @property
    def app(self) -> Any: ...
    @property
    def rule(self) -> Rule: ...
    def route(self, method: str, path: str) -> Any: ...
    def request(self, environ: dict[str, Any]) -> Any: ...
    def reply(self, route: Any, request: Any) -> Reply | None: ...
    def may_ask_app(self, route: Any, request: Any) -> bool: ...
    def prepare(self, route: Any, request: Any) -> Prepared | Reply | None: ...
    def publish_each(self, calls: Sequence[Sequence[Any]]) -> Sequence[Any]: ...
    def published(self, request: Any, prepared: Any, outcome: Any) -> Reply: ...
    def failed(self, route: Any, request: Any) -> Reply: ...
