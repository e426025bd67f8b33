"""The Flask extension: `sse = SSE(app)`, or `sse.init_app(app)`."""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, Literal, NoReturn, TypeVar, cast

from flask import Flask, Response, current_app, has_request_context, json, request
from flask.logging import default_handler

from sse.access.decision import Authorize, check_rule, unreached
from sse.access.revocations import one_revoked
from sse.access.token import Grant
from sse.config import Config, foreign, of_interest
from sse.errors import InvalidEvent
from sse.event import DEFAULT_TYPE, check_channel, plain_int, plain_str
from sse.event import Event as StoredEvent
from sse.log import follow_app, keep_until_exit, warn
from sse.service import Service, SourceRules
from sse.unheard import unheard
from sse.web import own_views
from sse.web.admission import Identify
from sse.web.channel_rules import ChannelRules, HTTPNotFound, variables_of
from sse.web.own_views import OwnView
from sse.web.views import Views, make_blueprint
from sse.work.calls import check_function
from sse.work.presence import Happening
from sse.work.source import Source, check_source
from sse.work.sources import Match
from sse.work.writer import Writer

_log = logging.getLogger("sse")
F = TypeVar("F", bound=Callable[..., Any])

_OF_THE_BODY: Final = (
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "transfer-encoding",
    "x-accel-buffering",
)
"""The headers that say how an own view's answer is written."""


