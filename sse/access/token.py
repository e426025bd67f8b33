"""Tokens and tickets: signed texts that name a client and the channels that it may use (RFC 7519, RFC 8725).

A token lives for hours or days, and travels in a header or cookie. A ticket is made of a token, for some of its
channels. It is good for 60 s, so it may travel in a query, although queries end up in logs.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt
from jwt.exceptions import (
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAudienceError,
    InvalidIssuedAtError,
    InvalidIssuerError,
    InvalidJTIError,
    InvalidSignatureError,
    InvalidSubjectError,
    MissingRequiredClaimError,
    PyJWTError,
)

from sse.access import jwks
from sse.config import Config, check_pattern
from sse.errors import ConfigError, InvalidEvent, KeyUnknown, NotFound, TooLarge, Unauthorized
from sse.log import warn

LEEWAY: Final = 5
"""Seconds that two clocks may differ."""

TICKET_LIFE: Final = 60
"""Seconds in which a ticket opens streams and polls."""

_MAX_LENGTH: Final = 8192  # characters
_KEPT: Final = 4096  # verified tokens that are remembered
_TICKET: Final = "ticket"


@dataclass(frozen=True, slots=True)
class Grant:
    """The subject and channel patterns that a token or ticket grants; times are seconds since 1970.

    The token or ticket is accepted until `taken_until`. The streams that it has opened end at `ends_at`.
    """

    sub: str
    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    id: str = ""
    issued_at: float = 0.0
    taken_until: float = math.inf
    ends_at: float = math.inf
    is_ticket: bool = False
    issuer: str = ""
    presence: tuple[str, ...] = ()

    @property
    def scope(self) -> str:
        """A hash of the issuer and subject that keeps idempotency keys of different publishers apart."""
        holder = ("sub", self.sub) if self.sub else ("token", self.id)
        return hashlib.sha256(repr((self.issuer, *holder)).encode()).hexdigest()[:16]


class Tokens:
    """Makes and verifies tokens, as the settings say. `clock` gives seconds since 1970.

    :raises ConfigError: if a file of SSE_JWKS is faulty, or if there are several sets and one of them has no issuer.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._secrets = tuple(secret.encode() for secret in config.secret)
        # Tickets have their own keys, so that a ticket is never accepted as a token, whatever its claims.
        self._ticket_keys = tuple(hmac.digest(secret, b"throughline ticket", "sha256") for secret in self._secrets)
        if len(config.jwks) > max(len(config.issuer), 1) or len(set(config.issuer)) < len(config.issuer):
            raise ConfigError(
                f"SSE_JWKS has {len(config.jwks)} sets, SSE_ISSUER {len(set(config.issuer))} different names",
                "name the issuer of each once, in the same order",
            )
        # The key set of each issuer; "" if the claim iss is not checked.
        self._jwks = {
            issuer: jwks.connect(source) for issuer, source in zip(config.issuer or ("",), config.jwks, strict=False)
        }
        # The grants of verified tokens, by the token's hash; with the key set and its generation at that time.
        self._kept: dict[bytes, tuple[Grant, jwks.KeySet | None, int]] = {}
        self._lock = threading.Lock()

    @property
    def configured(self) -> bool:
        """True if there are secrets or key sets, so that a token can be valid."""
        return bool(self._secrets or self._jwks)

    def make(
        self,
        sub: str,
        subscribe: Sequence[str],
        publish: Sequence[str],
        lifetime: int,
        presence: Sequence[str] = (),
    ) -> str:
        """Return a token, signed by SSE_SECRET, that is good for `lifetime` seconds.

        :raises InvalidEvent: for a bad pattern.
        :raises NotFound: without SSE_SECRET.
        """
        claims = {
            "sub": sub,
            "aud": self._config.audience,
            "exp": int(self._clock()) + lifetime,
            "subscribe": [check_pattern(pattern) for pattern in subscribe],
            "publish": [check_pattern(pattern) for pattern in publish],
            **({"presence": [check_pattern(pattern) for pattern in presence]} if presence else {}),
            **({"iss": self._config.issuer[0]} if self._config.issuer else {}),
        }
        return self._sign(claims, self._secrets)

    def make_ticket(self, channels: Sequence[str], grant: Grant) -> str:
        """Return a ticket for these channels, good for 60 s. The streams that it opens end when the grant does.

        :raises TooLarge: if the ticket would be longer than a service accepts.
        """
        claims: dict[str, Any] = {
            "sub": grant.sub,
            "aud": self._config.audience,
            "exp": int(self._clock()) + TICKET_LIFE,
            "subscribe": list(channels),
            "jti": grant.id,
            "iat": grant.issued_at,
            **({"ends": grant.ends_at} if grant.ends_at < math.inf else {}),
        }
        text = self._sign(claims, self._ticket_keys, _TICKET)
        if len(text) > _MAX_LENGTH:
            raise TooLarge(
                f"the ticket would have {len(text)} characters", f"{_MAX_LENGTH} are allowed: name fewer channels"
            )
        return text

    def verify(self, text: str) -> Grant:
        """Return the grant of a token or ticket.

        :raises Unauthorized: if it is not valid. The error says why only if the signature is right.
        :raises Unavailable: if the keys to verify it by could not be fetched.
        """
        if len(text) > _MAX_LENGTH:
            raise _invalid()
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
        grant, keys, generation = self._kept.get(digest, (None, None, 0))
        if grant is None or (keys and keys.generation != generation):
            kept = self._verify(text)
            grant = kept[0]
            with self._lock:
                if len(self._kept) >= _KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[digest] = kept
        if self._clock() >= min(grant.taken_until, grant.ends_at):
            raise _expired(grant.is_ticket)
        return grant

    def _sign(self, claims: dict[str, Any], keys: Sequence[bytes], kind: str = "JWT") -> str:
        if not keys:
            raise NotFound("no tokens or tickets are made here", "set SSE_SECRET, which signs them")
        defaults = {"iat": int(self._clock()), "jti": secrets.token_hex(8)}
        return jwt.encode({**defaults, **claims}, keys[0], "HS256", headers={"typ": kind})

    def _verify(self, text: str) -> tuple[Grant, jwks.KeySet | None, int]:
        try:
            header = jwt.get_unverified_header(text)
            algorithm, is_ticket = header["alg"], header.get("typ") == _TICKET
            issuers, key_set, generation, again_in = () if is_ticket else self._config.issuer, None, 0, 0
            keys: Sequence[Any] = ()
            if is_ticket or algorithm == "HS256":
                keys = self._ticket_keys if is_ticket else self._secrets
            elif self._jwks and algorithm in jwks.ALGORITHMS.values():
                issuer = self._issuer(text)
                issuers, key_set = (issuer,) if issuer else (), self._jwks[issuer]
                generation = key_set.generation
                keys, again_in = key_set.find(algorithm, header.get("kid", ""))
            for key in keys:
                try:
                    claims = self._decode(text, key, "HS256" if is_ticket else algorithm, issuers, is_ticket)
                    return self._grant(claims, is_ticket), key_set, generation
                except InvalidSignatureError:
                    continue
        except (PyJWTError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise _fault(error, self._config) from None
        # The bearer gets the same answer for every wrong signature. The log says more, because two services with
        # different secrets are a common mistake.
        if keys:
            warn("a token is refused: its signature was made with another key")
        else:
            header_text = f"alg {str(algorithm)[:20]!a}, kid {str(header.get('kid'))[:60]!a}"
            warn("a token is refused: there is no key for its %s", header_text)
        raise _invalid(again_in)

    def _issuer(self, text: str) -> str:
        """Return the issuer whose keys verify a token: the only one, or the one that the token's claim iss names.

        The caller's look-up raises KeyError if there are several issuers, and the claim names none of them.
        """
        if len(self._jwks) == 1:
            return next(iter(self._jwks))
        issuer = str(jwt.decode(text, options={"verify_signature": False}).get("iss"))
        if issuer not in self._jwks:
            warn("a token is refused: SSE_JWKS has no keys of its issuer %.60a", issuer)
        return issuer

    def _decode(self, text: str, key: Any, algorithm: str, issuers: Sequence[str], is_ticket: bool) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            text,
            key,
            algorithms=[algorithm],
            audience=self._config.audience,
            issuer=issuers or None,
            leeway=0 if is_ticket else LEEWAY,
            options={"require": ["exp", "aud", "iat", *(["iss"] if issuers else [])], "verify_iat": not is_ticket},
        )
        return claims

    def _grant(self, claims: dict[str, Any], is_ticket: bool) -> Grant:
        exp, issued_at = _moment(claims["exp"], "exp"), _moment(claims["iat"], "iat")
        # The lifetime counts from iat, not from now. Otherwise a token that is refused today as too long-lived would be
        # accepted near its end, when its revocation may be forgotten.
        if not is_ticket and exp - issued_at > self._config.token_lifetime:
            raise Unauthorized(
                "the token lives too long",
                f"its exp may be {self._config.token_lifetime} s after its iat, by SSE_TOKEN_LIFETIME",
                code="token_lifetime",
            )
        ends_at = exp + LEEWAY
        if is_ticket:
            ends_at = _moment(claims["ends"], "ends") if "ends" in claims else math.inf
        return Grant(
            str(claims.get("sub", "")),
            _patterns(claims, "subscribe"),
            () if is_ticket else _patterns(claims, "publish"),
            str(claims.get("jti", "")),
            issued_at,
            exp if is_ticket else exp + LEEWAY,
            ends_at,
            is_ticket,
            str(claims.get("iss", "")),
            () if is_ticket else _patterns(claims, "presence"),
        )


