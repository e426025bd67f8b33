"""What can go wrong, each error named after the decision that it leaves to the caller."""

from __future__ import annotations

from typing import ClassVar


class SSEError(Exception):
    """The root of all errors raised by this package.

    `code` is stable and meant for programs, `message` names the value at fault, `hint` gives the remedy, `status` is
    the HTTP status (RFC 9110) that the service answers with, and `retry_after` the seconds to wait, where that helps.
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
        """What the HTTP answer says of it in headers."""
        return {"Retry-After": str(self.retry_after)} if self.retry_after else {}

    def to_json(self) -> dict[str, object]:
        """The JSON object of the error."""
        return {"code": self.code, "message": self.message, "hint": self.hint}

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class ConfigError(SSEError):
    """Settings that cannot be started with: mend the settings."""

    default_code = "bad_settings"


class RequestError(SSEError):
    """A request whose query, header or body cannot be read: mend its syntax."""

    status = 400
    default_code = "bad_request"


class Unauthorized(SSEError):
    """A credential is missing or unknown: give one; after `retry_after` seconds, if a new one would not do before."""

    status = 401
    default_code = "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer", **super().headers}  # RFC 9110, 11.6.1


class KeyUnknown(Unauthorized):
    """A token by a key that is unknown, and may be known in `retry_after` seconds: come again then."""

    default_code = "token_invalid"


class Forbidden(SSEError):
    """The right to read or publish is missing: ask for other channels, or have these opened."""

    status = 403
    default_code = "forbidden"

    def __init__(self, message: str, hint: str = "", *, channels: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.channels = channels

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "channels": self.channels}


class NotFound(SSEError):
    """There is nothing at this address."""

    status = 404
    default_code = "not_found"


class WrongMethod(SSEError):
    """The address is right, the method is not; `allowed` says which are."""

    status = 405
    default_code = "method_not_allowed"

    def __init__(self, message: str, hint: str = "", *, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        return {"Allow": ", ".join(self.allowed)}  # RFC 9110, 15.5.6


class Gone(SSEError):
    """The position of a bare stream cannot be continued: the client goes on from the position in the answer."""

    status = 410
    default_code = "gone"


class TooLarge(SSEError):
    """More bytes than a limit allows: send less."""

    status = 413
    default_code = "too_large"


class UnsupportedMedia(SSEError):
    """A body in a form that is not taken: send it in another."""

    status = 415
    default_code = "unsupported_media"


class InvalidEvent(SSEError, ValueError):
    """A channel, type or data that can never be published: change the value."""

    status = 422
    default_code = "invalid_event"


class IdempotencyConflict(SSEError):
    """The idempotency key was used for another event: use a new key."""

    status = 422
    default_code = "idempotency_conflict"


class Unavailable(SSEError):
    """Nothing is wrong with the request: try again after `retry_after` seconds."""

    status = 503
    default_code = "unavailable"
    default_retry_after = 2


class StoreUnavailable(Unavailable):
    """The store does not answer, or refuses: try again later; nothing is known to be stored."""

    default_code = "store_unavailable"


class Busy(Unavailable):
    """A limit of this worker is reached: try again later."""

    default_code = "busy"


class TooMany(Unavailable):
    """A limit on how often is reached: try again after `retry_after` seconds."""

    status = 429
    default_code = "too_many_requests"

    def __init__(self, message: str, hint: str = "", *, retry_after: int, limit: str) -> None:
        super().__init__(message, hint, retry_after=retry_after)
        self.limit = limit

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "limit": self.limit}
