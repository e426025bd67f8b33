"""The errors of this package. Each is named after the decision that it leaves to the caller.

The names in `sse.__all__` are public. The service answers requests with the others, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class SSEError(Exception):
    """The root of all errors that this package raises.

    :param message: names the value at fault.
    :param hint: the remedy; may be empty.
    :param code: a stable name of the error for programs, such as `invalid_channel`; by default that of the class.
    :param retry_after: seconds after which a new attempt may succeed; 0 where waiting does not help.

    All four are attributes, too. The attribute `status` is the HTTP status that the service answers with (RFC 9110,
    15). As text, an error is its message and its hint.

    >>> from sse import SSEError
    >>> try:
    ...     with app.app_context():
    ...         sse.publish("sse.mine", "hello")
    ... except SSEError as error:
    ...     print(error.status, error.code, error.retry_after)
    ...     print(error)
    422 invalid_channel 0
    channel 'sse.mine' starts with 'sse.', which is reserved: use another first segment
    """

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "error"
    default_retry_after: ClassVar[int] = 0

    def __init__(
        self, message: str, hint: str = "", *, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code
        self.retry_after = self.default_retry_after if retry_after is None else retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the HTTP answer: `Retry-After` in seconds, if waiting helps (RFC 9110, 10.2.3).

        >>> from sse import StoreUnavailable
        >>> StoreUnavailable("Redis does not answer").headers
        {'Retry-After': '2'}
        """
        return {"Retry-After": str(self.retry_after)} if self.retry_after else {}

    def to_json(self) -> dict[str, object]:
        """Return the error as the object that the service puts into an answer's JSON, under `error`.

        >>> from sse import SSEError
        >>> @app.errorhandler(SSEError)
        ... def refused(error):
        ...     return {"error": error.to_json()}, error.status, error.headers
        >>> @app.post("/say/<channel>")
        ... def say(channel):
        ...     return {"id": sse.publish(channel, "hello")}
        >>> client.post("/say/not+a+channel").json["error"]["code"]
        'invalid_channel'
        """
        return {"code": self.code, "message": self.message, "hint": self.hint}

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class ConfigError(SSEError):
    """The service cannot start with these settings: correct them. The message names all faults at once.

    >>> from sse import SSE, ConfigError
    >>> app = Flask(__name__)
    >>> app.config["SSE_HARTBEAT"] = 5
    >>> try:
    ...     SSE(app)
    ... except ConfigError as error:
    ...     print(error.message)
    SSE_HARTBEAT is not a setting: did you mean SSE_HEARTBEAT?
    """

    default_code = "bad_settings"


class RequestError(SSEError):
    """The query, a header or the body of a request cannot be read: correct its syntax."""

    status = 400
    default_code = "bad_request"


class Unauthorized(SSEError):
    """A credential is missing or not valid: send a valid one.

    With `retry_after`, a credential that is issued earlier than that would be refused, too.
    """

    status = 401
    default_code = "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer", **super().headers}  # RFC 9110, 11.6.1


class KeyUnknown(Unauthorized):
    """The key that signed a token is unknown, and may be known in `retry_after` seconds: try again then."""

    default_code = "token_invalid"


class Forbidden(SSEError):
    """The right to read or publish on `channels` is missing: ask for other channels, or have these opened."""

    status = 403
    default_code = "forbidden"

    def __init__(self, message: str, hint: str = "", *, channels: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.channels = channels

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "channels": self.channels}


class NotFound(SSEError):
    """The address has nothing, or the service has no secret to make a ticket with (RFC 9110, 15.5.5).

    >>> from sse import SSE, NotFound
    >>> app = Flask(__name__)             # without SSE_SECRET
    >>> sse = SSE(app)
    >>> try:
    ...     with app.app_context():
    ...         sse.ticket(["orders"])
    ... except NotFound as error:
    ...     print(error.code)
    not_found
    """

    status = 404
    default_code = "not_found"


