"""The decision to let a request read or publish on its channels, or to refuse it.

A request sends credentials. A valid token or ticket among them gives a `Grant`, and a publishing key its patterns. A
channel may be read if SSE_PUBLIC has it, or the grant, or else if the app's own rule says so.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

from sse.access.keys import PublishKeys
from sse.access.permit import Permit
from sse.access.revocations import TAKEN_AFTER, Kind, Revocations
from sse.access.token import Grant, Tokens
from sse.config import Config, matches
from sse.errors import Forbidden, NotFound, SSEError, Unauthorized, Unavailable

Authorize = Callable[[str], bool]
"""The app's own rule, which tells if the current request may read a channel. Only `True` lets it."""

Way = Literal["public", "token", "ticket", "rule", "key"]
"""The reason for which a request may read or publish on a channel."""


class Credentials(NamedTuple):
    """The credentials in a request's Authorization header, cookie and query; empty where it has none.

    `cookie_counts` is False if the cookie is to be ignored: see the function `cookie_counts`.
    """

    authorization: str = ""
    cookie: str = ""
    query: str = ""
    cookie_counts: bool = True


class Publisher(NamedTuple):
    """A publisher: the patterns of the channels that it may publish on, and the scope of its idempotency keys."""

    way: Way
    scope: str
    patterns: Sequence[str]
    grant: Grant | None = None