def id_of(text: str) -> str:
    """Return the id (`jti`) in a token, valid or not; empty if there is none."""
    try:
        return str(jwt.decode(text, options={"verify_signature": False}).get("jti", ""))
    except PyJWTError:
        return ""


def _moment(value: object, claim: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise Unauthorized(f"the token's {claim} is not a time", "give seconds since 1970", code="token_claims")


def _patterns(claims: dict[str, Any], claim: str) -> tuple[str, ...]:
    patterns = claims.get(claim, [])
    try:
        if isinstance(patterns, list) and all(isinstance(pattern, str) for pattern in patterns):
            return tuple(map(check_pattern, patterns))
        fault = "not a list of strings"
    except InvalidEvent as error:
        fault = error.message
    raise Unauthorized(
        f"the token's {claim}: {fault}", 'give channels, "*", or patterns such as "news/*"', code="token_claims"
    )


def _invalid(again_in: int = 0) -> Unauthorized:
    kind = KeyUnknown if again_in else Unauthorized
    return kind("the token is not valid here", "fetch a new one", retry_after=again_in, code="token_invalid")


def _expired(is_ticket: bool) -> Unauthorized:
    return Unauthorized(f"the {_TICKET if is_ticket else 'token'} has expired", "fetch a new one", code="token_expired")


def _fault(error: Exception, config: Config) -> Unauthorized:
    """Return the error that a token's bearer gets. PyJWT checks the claims only after the signature."""
    if isinstance(error, ExpiredSignatureError):
        return _expired(False)
    if isinstance(error, InvalidAudienceError):
        return Unauthorized(
            "the token is for another audience", f"its aud has to be {config.audience!a}", code="token_audience"
        )
    if isinstance(error, InvalidIssuerError):
        return Unauthorized("the token has another issuer", "see SSE_ISSUER", code="token_issuer")
    if isinstance(error, MissingRequiredClaimError):
        return Unauthorized(f"the token has no {error.claim}", "add this claim", code="token_claims")
    if isinstance(error, ImmatureSignatureError):
        return Unauthorized(
            "the token is not valid yet",
            f"its iat or nbf is over {LEEWAY} s ahead of the clock here",
            code="token_early",
        )
    if isinstance(error, InvalidSubjectError | InvalidJTIError | InvalidIssuedAtError):
        return Unauthorized(f"the token's claims: {error}", "see RFC 7519, 4.1", code="token_claims")
    return _invalid()
