"""The Flask extension: `sse = SSE(app)`, or `sse.init_app(app)`."""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import cast

from flask import Flask, current_app, has_request_context, json, request
from flask.logging import default_handler

from sse.access.decision import Authorize, check_rule, unreached
from sse.access.revocations import one_revoked
from sse.access.token import Grant
from sse.config import Config, foreign, of_interest
from sse.errors import InvalidEvent
from sse.event import DEFAULT_TYPE, check_channel, check_idempotency_key, plain_int, plain_str
from sse.event import Event as StoredEvent
from sse.log import follow_app, keep_until_exit, warn
from sse.service import Service
from sse.stores import Publication
from sse.unheard import unheard
from sse.web.views import make_blueprint

_log = logging.getLogger("sse")


class SSE:
    """Server push for a Flask app: routes under SSE_PREFIX, and `publish`.

    Settings come from the environment and from `app.config`, which wins. They are read once, here or by `init_app`; the
    log tells of settings that are put into `app.config` later. Nothing is connected before the first use.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._authorize: Authorize | None = None
        self._services: weakref.WeakSet[Service] = weakref.WeakSet()  # an app that nobody else holds goes
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Register the routes on `app`.

        :raises ConfigError: naming every setting that is unknown or has a bad value. An unknown SSE_* name in the
            environment that is not nearly one of ours may be another program's: the log tells that it is passed over.
        """
        follow_app(weakref.ref(app))
        keep_until_exit(default_handler)
        environ = of_interest(os.environ)
        if names := foreign(environ):
            warn("%s in the environment: not settings of Throughline, so they are passed over", ", ".join(names))
        service = Service(Config.load(environ, app.config))
        service.at_first_use = partial(_tell_late, service.config, environ, app.config)
        app.extensions["sse"] = service
        self._services.add(service)
        app.register_blueprint(make_blueprint(service, lambda: self._authorize))

    def authorize(self, rule: Callable[[str], bool]) -> Callable[[str], bool]:
        """Decorate the function that decides whether the current request may read a channel.

        It is asked for each channel that SSE_PUBLIC does not match and no token grants, before anything is read or
        founded. Only `True` opens the channel. Anything else refuses it, as `False` does, and the log tells of answers
        that are neither a bool nor None. An error that the function raises, as by `abort`, becomes the answer.

        :raises TypeError: if the function is async or a generator, so that it can never answer `True`.
        """
        self._authorize = check_rule(rule)
        return rule

    def publish(
        self, channel: str, data: object, type: str = DEFAULT_TYPE, *, idempotency_key: str | None = None
    ) -> str:
        """Put an event on a channel of the current app; the id that it got, `channel=position`.

        A string is sent as its text, bytes as a `data:` URL, any other value as compact JSON: that of
        `json.dumps`, else, where that refuses a type such as datetime, that of `app.json.dumps`. Flask's own provider
        sorts the keys of an object, and so refuses strings beside numbers among them. A member of a `(str, Enum)`,
        Markup, and every other subclass of str, int or bytes counts as the plain value that it holds.

        With an idempotency key, repeating the call within 300 s stores nothing twice and gives the same id. A JSON
        provider of the app's own has to write equal values alike, or the repetition is a conflict. Any thread may call
        this.

        :raises InvalidEvent: if the channel, type, data or idempotency key can never be published. An error of
            `app.json` that is neither a TypeError, a ValueError nor a RecursionError passes as it is.
        :raises TooLarge: if the data is over SSE_MAX_EVENT_BYTES.
        :raises IdempotencyConflict: if the key was used before for another event.
        :raises StoreUnavailable: if the event may not be stored, within SSE_REDIS_TIMEOUT when Redis does not answer;
            publish again with the same key. Also if this is a real thread that gevent does not know, and gevent's loop
            is blocked for as long.
        :raises Unavailable: if several processes serve the app over the memory store, which is for one.
        """
        service = get_service()
        _check_process(service)
        event = service.check(StoredEvent(data, type, _write_json))
        key = None if idempotency_key is None else f"app:{check_idempotency_key(idempotency_key)}"
        channel = check_channel(channel)
        position = service.publish([Publication(channel, event, key)])[0]
        return f"{channel}={position}"

    def ticket(self, channels: Iterable[str], sub: str = "", *, lifetime: int | None = None) -> str:
        """A ticket for a page of the current app: for 60 s, as the query parameter `token`, it opens streams and polls.

        It is for reading these channels only. `sub` is whom it speaks for, to be named in `revoke`. The streams that
        it opens end after `lifetime` seconds; without one, as all others do.

        :raises InvalidEvent: if a channel is not one, they are no list, or none; if `sub` is no string, or
            `lifetime` not above 0.
        :raises TooLarge: for more channels than a ticket can name.
        :raises NotFound: without SSE_SECRET, by which tickets are signed.
        """
        if isinstance(channels, str):
            raise InvalidEvent(f"channels is the string {plain_str(channels)[:60]!a}", "give a list of channels")
        if not isinstance(sub, str):
            raise InvalidEvent(f"sub is {sub!a}", "give a string")
        seconds = plain_int(lifetime) if isinstance(lifetime, int) else lifetime
        if seconds is not None and not seconds > 0:
            raise InvalidEvent(f"lifetime is {seconds}", "give seconds, more than 0")
        service = get_service()
        if service.at_first_use:
            service.begin()
        channels = [check_channel(channel) for channel in channels]
        if not channels:
            raise InvalidEvent("no channel is named", "give one or more")
        now = time.time()
        ends_at = math.inf if seconds is None else now + seconds
        grant = Grant(plain_str(sub), id=secrets.token_hex(8), issued_at=now, ends_at=ends_at)
        return service.tokens.make_ticket(channels, grant)

    def revoke(self, *, sub: str | None = None, channel: str | None = None, token: str | None = None) -> None:
        """End the streams and waiting polls of a subject, on a channel, or of a token (its `jti`), on every worker.

        What was issued to the subject, or for the channel, until now is refused from then on; a token for good.
        For readers whom the app's rule let in, the rule is asked anew. The log warns if that ends nobody's reading: on
        a channel that SSE_PUBLIC matches, and for a subject or token where no tokens are configured. Any thread may
        call this.

        :raises ValueError: unless exactly one is given, a string; for a whole token in place of its `jti`.
        :raises InvalidEvent: if the channel is not one; a pattern is not.
        :raises StoreUnavailable: if it may not have been stored: revoke again.
        """
        service = get_service()
        _check_process(service)
        kind, value = one_revoked(sub=sub, channel=channel, token=token)
        service.revoke(kind, check_channel(value) if kind == "channel" else value)
        if trouble := unreached(service.config, kind, value):
            warn("revoke: %s", trouble)

    def close(self) -> None:
        """End this process's threads and connections for all apps of this `SSE`, as at the end of a test.

        Streams say `sse.close` with the reason `drain` and end, waiting polls are answered, and publishes under way are
        finished. With the memory store, its events are gone. The next use makes everything anew.

        It needs no app context, and a second call does nothing. It waits for each thread, for 5 s at most; a thread
        that still waits for Redis then ends by itself. An app that is garbage-collected is closed by itself.
        """
        for service in list(self._services):
            service.close()