class Access:
    """Decides for one service what a request may read and publish."""

    def __init__(
        self, config: Config, tokens: Tokens, keys: PublishKeys, revocations: Callable[[], Revocations]
    ) -> None:
        self._config = config
        self._tokens = tokens
        self._keys = keys
        self._revocations = revocations

    def read(self, channels: Sequence[str], credentials: Credentials, rule: Authorize | None = None) -> Permit | None:
        """Return the right of a stream or poll to read these channels; None if all of them are public.

        :raises Unauthorized: if tokens are configured, and a credential is not valid, or is missing where needed.
        :raises Forbidden: naming the channels that are refused. It does not tell if they exist.
        """
        revocations = self._revocations()
        # Counted before the rule is asked, so that a revocation that comes while the rule decides ends the permit.
        seen = revocations.count() if rule else 0
        grant, fault = self._read_grant(credentials)
        if all(map(self._is_public, channels)):
            return None
        ways = self.decide(channels, grant, rule, fault)
        by_grant = [channel for channel, way in ways.items() if way in ("token", "ticket")]
        by_rule = [channel for channel, way in ways.items() if way == "rule"]
        if not by_grant and not by_rule:
            return None
        return Permit(revocations, grant if by_grant else None, by_grant, by_rule, seen)

    def without_rule(self, channels: Sequence[str], credentials: Credentials) -> tuple[bool, str]:
        """Return whether these channels may be read without the app's rule, and the subject of the reader's token.

        :raises SSEError: if a credential is refused, for which the rule is not asked either.
        """
        grant, _ = self._read_grant(credentials)
        return all(self._way(channel, grant, None) for channel in channels), grant.sub if grant else ""

    def of_view(self, channels: Sequence[str], sub: str) -> Permit | None:
        """Return the right to read these channels that a view of the app gives; None if nothing could revoke it.

        :param sub: the reader's name, which a revocation can name; empty if the reader has none.
        :raises StoreUnavailable: if the list of revocations has never been read.
        """
        closed = [channel for channel in channels if not self._is_public(channel)]
        if not closed and not sub:
            return None
        revocations = self._revocations()
        # The grant is younger than every revocation, because the view judges each request anew.
        grant = Grant(sub, issued_at=math.inf) if sub else None
        return Permit(revocations, grant, (), closed, revocations.count())

    def decide(
        self, channels: Sequence[str], grant: Grant | None, rule: Authorize | None, fault: SSEError | None = None
    ) -> Mapping[str, Way]:
        """Return the reason for which each channel may be read with this grant.

        :param fault: the error in the request's cookie, which counts only if a channel is refused.
        :raises Unauthorized: if a channel is refused, and there is a fault, or no grant although tokens are configured,
            or a grant that would open all the refused channels had it not been revoked for them.
        :raises Forbidden: naming the channels that are refused.
        """
        ways = {channel: self._way(channel, grant, rule) for channel in channels}
        refused = tuple(channel for channel, way in ways.items() if way is None)
        if not refused:
            return {channel: way for channel, way in ways.items() if way}
        if fault:
            raise _copy(fault)
        if self._tokens.configured and grant is None:
            raise Unauthorized(
                f"not allowed to read without a token: {', '.join(refused)}",
                "send a token, as docs/security.md says, or have SSE_PUBLIC or @sse.authorize allow them",
            )
        if grant and all(_matched(channel, grant.subscribe) for channel in refused):
            raise _revoked()
        by_token = "the token, " if grant else ""
        raise Forbidden(
            f"not allowed to read: {', '.join(refused)}",
            f"{by_token}SSE_PUBLIC or @sse.authorize has to allow them, and none does",
            channels=refused,
        )

    def ticket(self, channels: Sequence[str], authorization: str, rule: Authorize | None = None) -> str:
        """Return a ticket for these channels, which the bearer of a token may read.

        :raises Unauthorized: without a token in the Authorization header, or for one that is not valid.
        :raises Forbidden: naming the channels that are refused.
        :raises NotFound: without SSE_SECRET, which signs tickets.
        """
        if not self._config.secret:
            raise NotFound("no tickets are made here", "set SSE_SECRET, which signs them")
        grant = self._bearer(authorization)
        if grant is None or grant.is_ticket:
            raise Unauthorized(
                "a ticket is given for a token, not for another ticket" if grant else "no token was sent",
                "send Authorization: Bearer TOKEN",
            )
        ways = self.decide(channels, grant, rule)
        # A ticket has the iat of its token, so one for a channel that was revoked since then would be refused at once,
        # even if the rule opens the channel today.
        if any(way == "rule" and self._revocations().refuses(grant, [channel]) for channel, way in ways.items()):
            raise _revoked()
        return self._tokens.make_ticket(channels, grant)

    def publisher(self, authorization: str) -> Publisher:
        """Return the publisher that the Authorization header names (RFC 6750, 2.1).

        :raises NotFound: if neither keys nor tokens are configured, so that publishing over HTTP does not exist.
        :raises Unauthorized: if the header has no valid key or token.
        """
        if not (self._keys.configured or self._tokens.configured):
            raise NotFound("there is nothing at this address", "set SSE_PUBLISH_KEYS to publish over HTTP")
        given = _bearer(authorization)
        key = self._keys.find(given) if given else None
        if key:
            return Publisher("key", key.scope, key.patterns)
        # A credential that is not a known key may be a token. All others get the same answer.
        if self._tokens.configured and given.count(".") == 2:
            grant = self._verified(given)
            if not grant.is_ticket:
                return Publisher("token", grant.scope, grant.publish, grant)
        raise Unauthorized(
            "no publishing key, or an unknown one",
            "send Authorization: Bearer KEY, with one of SSE_PUBLISH_KEYS" + (" or a token" * self._tokens.configured),
        )

    def publish(self, channels: Sequence[str], publisher: Publisher) -> None:
        """Check that a publisher may publish on these channels.

        :raises Forbidden: naming the channels that it may not publish on.
        :raises Unauthorized: if the token has been revoked for one of them.
        """
        refused = tuple(channel for channel in dict.fromkeys(channels) if not _matched(channel, publisher.patterns))
        if refused:
            raise Forbidden(
                f"not allowed to publish on: {', '.join(refused)}",
                f"the {publisher.way} allows other channels only",
                channels=refused,
            )
        if publisher.grant and self._revocations().refuses(publisher.grant, channels):
            raise _revoked()

    def subject(self, credentials: Credentials) -> str:
        """Return the subject of a reader's valid token or ticket; empty if there is none.

        :raises Unauthorized: for a token in the header or query that is not valid. An invalid cookie is ignored.
        """
        grant, _ = self._read_grant(credentials)
        return grant.sub if grant else ""

    def watch(self, channel: str, authorization: str) -> None:
        """Check that the bearer of the Authorization header may know who listens on a channel.

        A publishing key may if it may publish there, and a token if its claim `presence` has the channel.

        :raises NotFound: if neither keys nor tokens are configured.
        :raises Unauthorized: if the header has no valid key or token, or a token that was revoked for the channel.
        :raises Forbidden: if the key or token has not the channel.
        """
        publisher = self.publisher(authorization)
        grant = publisher.grant
        if not _matched(channel, grant.presence if grant else publisher.patterns):
            raise Forbidden(
                f"not allowed to know who listens on: {channel}",
                "a token needs the channel in its claim presence, and a publishing key the right to publish there",
                channels=(channel,),
            )
        if grant and self._revocations().refuses(grant, [channel]):
            raise _revoked()

    def _is_public(self, channel: str) -> bool:
        return _matched(channel, self._config.public)

    def _read_grant(self, credentials: Credentials) -> tuple[Grant | None, SSEError | None]:
        """Return the grant of a reader's credentials, and the error in its cookie.

        Browsers always send cookies, so an invalid one is ignored unless the request needs it.
        """
        if not self._tokens.configured:
            return None, None
        if grant := self._bearer(credentials.authorization):
            return grant, None
        fault: SSEError | None = None
        if credentials.cookie and not credentials.cookie_counts:
            fault = Unauthorized(
                "the cookie is ignored, because the page is of another site", "add the page's origin to SSE_ORIGINS"
            )
        elif credentials.cookie:
            try:
                grant = self._verified(credentials.cookie)
                if not grant.is_ticket:
                    return grant, None
            except (Unauthorized, Unavailable) as error:
                fault = _copy(error)
        if credentials.query:
            grant = self._verified(credentials.query)
            if grant.is_ticket or self._config.query_tokens:
                return grant, None
            raise Unauthorized(
                "a whole token in a query would end up in logs",
                f"send it in a header, or exchange it at {self._config.prefix}/ticket; or set SSE_QUERY_TOKENS",
                code="token_in_query",
            )
        return None, fault

    def _bearer(self, authorization: str) -> Grant | None:
        given = _bearer(authorization)
        return self._verified(given) if given else None

    def _verified(self, text: str) -> Grant:
        grant = self._tokens.verify(text)
        if self._revocations().refuses(grant):
            raise _revoked()
        return grant

    def _way(self, channel: str, grant: Grant | None, rule: Authorize | None) -> Way | None:
        if self._is_public(channel):
            return "public"
        if grant and _matched(channel, grant.subscribe) and not self._revocations().refuses(grant, [channel]):
            return "ticket" if grant.is_ticket else "token"
        # Only True counts, because a coroutine, a redirection to the login page and `("no", 403)` are truthy too.
        return "rule" if rule and rule(channel) is True else None