class SSE:
    """Server push for a Flask app: the routes under SSE_PREFIX, and methods that publish and control who reads.

    Settings come from the environment and from `app.config`, which wins. They are read once, here or by `init_app`, and
    the log warns of settings that are put into `app.config` later. Nothing connects or starts before the first use.

    One `SSE` may serve several apps. Each app has its own settings and its own store, and a method acts on the app
    whose context is active.

    :param app: the app to register the routes on; None leaves that to `init_app`.
    :raises ConfigError: as `init_app` does.

    >>> from flask import Flask
    >>> from sse import SSE
    >>> app = Flask(__name__)
    >>> app.config["SSE_PUBLIC"] = "news"
    >>> sse = SSE(app)
    >>> app.test_client().get("/sse/poll?channel=news&timeout=0").json["events"]
    []
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._authorize: Authorize | None = None
        self._identify: Identify | None = None
        self._happenings: dict[Happening, ChannelRules] = {"joined": ChannelRules(), "left": ChannelRules()}
        self._rules = ChannelRules()
        self._services: weakref.WeakSet[Service] = weakref.WeakSet()  # an app that nobody else holds goes
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, *, blueprint: str = "sse") -> None:
        """Read the settings and register the routes on an app.

        Call this once for each app, after its settings have been made. If the environment has an unknown `SSE_…` name
        that does not resemble a setting, the name may belong to another program: the log says that it is ignored.

        :param app: the app.
        :param blueprint: the name of the blueprint that the routes come as, for apps that have another blueprint `sse`.
        :raises ConfigError: if a setting is unknown or has a bad value. The message names all of them.

        >>> from sse import SSE
        >>> sse = SSE()
        >>> def create_app(config):
        ...     app = Flask(__name__)
        ...     app.config.from_mapping(config)
        ...     sse.init_app(app)
        ...     return app
        >>> create_app({"SSE_PREFIX": "/push"}).test_client().get("/push/sse.js").status
        '200 OK'
        """
        follow_app(weakref.ref(app))
        keep_until_exit(default_handler)
        environ = of_interest(os.environ)
        if names := foreign(environ):
            warn("%s in the environment: not settings of Throughline, so they are ignored", ", ".join(names))
        service = Service(Config.load(environ, app.config))
        service.at_first_use = partial(_tell_late, service.config, environ, app.config)
        for rules in self._happenings.values():
            rules.know(app.url_map.converters)
        service.find_call = partial(_find_call, self._happenings, app)
        self._rules.know(app.url_map.converters)
        service.source_rules = SourceRules(
            match=cast("Match", self._rules.match),
            context=app.app_context,
            event_of=partial(_item_of, service),
        )
        if self._rules:
            service.use_sources()
        app.extensions["sse"] = service
        self._services.add(service)
        app.register_blueprint(make_blueprint(service, lambda: self._authorize, lambda: self._identify, blueprint))

    def register(self, app: Flask, options: Mapping[str, object]) -> NoReturn:  # noqa: ARG002 - as of a blueprint
        """Say what to do instead of `app.register_blueprint(sse)`, which calls this.

        :param app: the app.
        :param options: those of `register_blueprint`.
        :raises TypeError: always.

        >>> from sse import SSE
        >>> try:
        ...     app.register_blueprint(SSE(), url_prefix="/stream")
        ... except TypeError as error:
        ...     print(str(error).partition(":")[0])
        SSE() is no blueprint
        """
        raise TypeError(
            "SSE() is no blueprint: call sse.init_app(app), which registers its routes under SSE_PREFIX; an app of "
            "flask-sse keeps its code with `from sse.compat.flask_sse import sse`"
        )

    def authorize(self, rule: Callable[[str], bool]) -> Callable[[str], bool]:
        """Decorate the function that decides whether the current request may read a channel, and return the function.

        The function is called for each channel that SSE_PUBLIC does not match and no token grants, before the store is
        asked. Only `True` opens the channel. Every other answer refuses it, and the log names an answer that is neither
        a bool nor None. The refusal is a 403. It is a 401, as below, if SSE_SECRET or SSE_JWKS is set and the request
        has no token. If the function raises an error, as `abort` does, the error becomes the answer to the request.
        There is one such function: a later one takes the place of an earlier one.

        :param rule: a function that takes the name of a channel and returns a bool. It runs in the request's context.
        :raises TypeError: if the rule cannot be called, or is async or a generator and so can never return `True`.

        >>> from flask import session
        >>> @sse.authorize
        ... def may_read(channel: str) -> bool:
        ...     return "user" in session and channel == f"user/{session['user']}"
        >>> client.get("/sse/poll?channel=user/ann&timeout=0").status
        '401 UNAUTHORIZED'
        >>> with client.session_transaction() as login:
        ...     login["user"] = "ann"
        >>> client.get("/sse/poll?channel=user/ann&timeout=0").status
        '200 OK'
        """
        self._authorize = check_rule(rule)
        return rule

    def subscribe(
        self,
        *channels: str,
        replay: int | None = None,
        sub: str | None = None,
        lifetime: float | None = None,
        form: Literal["bare"] | None = None,
        end: Literal["cut"] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Return the answer to the current request: a stream of these channels, or a poll. The view is the permission.

        A view returns it, in any blueprint, under any method and path. The answer is that of the route `/stream`; or of
        `/poll`, if the header `Accept` likes `application/json` better than `text/event-stream` (RFC 9110, 12.5.1). The
        query may have the parameters of that route. Its `channel` and `token` are ignored, and the arguments here win
        over it. A client resumes with the last event id that it got. A channel that this id lacks is reset, because
        clients do not choose the channels. A body has to be read before; up to 16 KB of the rest is dropped.

        Neither a token nor `@sse.authorize` is asked: check in the view who asks. Limits, SSE_MAX_SUBSCRIBERS and the
        CORS headers of SSE_ORIGINS hold as for the routes, but a CORS header of the app's own stays. Faults in the
        request, and names that are no channels, are answered as the routes answer them. A preflight (`OPTIONS`) is
        answered by the app.

        :param replay: number of newest events to begin with, for a client without a last event id, up to SSE_RING.
        :param sub: the reader's name, for `revoke`, which ends the stream; a new request is for the view to judge.
        :param lifetime: seconds until a stream ends and its client reconnects, give or take 20 %; None for
            SSE_STREAM_LIFETIME.
        :param form: `bare` has the service say its own messages in comments only.
        :param end: `cut` has the stream break off at its end, for clients that do not reconnect after a clean one.
        :param headers: further headers of the answer. Those of the stream itself are not for the app to set.
        :raises InvalidEvent: if no channel is given, or an argument has another type or value than these.

        >>> from flask import abort, session
        >>> @app.get("/inbox/events")
        ... def inbox():
        ...     if "user" not in session:
        ...         abort(401)
        ...     return sse.subscribe(f"user/{session['user']}", "news", sub=session["user"])
        >>> client.get("/inbox/events").status
        '401 UNAUTHORIZED'
        >>> with client.session_transaction() as login:
        ...     login["user"] = "ann"
        >>> answer = client.get("/inbox/events?timeout=0", headers={"Accept": "application/json"})
        >>> answer.json["last_event_id"]
        'user/ann=0-0~news=0-0'
        """
        if not channels:
            raise InvalidEvent("subscribe names no channel", "give one or more")
        for channel in channels:
            if not isinstance(channel, str):
                raise InvalidEvent(
                    f"a channel is {channel!a:.60}, not a string", "write subscribe(*channels) for a list"
                )
        if sub is not None and (not isinstance(sub, str) or not sub):
            raise InvalidEvent(f"sub is {sub!a:.60}", "give the reader's name, or None")
        if replay is not None and (not isinstance(replay, int) or replay < 0):
            raise InvalidEvent(f"replay is {replay!a:.60}", "give a number of events, 0 or more")
        if lifetime is not None and not (isinstance(lifetime, int | float) and 0 < lifetime < math.inf):
            raise InvalidEvent(f"lifetime is {lifetime!a:.60}", "give seconds, more than 0")
        if form not in (None, "bare") or end not in (None, "cut"):
            raise InvalidEvent(f"form is {form!a:.60} and end {end!a:.60}", "give form='bare' or end='cut', or None")
        given = {"channel": [plain_str(channel) for channel in channels]}
        given |= {"replay": [f"{plain_int(replay)}"]} if replay is not None else {}
        given |= {name: [value] for name, value in (("form", form), ("end", end)) if value}
        get_service()  # tells of an app that has none
        return own_views.subscribe(_views(), OwnView(given, plain_str(sub or ""), lifetime, _own_headers(headers)))

    def stream(self, iterable: Iterable[object], headers: Mapping[str, str] | None = None) -> Response:
        """Return the answer to the current request: a stream of what an iterable gives, for this client alone.

        A string is a piece of one text, an event of the type `text`. An `Event` is sent as it is, and any other value
        as an event, as for `publish`. Heartbeats come while the iterable is slow. Nothing is stored, so a client that
        was cut does not resume: it comes back with the id `~`, which all blocks have, and gets a 204. Use `run` for
        whatever has to survive a reload.

        The iterable, such as a generator, runs in a thread or greenlet of its own, in the context of the request. It is
        not ahead of the client by more than a few values, beside the bytes in the buffers of the network. At its end
        the stream says `sse.end` with the reason `done`. If it raises, the log has the error, and the reason is
        `failed`. If this worker ends, the reason is `interrupted`. If the client goes, or the stream ends before the
        iterable, the iterable is closed at its next value, so its `finally` runs. Our worker interrupts it also while
        it waits, as for an upstream. The service hears of a client's leaving within two heartbeats.

        The stream takes one of the SSE_MAX_SUBSCRIBERS, and the log warns of servers that can hold only a few. A client
        that accepts no stream gets a 406. The query has no parameters.

        :param iterable: gives strings, events and other values.
        :param headers: further headers of the answer. Those of the stream itself are not for the app to set.
        :raises InvalidEvent: if the iterable is a string or none, or for a header that the service sets.

        >>> from sse import Event
        >>> @app.get("/greeting")
        ... def greeting():
        ...     def give():
        ...         yield "It "
        ...         yield "rains."
        ...         yield Event({"sources": 1}, "facts")
        ...     return sse.stream(give())
        >>> [line for line in client.get("/greeting").text.splitlines() if line.startswith("data: ")][1:]
        ['data: It ', 'data: rains.', 'data: {"sources":1}', 'data: {"channel":null,"reason":"done"}']
        """
        service = get_service()
        if isinstance(iterable, str | bytes) or not hasattr(iterable, "__iter__"):
            hint = "give a generator (call the function that yields), a list or the like"
            raise InvalidEvent(f"the iterable is {iterable!a:.60}", hint)
        make_event = partial(_item_of, service)
        return own_views.stream_items(_views(), service, iterable, make_event, _own_headers(headers))

    def publish(
        self, channel: str, data: object, type: str = DEFAULT_TYPE, *, idempotency_key: str | None = None
    ) -> str:
        """Store an event on a channel, send it to all who listen, and return its id, `channel=position`.

        Any thread may call this, in an app context. The call returns when the event is stored. Sending follows.

        :param channel: 1 to 128 of `A-Z a-z 0-9 _ . : / @ -`, the first a letter, a digit or `_`. No segment between
            slashes is empty, `.` or `..`, and the name does not start with `sse.`.
        :param data: up to SSE_MAX_EVENT_BYTES in UTF-8. A string is sent as its text, bytes as a `data:` URL (RFC 2397)
            and any other value as compact JSON (RFC 8259). `json.dumps` writes the JSON. `app.json.dumps` does where
            `json.dumps` refuses a type, such as datetime. Flask's own provider sorts the keys of an object, and so it
            refuses an object that has both strings and numbers as keys. Every subclass of str, int or bytes, such as
            Markup or a member of a `(str, Enum)`, counts as the plain value that it holds.
        :param type: 1 to 64 visible characters, but not `open`, `error` or `sse.…`. A page listens for it by name
            (WHATWG HTML 9.2.6).
        :param idempotency_key: 1 to 128 of `A-Z a-z 0-9 _ . : -`. A repeated call with the same key and event stores
            nothing within 300 s, and returns the id of the first. A JSON provider of your own has to write equal values
            alike, or the repeated call is a conflict.
        :raises InvalidEvent: if the channel, type, data or idempotency key can never be published. An error of
            `app.json` other than a TypeError, ValueError or RecursionError is passed on as it is.
        :raises TooLarge: if the data is over SSE_MAX_EVENT_BYTES.
        :raises IdempotencyConflict: if the key was used before for another event.
        :raises StoreUnavailable: if the event may not have been stored: publish it again with the same key. The call
            raises this within SSE_REDIS_TIMEOUT seconds if Redis does not answer. It also does so if gevent's loop is
            blocked that long, and the call comes from a real thread that gevent does not know.
        :raises Unavailable: if several processes serve the app with the memory store, which is for one process.

        >>> order = {"number": 42}
        >>> with app.app_context():
        ...     first = sse.publish("orders", order, type="paid", idempotency_key="paid-42")
        ...     again = sse.publish("orders", order, type="paid", idempotency_key="paid-42")
        >>> first
        'orders=1-...'
        >>> again == first
        True
        """
        service = get_service()
        _check_process(service)
        return service.publish_one(channel, _event_of(service, data, type), idempotency_key)

    def run(self, channel: str, iterable: Iterable[object], *, restart: bool = False) -> bool:
        """Write what an iterable gives to a channel, in the background, and end the channel with it.

        The call returns at once, and the run survives the request. The iterable, such as a generator, runs in a thread
        or greenlet of this process, in an app context. It is no part of a request. A string is a piece: readers append
        it to the text so far. Any other value is an event, as for `publish`, or an `Event`, which has a type. The end
        of the iterable ends the channel as `done`. If it raises, the log names the error, and the channel ends as
        `failed`. `stop` closes a generator at its next `yield`. Under our worker, it also does so while the generator
        waits for its next value.

        A worker that is stopped gives its runs SSE_RUN_GRACE seconds, and ends the rest as `interrupted`. If a process
        dies, its runs end as `lost`. While Redis is away, a run waits. A script ends when its runs have ended.

        :param channel: a channel for this run alone, with a name as for `publish`.
        :param iterable: gives strings and other values. If the run does not begin, it is closed unused.
        :param restart: begin again where a run is or was there. That run, if it is live, is stopped.
        :returns: True if the run has begun; False if a run is or was there, so that a repeated request is harmless.
        :raises TypeError: if the iterable is none, such as an async generator, or is a string.
        :raises InvalidEvent: if the channel is not valid.
        :raises RunRefused: if the channel has events that were published on it before.
        :raises StoreUnavailable: if the run may not have begun: call this again.
        :raises Unavailable: if several processes serve the app with the memory store, or if this one is ending.

        >>> def answer(question):
        ...     yield "It "
        ...     yield "rains."
        ...     yield {"sources": ["weather"]}
        >>> with app.app_context():
        ...     sse.run("answers/7", answer("The weather?")), sse.run("answers/7", answer("The weather?"))
        (True, False)
        """
        service = get_service()
        _check_process(service)
        if isinstance(iterable, str | bytes):
            raise TypeError(f"the iterable is {iterable!a:.60}: give a generator, or a list of strings")
        return service.run(
            channel,
            iterable,
            lambda value, _: _item_of(service, value),
            restart=restart,
            context=cast("Flask", current_app._get_current_object()).app_context,  # type: ignore[attr-defined]
            daemon=has_request_context(),  # a script, which has no request, is to wait for its runs
        )

    def writing(self, channel: str, *, restart: bool = False) -> AbstractContextManager[Writer]:
        """Return a context manager that begins a run, gives a writer for it, and ends it with the block.

        This is `run` for code that has a thread or a task of its own. The writer has `write(text)` for a piece,
        `publish(data, type)` for an event, whose id it returns, and `flush()`. It can be the file of `print`. Its calls
        wait for a Redis that is away. Pieces are gathered for SSE_WRITE_EVERY before they are stored.

        The channel ends with the block: as `done`, or as `failed` if the block raises an error, which goes on. Ctrl-C
        ends it as `stopped`. If somebody stops the run meanwhile, the next call of the writer, or the end of the block,
        raises `Stopped`, which goes on too: catch it around the block.

        :param channel: a channel for this run alone, with a name as for `publish`.
        :param restart: begin again where a run is or was there, as for a task that is delivered again.
        :raises InvalidEvent: if the channel is not valid.
        :raises RunRefused: if a run is or was there, or if the channel has events that were published on it before.
        :raises Stopped: at the end of the block, if the run was stopped or begun anew elsewhere.
        :raises RunFailed: at the end of the block, if the run is over SSE_RUN_BYTES, or if Redis has lost a part of it.
        :raises StoreUnavailable: if the run may not have begun: call this again with `restart=True`.
        :raises Unavailable: as for `run`.

        >>> with app.app_context(), sse.writing("reports/2026") as out:
        ...     print("Counting", file=out)
        ...     _ = out.publish({"percent": 100}, type="progress")
        >>> with app.app_context():
        ...     sse.stop("reports/2026")     # it has ended by itself
        False
        """
        service = get_service()
        _check_process(service)
        return service.writing(channel, partial(_event_of, service), restart=restart)

    def stop(self, channel: str) -> bool:
        """End the run of a channel, in whatever process it is, as `stopped`; return False if there is none to end.

        Readers hear of the end at once. The run's next write raises `Stopped`, or its generator is closed, within 2 s.
        Any thread may call this, in an app context.

        :param channel: the channel of the run.
        :raises InvalidEvent: if the channel is not valid.
        :raises StoreUnavailable: if it may not have been stopped: stop it again.
        :raises Unavailable: as for `run`.

        >>> from itertools import count
        >>> with app.app_context():
        ...     sse.run("clock", (f"{second} " for second in count()))
        ...     sse.stop("clock")
        True
        True
        """
        service = get_service()
        _check_process(service)
        return service.stop(channel)

    def count(self, channel: str) -> int:
        """Return the number of connections to a channel, over all workers.

        These are the open streams and waiting polls. The connections of one client, a page that names itself by the
        parameter `client`, count as one, and that one counts until 10 s after the answer to a poll. Changes within the
        last second may be missing. The connections of a worker that was killed count for up to 20 s more. Any
        thread may call this, in an app context.

        :param channel: a channel that SSE_PRESENCE matches.
        :raises InvalidEvent: if the channel is not valid.
        :raises NotFound: if SSE_PRESENCE does not match the channel.
        :raises StoreUnavailable: if Redis does not answer within some times SSE_REDIS_TIMEOUT.
        :raises Unavailable: if several processes serve the app with the memory store, which is for one process.

        >>> from sse import SSE
        >>> app = Flask(__name__)
        >>> app.config.update(SSE_PUBLIC="room/*", SSE_PRESENCE="room/*")
        >>> sse = SSE(app)
        >>> stream = app.test_client().get("/sse/stream?channel=room/7")
        >>> opening = next(stream.response)
        >>> with app.app_context():
        ...     sse.count("room/7")
        1
        >>> stream.close()
        >>> with app.app_context():
        ...     sse.count("room/7")
        0
        """
        service = get_service()
        _check_readers(service)
        return service.count(channel)

    def members(self, channel: str) -> list[dict[str, Any]]:
        """Return who is connected to a channel, over all workers: each subject, and the number of its connections.

        The subject is that of the token or ticket, the `sub` of `subscribe`, or what the function under `identify`
        returns. Connections without a subject are in `count` only. Delays are those of `count`.

        :param channel: a channel that SSE_PRESENCE matches.
        :raises InvalidEvent: if the channel is not valid.
        :raises NotFound: if SSE_PRESENCE does not match the channel.
        :raises StoreUnavailable: if Redis does not answer within some times SSE_REDIS_TIMEOUT.
        :raises Unavailable: if several processes serve the app with the memory store, which is for one process.

        >>> from flask import request
        >>> from sse import SSE
        >>> app = Flask(__name__)
        >>> app.config.update(SSE_PUBLIC="room/*", SSE_PRESENCE="room/*")
        >>> sse = SSE(app)
        >>> @sse.identify
        ... def name():
        ...     return request.headers.get("X-Name")
        >>> client = app.test_client()
        >>> streams = [client.get("/sse/stream?channel=room/7", headers={"X-Name": name}) for name in ("ann", "ann")]
        >>> openings = [next(stream.response) for stream in streams]
        >>> with app.app_context():
        ...     sse.members("room/7")
        [{'sub': 'ann', 'connections': 2}]
        """
        service = get_service()
        _check_readers(service)
        connections = service.attendance(channel).connections
        return [{"sub": sub, "connections": number} for sub, number in sorted(connections.items())]

    def identify(self, function: Callable[[], str | None]) -> Callable[[], str | None]:
        """Decorate the function that names the reader of the current request, for presence, and return the function.

        The function is called once for each stream or poll of a channel that SSE_PRESENCE matches, after it has been
        allowed, and only if neither a token or ticket nor `subscribe` names its subject. It returns a string of up to
        256 characters, or None for an anonymous reader. The log names any other answer, and the reader is anonymous
        then. If the function calls `abort`, that is the answer to the request. If it raises another error, nothing
        opens: a poll gets 503, and a stream `sse.close` `busy`. There is one such function: a later one takes the place
        of an earlier one.

        :param function: a function without arguments. It runs in the request's context.
        :raises TypeError: if the function cannot be called, or is async or a generator.

        >>> from flask import session
        >>> @sse.identify
        ... def reader():
        ...     return session.get("user")
        """
        check_function("@sse.identify", function)
        self._identify = function
        return function

    def joined(self, rule: str) -> Callable[[F], F]:
        """Return a decorator for the function to call when a subject gets its first connection to a channel.

        The function is called with the values of the rule's variables and with `sub`, as keyword arguments. It runs in
        an app context, in a thread or greenlet of its own, and such functions run one after another. Each arrival is
        told at most once over all workers, some tenths of a second after it, and to the function of the most specific
        rule alone. If a worker dies in that moment, it is not told at all: `members` is the truth.

        :param rule: channels in the syntax of Flask's routes, without the slash at the start. SSE_PRESENCE has to match
            them, too.
        :raises ValueError: if the rule is malformed, has a variable `sub`, or equals an earlier rule.
        :raises TypeError: if the function does not take these arguments, or is async or a generator.

        >>> @sse.joined("room/<id>")
        ... def welcome(id, sub):
        ...     sse.publish(f"room/{id}", f"{sub} is here", type="joined")
        """
        return self._when("joined", rule)

    def left(self, rule: str) -> Callable[[F], F]:
        """Return a decorator for the function to call when a subject has had no connection to a channel for 30 s.

        A page that reloads, or reconnects as streams do every 15 minutes, has not left. Everything else is as for
        `joined`. The function may be called up to 10 s late.

        :param rule: as for `joined`.
        :raises ValueError: as for `joined`.
        :raises TypeError: as for `joined`.

        >>> @sse.left("room/<id>")
        ... def goodbye(id, sub):
        ...     sse.publish(f"room/{id}", f"{sub} has left", type="left")
        """
        return self._when("left", rule)

    def _when(self, happening: Happening, rule: str) -> Callable[[F], F]:
        variables = variables_of(rule)

        def decorate(function: F) -> F:
            if "sub" in variables:
                raise ValueError(f"the rule {rule!r} has a variable sub, which is the subject's: give it another name")
            check_function(f"@sse.{happening}", function, [*variables, "sub"])
            self._happenings[happening].add(rule, function)
            return function

        return decorate

    def source(
        self,
        rule: str,
        *,
        interval: float | None = None,
        linger: float = 5,
        fresh: float = 60,
        changes_only: bool = False,
    ) -> Callable[[F], F]:
        """Decorate a function that makes the events of channels while somebody listens to them; return the function.

        The function is a generator, each of whose values is an event, or with an `interval` a function that is called
        again and again and returns a value. A value is as for `publish`, or an `Event`, which has a type; None is
        nothing new.

        A channel's source begins with the first subscriber on any worker, and runs in one worker of all, in an app
        context. It ends at most 8 s after nobody has listened for `linger` seconds: a generator is closed, so that its
        `finally` runs. Under our worker, a GeneratorExit also cuts its wait, such as a `time.sleep`. Elsewhere it is
        closed at its next `yield`, so a generator that waits for long should yield None now and then. If the worker
        dies, another one begins the source within 10 s.

        If the function raises, or if a generator returns, subscribers are told that the source is `down`, and it begins
        again after a pause of 1 to 60 s. After a `NotFound` of werkzeug, as by `abort(404)`, the pause is 60 s. Each
        worker runs at most SSE_MAX_SOURCES; further channels are `down`.

        A source begins anew if Redis has been away for 6 s, or if its process was frozen: values that were not
        stored by then are lost. At most one runner stores events. A runner that wakes may make one more step, and
        stores nothing.

        :param rule: which channels, in Flask's route syntax without the leading slash, such as `prices/<symbol>`. The
            variables are the function's arguments. The most specific rule wins.
        :param interval: seconds from one call to the next.
        :param linger: seconds for which it goes on when nobody listens any more. A poll counts until 10 s after its
            answer, and a poll with `timeout=0` not at all.
        :param fresh: seconds for which the newest value is given at once to a new subscriber. A value of the runner of
            now always is. With 0, new subscribers wait for the next value.
        :param changes_only: store nothing for a value that equals the newest event of the channel.
        :raises ValueError: if a rule is malformed or equals another one, or if a number is out of range.
        :raises TypeError: if the function is async, lacks the rule's variables as arguments, or is a generator with an
            interval.

        >>> from sse import SSE
        >>> app = Flask(__name__)
        >>> app.config["SSE_PUBLIC"] = "scores/*"
        >>> sse = SSE(app)
        >>> @sse.source("scores/<int:game>", interval=5)
        ... def score(game):
        ...     return {"game": game, "goals": [1, 0]}     # as an upstream says now
        >>> with app.test_client().get("/sse/stream?channel=scores/7") as stream:
        ...     any(b'{"game":7,"goals":[1,0]}' in part for part in stream.response)
        True
        """
        variables = variables_of(rule)

        def decorate(function: F) -> F:
            check_source(function, variables, interval=interval, linger=linger, fresh=fresh)
            self._rules.add(rule, Source(function, interval, linger, fresh, changes_only, (HTTPNotFound,)))
            for service in self._services:
                service.use_sources()
            return function

        return decorate

    def ticket(self, channels: Iterable[str], sub: str = "", *, lifetime: int | None = None) -> str:
        """Return a ticket: for 60 s, a page may open streams and polls of these channels with it.

        A ticket is for reading only. The page sends it as the query parameter `token`, because an EventSource cannot
        set headers. It is a JSON Web Token (RFC 7519) that SSE_SECRET signs, and any thread may call this.

        :param channels: the names of one or more channels. A pattern such as `news/*` is not one.
        :param sub: the reader's name, which `revoke` takes; empty if the reader has no name.
        :param lifetime: seconds after which the streams that the ticket opens end. None lets them end as all others do.
        :raises InvalidEvent: if `channels` is a string or empty, a channel is not valid, `sub` is not a string, or
            `lifetime` is not above 0.
        :raises TooLarge: if the ticket would be over 8,192 characters long, because it names too many channels.
        :raises NotFound: if SSE_SECRET is not set.

        >>> @app.get("/sse-token")    # in the page: data-token-url="/sse-token"
        ... def sse_token():
        ...     ticket = sse.ticket(["user/ann"], sub="ann")
        ...     return {"token": ticket}, {"Cache-Control": "private, no-store"}
        >>> token = client.get("/sse-token").json["token"]
        >>> client.get(f"/sse/poll?channel=user/ann&timeout=0&token={token}").status
        '200 OK'
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
        """End the streams and waiting polls of a reader, a channel or a token, on every worker within 2 s.

        Give exactly one of the three. Tokens and tickets that were issued until now to the reader, or for the channel,
        are refused from now on. For readers whom the app's own rule or view let in, that is asked again. The log warns
        if the call cannot end anybody's reading: on a channel that SSE_PUBLIC matches, and for a token where no tokens
        are configured. Any thread may call this, in an app context.

        :param sub: the reader, as the claim `sub` of a token names it (RFC 7519, 4.1.2), or `sub` of a ticket or of
            `subscribe`.
        :param channel: a channel; a pattern is refused.
        :param token: the id of one token, its claim `jti` (RFC 7519, 4.1.7). The token is refused for good.
        :raises ValueError: unless exactly one string is given, or if `token` is a whole token instead of its id.
        :raises InvalidEvent: if the channel is not valid.
        :raises StoreUnavailable: if the revocation may not have been stored: revoke again.
        :raises Unavailable: if several processes serve the app with the memory store, which is for one process.

        >>> with app.app_context():
        ...     token = sse.ticket(["user/ann"], sub="ann")
        ...     sse.revoke(sub="ann")
        >>> client.get(f"/sse/poll?channel=user/ann&token={token}").json["error"]["code"]
        'token_revoked'
        """
        service = get_service()
        _check_process(service)
        kind, value = one_revoked(sub=sub, channel=channel, token=token)
        service.revoke(kind, check_channel(value) if kind == "channel" else value)
        if trouble := unreached(service.config, kind, value):
            warn("revoke: %s", trouble)

    def close(self) -> None:
        """End this process's threads and connections for all apps of this `SSE`, as at the end of a test.

        Streams send `sse.close` with the reason `drain` and end. Waiting polls are answered, and publishes that have
        begun are finished. The memory store loses its events. The next use makes everything again.

        The call needs no app context, and a second call does nothing. It waits up to 5 s for each thread. A thread that
        still waits for Redis after that ends by itself. An app that is garbage-collected is closed without a call.

        >>> with app.app_context():
        ...     sse.publish("news", "it rains")
        'news=1-...'
        >>> sse.close()
        >>> client.get("/sse/poll?channel=news&replay=1&timeout=0").json["events"]
        []
        """
        for service in list(self._services):
            service.close()


class Event(StoredEvent):
    r"""An event as `SSE.publish` stores it, to check data or to compare with: its text `data` and its `type`.

    Two events are equal if both attributes are. They cannot be changed.

    :param data: a string becomes its text, where CRLF and CR become LF, because a stream ends a line at each of them
        (WHATWG HTML 9.2.5). Bytes become a `data:` URL (RFC 2397). Any other value becomes compact JSON, which the
        current app writes as for `SSE.publish`; without an app, Flask's default rules hold.
    :param type: 1 to 64 visible characters, but not `open`, `error` or `sse.…`.
    :raises InvalidEvent: if the type is not valid, or if the data has a lone surrogate, a number that is not finite, or
        no JSON form.

    >>> from sse import Event
    >>> Event({"number": 42}, "paid")
    Event(data='{"number":42}', type='paid')
    >>> Event("one line\r\nanother").data.splitlines()
    ['one line', 'another']
    >>> Event(b"bytes").data
    'data:application/octet-stream;base64,Ynl0ZXM='
    """

    __slots__ = ()

    def __init__(self, data: object, type: str = DEFAULT_TYPE) -> None:
        super().__init__(data, type, _write_json)


def _views() -> Views:
    return cast("Views", current_app.extensions["sse.views"])


def _own_headers(headers: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """Return the headers that a view adds to its answer.

    :raises InvalidEvent: for a header that the service sets itself.
    """
    given = list((headers or {}).items())
    for name, _ in given:
        if name.lower() in _OF_THE_BODY:
            raise InvalidEvent(f"headers has {name[:60]!a}, which the service sets", "leave it out")
    return given


def _write_json(value: object) -> object:
    """Return a value's JSON as the current app writes it; outside of an app, as Flask's DefaultJSONProvider does."""
    return current_app.json.dumps(value) if current_app else json.dumps(value, sort_keys=True)


def _item_of(service: Service, value: object) -> StoredEvent:
    """Return a value of an iterable or a source as an event."""
    return service.check(value) if isinstance(value, StoredEvent) else _event_of(service, value, DEFAULT_TYPE)


def _event_of(service: Service, data: object, type: str) -> StoredEvent:
    return service.check(StoredEvent(data, type, _write_json))


def _tell_late(read: Config, environ: Mapping[str, object], config: Mapping[str, object]) -> None:
    """Warn in the log of settings that were added to an app's `config`, or changed there, since they were `read`."""
    if late := read.late(environ, config):
        _log.warning(
            "app.config was changed after SSE(app) had read it, and that does not count for %s: make these settings "
            "before SSE(app), or make sse = SSE() and call sse.init_app(app) after them",
            ", ".join(late),
        )