class WrongMethod(SSEError):
    """The address does not take the request's method: use one of `allowed`."""

    status = 405
    default_code = "method_not_allowed"

    def __init__(self, message: str, hint: str = "", *, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        return {"Allow": ", ".join(self.allowed)}  # RFC 9110, 15.5.6


class NotAcceptable(SSEError):
    """The client takes no stream, and this address gives nothing else (RFC 9110, 15.5.7)."""

    status = 406
    default_code = "not_acceptable"


class Gone(SSEError):
    """A position cannot be continued on a bare stream: go on from the position in the answer."""

    status = 410
    default_code = "gone"


class TooLarge(SSEError):
    """A value has more bytes than a limit allows: send less (RFC 9110, 15.5.14).

    >>> from sse import TooLarge
    >>> try:
    ...     with app.app_context():
    ...         sse.publish("news", "x" * 65_537)
    ... except TooLarge as error:
    ...     print(error)
    data has 65537 bytes, SSE_MAX_EVENT_BYTES is 65536: send less, or a link to it
    """

    status = 413
    default_code = "too_large"


class UnsupportedMedia(SSEError):
    """The service does not take a body of this media type: send the body in another form."""

    status = 415
    default_code = "unsupported_media"


class InvalidEvent(SSEError, ValueError):
    """A channel, type, data or other argument can never be taken: change the value. It is a ValueError, too.

    The code names the argument: `invalid_channel`, `invalid_type`, `invalid_data`, `invalid_idempotency_key`,
    `invalid_media_type` over HTTP, and `invalid_event` for all others. The HTTP status is that of RFC 9110, 15.5.21.

    >>> from sse import Event, InvalidEvent
    >>> try:
    ...     Event({"degrees": float("nan")})
    ... except InvalidEvent as error:
    ...     print(error.code)
    invalid_data
    """

    status = 422
    default_code = "invalid_event"


class IdempotencyConflict(SSEError):
    """The idempotency key was used for another event within 300 s: use a new key.

    >>> from sse import IdempotencyConflict
    >>> try:
    ...     with app.app_context():
    ...         _ = sse.publish("news", "it rains", idempotency_key="today")
    ...         _ = sse.publish("news", "it snows", idempotency_key="today")
    ... except IdempotencyConflict as error:
    ...     print(error.code)
    idempotency_conflict
    """

    status = 422
    default_code = "idempotency_conflict"


class Ended(SSEError):
    """The channel has ended, so nothing can be published on it any more (RFC 9110, 15.5.10).

    :param message: as for `SSEError`.
    :param hint: as for `SSEError`.
    :param ids: the id of each event of the call that is stored nevertheless, and None for each that was refused; empty
        if nothing was stored.

    >>> from sse import Ended
    >>> with app.app_context():
    ...     with sse.writing("jobs/1") as out:
    ...         _ = out.write("ready")
    ...     try:
    ...         sse.publish("jobs/1", "one more thing")
    ...     except Ended as error:
    ...         print(error.code)
    ended
    """

    status = 409
    default_code = "ended"

    def __init__(self, message: str, hint: str = "", *, ids: Sequence[str | None] = ()) -> None:
        super().__init__(message, hint)
        self.ids = tuple(ids)

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), **({"ids": self.ids} if self.ids else {})}


class RunRefused(SSEError):
    """The channel cannot have a run: use a channel for the run alone.

    It has events that were published on it, or, for `writing`, it has or had a run (the code is `run_exists`).

    >>> from sse import RunRefused
    >>> try:
    ...     with app.app_context():
    ...         _ = sse.publish("jobs/2", "soon")
    ...         sse.run("jobs/2", ["now"])
    ... except RunRefused as error:
    ...     print(error.code)
    run_refused
    """

    status = 409
    default_code = "run_refused"


class Stopped(SSEError):
    """The run has been stopped, begun anew elsewhere, or has ended: write no more.

    >>> from sse import Stopped
    >>> try:
    ...     with app.app_context(), sse.writing("jobs/3") as out:
    ...         _ = out.write("one")
    ...         _ = sse.stop("jobs/3")        # as by a button of the page
    ...         _ = out.write("two")
    ... except Stopped as error:
    ...     print(error.code)
    stopped
    """

    status = 409
    default_code = "stopped"


class RunFailed(SSEError):
    """The run has ended as failed: it is over SSE_RUN_BYTES, or Redis has lost a part of its text.

    >>> from sse import SSE, RunFailed
    >>> app = Flask(__name__)
    >>> app.config["SSE_RUN_BYTES"] = 65_536
    >>> sse = SSE(app)
    >>> try:
    ...     with app.app_context(), sse.writing("jobs/4") as out:
    ...         for line in range(10_000):
    ...             print("a long line of a long report", line, file=out)
    ... except RunFailed as error:
    ...     print(error.code)
    run_failed
    """

    status = 409
    default_code = "run_failed"


class LeaseLost(SSEError):
    """The lease is not held any more: another process runs the source, or the right to write has run out."""

    status = 409
    default_code = "lease_lost"


class Unavailable(SSEError):
    """The request is valid, but cannot be served now: try again after `retry_after` seconds (RFC 9110, 15.6.4).

    >>> from sse import Unavailable
    >>> try:
    ...     with app.test_request_context(multiprocess=True):  # and no Redis
    ...         sse.publish("news", "it rains")
    ... except Unavailable as error:
    ...     print(error.code)
    memory_store
    """

    status = 503
    default_code = "unavailable"
    default_retry_after = 2


class StoreUnavailable(Unavailable):
    """The store does not answer, or refuses: try again later. An event may be stored or not.

    >>> from sse import SSE, StoreUnavailable
    >>> app = Flask(__name__)
    >>> app.config["SSE_REDIS_URL"] = "redis://127.0.0.1:1"     # no Redis is there
    >>> sse = SSE(app)
    >>> try:
    ...     with app.app_context():
    ...         sse.publish("orders", {"number": 42}, idempotency_key="paid-42")
    ... except StoreUnavailable as error:
    ...     print(f"publish again with the same key in {error.retry_after} s")
    publish again with the same key in 2 s
    """

    default_code = "store_unavailable"


class Busy(Unavailable):
    """A limit of this worker is reached: try again later.

    The service answers streams and polls with it. The methods of `SSE` do not raise it.

    >>> from sse import SSE
    >>> app = Flask(__name__)
    >>> app.config.update(SSE_PUBLIC="news", SSE_MAX_SUBSCRIBERS=1)
    >>> sse = SSE(app)
    >>> client = app.test_client()
    >>> with client.get("/sse/stream?channel=news"):
    ...     client.get("/sse/poll?channel=news").json["error"]["code"]
    'busy'
    """

    default_code = "busy"


class TooMany(Unavailable):
    """More requests came than the rate `limit` allows: try again after `retry_after` seconds (RFC 6585, 4)."""

    status = 429
    default_code = "too_many_requests"

    def __init__(self, message: str, hint: str = "", *, retry_after: int, limit: str) -> None:
        super().__init__(message, hint, retry_after=retry_after)
        self.limit = limit

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "limit": self.limit}
