"""Who may read a channel, and who may publish."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence

from sse.config import Config, matches
from sse.errors import Forbidden, NotFound, Unauthorized

Authorize = Callable[[str], bool]
"""The app's own rule: whether the current request may read a channel."""


def check_read(channels: Sequence[str], config: Config, authorize: Authorize | None) -> None:
    """Let the request pass if every channel is public or the app's rule agrees.

    :raises Forbidden: naming the channels that are refused, and nothing about whether they exist.
    """
    refused = tuple(
        channel
        for channel in channels
        if not any(matches(pattern, channel) for pattern in config.public) and not (authorize and authorize(channel))
    )
    if refused:
        rule = "@sse.authorize refuses" if authorize else "there is no @sse.authorize function that allows"
        raise Forbidden(
            f"not allowed to read: {', '.join(refused)}",
            f"SSE_PUBLIC does not match, and {rule} them",
            channels=refused,
        )


def check_publish(authorization: str | None, config: Config) -> str:
    """Give the scope of the publishing key in an Authorization header (RFC 6750, 2.1): a name that reveals no key.

    :raises NotFound: if no key is configured, so that publishing over HTTP does not exist.
    :raises Unauthorized: if the header has no key, or one that is unknown.
    """
    if not config.publish_keys:
        raise NotFound("there is nothing here", "publishing over HTTP begins with SSE_PUBLISH_KEYS")
    scheme, _, credential = (authorization or "").partition(" ")
    given = _digest(credential.strip())
    # Every key is compared, each in constant time, so that time tells nothing of which one was near.
    known = [hmac.compare_digest(given, _digest(key)) for key in config.publish_keys]
    if scheme.lower() != "bearer" or not any(known):
        raise Unauthorized(
            "no publishing key, or an unknown one", "send Authorization: Bearer KEY, with one of SSE_PUBLISH_KEYS"
        )
    return given.hex()[:16]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