class Event(StoredEvent):
    """An event to publish: `data`, as the text that a stream shows, and `type`.

    A string is kept as its text, with CRLF and CR made LF; bytes become a `data:` URL; any other value becomes compact
    JSON, as `SSE.publish` writes it for the current app; outside of an app, by Flask's default rules.

    :raises InvalidEvent: for a type that is reserved or not 1 to 64 visible characters, and for data with a lone
        surrogate, a number that is not finite, or no JSON form.
    """

    __slots__ = ()

    def __init__(self, data: object, type: str = DEFAULT_TYPE) -> None:
        super().__init__(data, type, _write_json)


def _write_json(value: object) -> object:
    """Return a value's JSON as the current app writes it; outside of an app, as Flask's DefaultJSONProvider does."""
    return current_app.json.dumps(value) if current_app else json.dumps(value, sort_keys=True)


def _tell_late(read: Config, environ: Mapping[str, object], config: Mapping[str, object]) -> None:
    """Tell of settings that have come into an app's `config`, or gone from it, since they were `read`."""
    if late := read.late(environ, config):
        _log.warning(
            "app.config was changed after SSE(app) had read it, and that does not count for %s: make these settings "
            "before SSE(app), or make sse = SSE() and call sse.init_app(app) after them",
            ", ".join(late),
        )


def _check_process(service: Service) -> None:
    """Refuse a request to write where other processes cannot see it, and have the log tell if nobody can see it.

    :raises Unavailable: if several processes serve the app over the memory store.
    """
    if has_request_context():
        service.check_workers(request.is_multiprocess)
    if not service.shared:
        unheard.note_write(cast("Flask", current_app._get_current_object()))  # type: ignore[attr-defined]


def get_service() -> Service:
    """The service of the current app.

    :raises RuntimeError: outside of an app context, or if no `SSE` was initialised for the app.
    """
    service = current_app.extensions.get("sse")
    if service is None:
        raise RuntimeError("this app has no SSE: call SSE(app), or sse.init_app(app)")
    return cast("Service", service)
