"""flask-sse's names over this service. An app of flask-sse changes one import, and is served as any other app here.

    from sse.compat.flask_sse import sse     # instead of: from flask_sse import sse

    app.config["REDIS_URL"] = "redis://localhost"
    app.register_blueprint(sse, url_prefix="/stream")

docs/migrating.md says what is different.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

from flask import Blueprint, Flask, Response, request

from sse.event import DEFAULT_TYPE
from sse.extension import SSE
from sse.log import warn_once

__all__ = ["ServerSentEventsBlueprint", "sse"]

_CHANNEL: Final = "sse"
_BLUEPRINT: Final = "throughline"  # of the service's own routes, because flask-sse's blueprint is called sse


class ServerSentEventsBlueprint(Blueprint):
    """A blueprint with flask-sse's methods. Its hooks, such as `before_request`, guard its stream as they did there.

    Any channel may be read through its stream if its hooks let the request pass. The service's own routes under
    SSE_PREFIX are closed until SSE_PUBLIC or a rule opens channels there.
    """

    extension: SSE = SSE()
    """This service, with all that flask-sse lacks. One serves all blueprints of this class."""

    def register(self, app: Flask, options: dict[str, Any]) -> None:  # type: ignore[override]
        """Register the blueprint on an app, and the service if the app does not have it yet."""
        if "sse" not in app.extensions:
            self.extension.init_app(app, blueprint=_BLUEPRINT)
        super().register(app, options)

    def publish(
        self,
        data: object,
        type: str | None = None,
        id: object = None,
        retry: object = None,
        channel: str = _CHANNEL,
    ) -> str:
        """Publish an event as `SSE.publish` does, and return its id.

        :param type: None for `message`.
        :param id: is not sent. The service's own ids let a client resume; the log says so once.
        :param retry: is not sent. SSE_RETRY sets it for all; the log says so once.
        :raises InvalidEvent: as `SSE.publish` does. Unlike with flask-sse, a channel has a name as there.
        """
        if id is not None:
            warn_once(
                "sse.publish(id=…) is not sent, because a client resumes by the service's own ids: put an id of your "
                "own into the data"
            )
        if retry is not None:
            warn_once("sse.publish(retry=…) is not sent: set SSE_RETRY, in milliseconds, for all streams")
        return self.extension.publish(channel, data, type or DEFAULT_TYPE)

    def stream(self) -> Response:
        """Return a stream of the channels that the query names, `sse` by default. The blueprint's root is this view."""
        channels = [channel for channel in request.args.getlist("channel") if channel]
        return self.extension.subscribe(*(channels or [_CHANNEL]))

    def messages(self, channel: str = _CHANNEL) -> NoReturn:
        """Raise an error: events do not come through a generator of this process.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError(
            f"sse.messages({channel!r}) is not there: have your view return sse.extension.subscribe(channel), or read "
            "the stream over HTTP as docs/clients.md shows"
        )

    @property
    def redis(self) -> NoReturn:
        """Raise an error: the service keeps its connections to itself.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError(
            "sse.redis is not there: make a client of your own, redis.Redis.from_url(…); publish with sse.publish"
        )


_MISSING: Final = {"Message": "sse.publish(data, type) publishes an event, and sse.Event(data, type) is one"}


def __getattr__(name: str) -> NoReturn:
    """Say what to use in place of a name of flask-sse that is not here."""
    if remedy := _MISSING.get(name):
        raise ImportError(f"sse.compat.flask_sse has no {name}: {remedy}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sse = ServerSentEventsBlueprint("sse", __name__)
"""The blueprint to register, with the stream at its root."""
sse.add_url_rule("", "stream", sse.stream)