def unreached(config: Config, kind: Kind, value: str) -> str:
    """Return why a revocation ends nobody's reading with these settings, and the remedy; empty if it may end some."""
    public = next((pattern for pattern in config.public if kind == "channel" and matches(pattern, value)), None)
    if public:
        return (
            f"channel {value} is public, since SSE_PUBLIC has {public}: its readers go on, and only tokens that "
            "publish there are refused; take it out of SSE_PUBLIC to close it"
        )
    if kind == "token" and not (config.secret or config.jwks):
        return (
            f"no tokens are configured here, so this ends nothing of token {value}: revoke the channel to end what "
            "the app's rule has opened, or set SSE_SECRET or SSE_JWKS as the service has it"
        )
    return ""


def cookie_counts(origin: str | None, site: str | None, own: str, origins: Sequence[str]) -> bool:
    """Return True if the cookie in a page's request counts: the page is of this site, or of an origin in SSE_ORIGINS.

    Only old browsers send neither header. Their cookies count: CORS alone keeps other pages from reading the answer.

    :param origin: the Origin header (RFC 6454, 7), None if it was not sent.
    :param site: the Sec-Fetch-Site header, None if it was not sent.
    :param own: this service's own origin, as the request names it.
    """
    if origin in origins:
        return True
    if site is not None:
        return site in ("same-origin", "same-site", "none") and origin != "null"
    return origin is None or origin == own


def check_rule(rule: Authorize) -> Authorize:
    """Return the app's rule if a call of it can answer True or False.

    :raises TypeError: if it cannot be called, or if every call gives a coroutine or a generator instead of an answer.
    """
    called = _unwrapped(rule)
    if not callable(called):
        raise TypeError(f"@sse.authorize got {called!a:.60}, which is no function; give a function of a channel's name")
    for each in (called, type(called).__call__):
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each):
            raise TypeError(
                f"@sse.authorize: the rule {name_of(rule)} is async, and a call of it gives no True or False; "
                "give a plain function, which may use asgiref.sync.async_to_sync"
            )
        if inspect.isgeneratorfunction(each):
            raise TypeError(
                f"@sse.authorize: the rule {name_of(rule)} has a yield, so a call of it gives a generator; "
                "return True or False"
            )
    return rule


def name_of(rule: Authorize) -> str:
    """Return the name of the app's rule, for the log and for errors: `module.function`."""
    called = _unwrapped(rule)
    named = called if hasattr(called, "__qualname__") else type(called)
    return ".".join(filter(None, (getattr(named, "__module__", ""), named.__qualname__)))


def _unwrapped(rule: Callable[..., object]) -> Callable[..., object]:
    """Return the function in a partial, or in a partial of a partial."""
    while isinstance(rule, partial):
        rule = rule.func
    return rule


def _matched(channel: str, patterns: Sequence[str]) -> bool:
    for pattern in patterns:  # noqa: SIM110 - each request does this, and any() takes twice as long
        if matches(pattern, channel):
            return True
    return False


def _copy(error: SSEError) -> SSEError:
    """Return the same error without its traceback, whose frames and the error would keep each other alive."""
    return type(error)(error.message, error.hint, retry_after=error.retry_after, code=error.code)


def _revoked() -> Unauthorized:
    return Unauthorized(
        "the token has been revoked",
        f"a token that is issued {TAKEN_AFTER} s after the revocation is accepted again",
        retry_after=TAKEN_AFTER,
        code="token_revoked",
    )


def _bearer(authorization: str) -> str:
    scheme, _, credential = authorization.partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else ""