def _check_process(service: Service) -> None:
    """Refuse a write that other processes would not see. Note a write that nobody may see, so that the log can warn.

    :raises Unavailable: if several processes serve the app with the memory store.
    """
    if has_request_context():
        service.check_workers(request.is_multiprocess)
    if not service.shared:
        unheard.note_write(cast("Flask", current_app._get_current_object()))  # type: ignore[attr-defined]


def _check_readers(service: Service) -> None:
    """Refuse to tell who reads where other processes have readers that this one cannot see.

    :raises Unavailable: if several processes serve the app with the memory store.
    """
    if has_request_context():
        service.check_workers(request.is_multiprocess)


def _find_call(
    happenings: Mapping[Happening, ChannelRules],
    app: Flask,
    happening: Happening,
    channel: str,
    sub: str,
) -> Callable[[], object] | None:
    """Return a call of the app's function for a subject that has joined or left; None if the app has none."""
    found = happenings[happening].match(channel)
    if found is None:
        return None

    def call() -> None:
        with app.app_context():
            cast("Callable[..., object]", found.value)(**found.arguments, sub=sub)

    return call


def get_service() -> Service:
    """Return the service of the current app.

    :raises RuntimeError: if no app context is active, or if no `SSE` was initialised for the app.
    """
    service = current_app.extensions.get("sse")
    if service is None:
        raise RuntimeError("this app has no SSE: call SSE(app), or sse.init_app(app)")
    return cast("Service", service)
