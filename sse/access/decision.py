"""Who may read a channel, and who may publish on it: one decision, whatever the way in."""

from __future__ import annotations

import inspect
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
"""The app's own rule: whether the current request may read a channel. Only `True` is a yes."""

Way = Literal["public", "token", "ticket", "rule", "key"]
"""What lets a request through to a channel."""


class Brought(NamedTuple):
    """What a request brings to show who it is, and whether a cookie may count, see `cookie_counts`."""

    authorization: str = ""
    cookie: str = ""
    query: str = ""
    cookie_counts: bool = True


class Publisher(NamedTuple):
    """Who publishes: the patterns of the channels that are theirs, and the scope of their idempotency keys."""

    way: Way
    scope: str
    patterns: Sequence[str]
    grant: Grant | None = None


class Access:
    """The decisions of one service."""

    def __init__(
        self, config: Config, tokens: Tokens, keys: PublishKeys, revocations: Callable[[], Revocations]
    ) -> None:
        self._config = config
        self._tokens = tokens
        self._keys = keys
        self._revocations = revocations

    def read(self, channels: Sequence[str], brought: Brought, rule: Authorize | None = None) -> Permit | None:
        """Let a stream, poll or replay pass; what it stands on from then on, None where all is public.

        :raises Unauthorized: if tokens are configured, and what was brought is not valid, or missing where needed.
        :raises Forbidden: naming the channels that are refused, and nothing about whether they exist.
        """
        revocations = self._revocations()
        decided = revocations.count() if rule else 0  # what is revoked while the rule thinks counts
        grant, fault = self._who(brought)
        ways = self.decide(channels, grant, rule, fault)
        granted = [channel for channel, way in ways.items() if way in ("token", "ticket")]
        ruled = [channel for channel, way in ways.items() if way == "rule"]
        if not granted and not ruled:
            return None
        return Permit(revocations, grant if granted else None, granted, ruled, decided)

    def decide(
        self, channels: Sequence[str], grant: Grant | None, rule: Authorize | None, fault: SSEError | None = None
    ) -> Mapping[str, Way]:
        """The way that each channel may be read by, for one who has this grant.

        :raises Unauthorized: the fault, or for one who has no grant where there are tokens.
        :raises Forbidden: naming the channels that are refused.
        """
        ways = {channel: self._way(channel, grant, rule) for channel in channels}
        refused = tuple(channel for channel, way in ways.items() if way is None)
        if not refused:
            return {channel: way for channel, way in ways.items() if way}
        if fault:
            raise _anew(fault)
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
        """A ticket for the bearer of a token, who may read these channels.

        :raises Unauthorized: without a token in the Authorization header, or for one that is not valid.
        :raises Forbidden: naming the channels that are refused.
        :raises NotFound: without SSE_SECRET, by which tickets are signed.
        """
        if not self._config.secret:
            raise NotFound("no tickets are made here", "that begins with SSE_SECRET")
        grant = self._bearer(authorization)
        if grant is None or grant.is_ticket:
            raise Unauthorized(
                "a ticket is for the bearer of a token, not of another ticket" if grant else "no token was sent",
                "send Authorization: Bearer TOKEN",
            )
        ways = self.decide(channels, grant, rule)
        # A ticket is as old as its token, whatever the rule says of the channel today.
        if any(way == "rule" and self._revocations().refuses(grant, [channel]) for channel, way in ways.items()):
            raise _revoked()
        return self._tokens.make_ticket(channels, grant)

    def publisher(self, authorization: str) -> Publisher:
        """Who publishes, by the Authorization header alone (RFC 6750, 2.1).

        :raises NotFound: if neither keys nor tokens are configured, so that publishing over HTTP does not exist.
        :raises Unauthorized: if the header has no key or token that is valid.
        """
        if not (self._keys.configured or self._tokens.configured):
            raise NotFound("there is nothing here", "publishing over HTTP begins with SSE_PUBLISH_KEYS")
        given = _bearer(authorization)
        key = self._keys.find(given) if given else None
        if key:
            return Publisher("key", key.scope, key.patterns)
        # What is no key may be a token. All else is answered alike.
        if self._tokens.configured and given.count(".") == 2:
            grant = self._verified(given)
            if not grant.is_ticket:
                return Publisher("token", grant.scope, grant.publish, grant)
        raise Unauthorized(
            "no publishing key, or an unknown one",
            "send Authorization: Bearer KEY, with one of SSE_PUBLISH_KEYS" + (" or a token" * self._tokens.configured),
        )

    def publish(self, channels: Sequence[str], publisher: Publisher) -> None:
        """Let a publication pass.

        :raises Forbidden: naming the channels that are not the publisher's.
        :raises Unauthorized: if the token has been revoked for one of them.
        """
        refused = tuple(channel for channel in dict.fromkeys(channels) if not _matched(channel, publisher.patterns))
        if refused:
            raise Forbidden(
                f"not allowed to publish on: {', '.join(refused)}",
                f"the {publisher.way} is for others",
                channels=refused,
            )
        if publisher.grant and self._revocations().refuses(publisher.grant, channels):
            raise _revoked()

    def _who(self, brought: Brought) -> tuple[Grant | None, SSEError | None]:
        """What a reader's credential gives. A cookie is sent unasked: one at fault counts only where one is needed."""
        if not self._tokens.configured:
            return None, None
        if grant := self._bearer(brought.authorization):
            return grant, None
        fault: SSEError | None = None
        if brought.cookie and not brought.cookie_counts:
            fault = Unauthorized("the cookie does not count here", "it does for pages of this site and of SSE_ORIGINS")
        elif brought.cookie:
            try:
                grant = self._verified(brought.cookie)
                if not grant.is_ticket:
                    return grant, None
            except (Unauthorized, Unavailable) as error:
                fault = _anew(error)
        if brought.query:
            grant = self._verified(brought.query)
            if grant.is_ticket or self._config.query_tokens:
                return grant, None
            raise Unauthorized(
                "a whole token in a query would end in logs",
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
        if _matched(channel, self._config.public):
            return "public"
        if grant and _matched(channel, grant.subscribe) and not self._revocations().refuses(grant, [channel]):
            return "ticket" if grant.is_ticket else "token"
        # Not any truthy answer: a coroutine, a redirection to the login page and `("no", 403)` are truthy, too.
        return "rule" if rule and rule(channel) is True else None


def unreached(config: Config, kind: Kind, value: str) -> str:
    """Return why a revocation ends nobody's reading with these settings, and the remedy; empty if it may end some."""
    public = next((pattern for pattern in config.public if kind == "channel" and matches(pattern, value)), None)
    if public:
        return (
            f"channel {value} is public, since SSE_PUBLIC has {public}: its readers go on, and only tokens that "
            "publish there are refused; take it out of SSE_PUBLIC to close it"
        )
    if kind != "channel" and not (config.secret or config.jwks):
        return (
            f"no tokens are configured here, so this ends nothing of {kind} {value}: revoke the channel to end what "
            "the app's rule has opened, or set SSE_SECRET or SSE_JWKS as the service has it"
        )
    return ""


def cookie_counts(origin: str | None, site: str | None, own: str, origins: Sequence[str]) -> bool:
    """Whether a page may have its cookie counted: one of this site, or of an origin in SSE_ORIGINS.

    :param origin: the Origin header (RFC 6454, 7).
    :param site: the Sec-Fetch-Site header; neither of both comes from old browsers only, and for them CORS alone
        keeps other pages from reading the answer.
    :param own: this service's own origin, as the request names it.
    """
    if origin in origins:
        return True
    if site is not None:
        return site in ("same-origin", "same-site", "none") and origin != "null"
    return origin is None or origin == own


def check_rule(rule: Authorize) -> Authorize:
    """Give the app's rule back if a call of it can answer True or False.

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
    """The name of the app's rule, for the log and for errors: `module.function`."""
    called = _unwrapped(rule)
    named = called if hasattr(called, "__qualname__") else type(called)
    return ".".join(filter(None, (getattr(named, "__module__", ""), named.__qualname__)))


def _unwrapped(rule: Callable[..., object]) -> Callable[..., object]:
    """The function in a partial, or in a partial of a partial."""
    while isinstance(rule, partial):
        rule = rule.func
    return rule


def _matched(channel: str, patterns: Sequence[str]) -> bool:
    return any(matches(pattern, channel) for pattern in patterns)


def _anew(error: SSEError) -> SSEError:
    """The same error without its traceback, whose frames would hold it, and be held by it."""
    return type(error)(error.message, error.hint, retry_after=error.retry_after, code=error.code)


def _revoked() -> Unauthorized:
    return Unauthorized(
        "the token has been revoked",
        f"what is issued {TAKEN_AFTER} s later is taken",
        retry_after=TAKEN_AFTER,
        code="token_revoked",
    )


def _bearer(authorization: str) -> str:
    scheme, _, credential = authorization.partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else ""
