"""Tokens made by hand, as a second opinion: also tokens that no library would make."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRET = "a-secret-of-the-tests-with-over-32-bytes"
KEY = "a-publishing-key-for-these-tests"


def claims(**changes: Any) -> dict[str, Any]:
    """Return valid claims with changes. None takes a claim away."""
    now = int(time.time())
    good = {"sub": "ann", "aud": "sse", "iat": now, "exp": now + 600, "jti": "1", "subscribe": ["a"], "publish": ["a"]}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def part(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(payload: object, secret: str | bytes = SECRET, **header: Any) -> str:
    """Return a token signed by HS256, whatever its header says."""
    key = secret.encode() if isinstance(secret, str) else secret
    head = f"{part({'alg': 'HS256', 'typ': 'JWT', **header})}.{part(payload)}"
    return f"{head}.{part(hmac.digest(key, head.encode(), hashlib.sha256))}"


def unsigned(payload: object, alg: str = "none") -> str:
    return f"{part({'alg': alg, 'typ': 'JWT'})}.{part(payload)}."


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
KEYS: dict[str, Any] = {"RS256": RSA, "ES256": EC, "EdDSA": ED}


def by_key(payload: dict[str, Any], alg: str, kid: str | None = None, key: Any = None) -> str:
    """Return a token signed by one of KEYS, or by another key."""
    return jwt.encode(payload, key or KEYS[alg], alg, headers={"kid": kid or alg})


def jwk_set(*algs: str, **changes: Any) -> str:
    """Return the public keys for these algorithms. The algorithm's name is the key's id."""
    makers: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    keys = [
        {**makers[alg].to_jwk(KEYS[alg].public_key(), as_dict=True), "kid": alg, **changes}
        for alg in algs or tuple(KEYS)
    ]
    return json.dumps({"keys": keys})


TICKET_SECRET = hmac.digest(SECRET.encode(), b"throughline ticket", hashlib.sha256)


def ticket(*channels: str, life: int = 60, **changes: Any) -> str:
    """Return a ticket for these channels, as the service makes it."""
    now = int(time.time())
    given = {"publish": None, "exp": now + life, "ends": now + 600, "subscribe": channels or ["a", "unborn"], **changes}
    return signed(claims(**given), TICKET_SECRET, typ="ticket")


def _good(**changes: Any) -> dict[str, Any]:
    return claims(**{"subscribe": ["a", "unborn"], "publish": ["p"], **changes})


def _now(seconds: float) -> int:
    return int(time.time() + seconds)


_PUBLIC = RSA.public_key()
_SPKI, _PKCS1 = PublicFormat.SubjectPublicKeyInfo, PublicFormat.PKCS1

CREDENTIALS: dict[str, Callable[[], str]] = {
    "nothing": str,
    "token": lambda: signed(_good()),
    "token by RS256": lambda: by_key(_good(), "RS256"),
    "token by ES256": lambda: by_key(_good(), "ES256"),
    "token by EdDSA": lambda: by_key(_good(), "EdDSA"),
    "token for reading only": lambda: signed(_good(publish=None)),
    "token for publishing only": lambda: signed(_good(subscribe=None)),
    "token for other channels": lambda: signed(_good(subscribe=["b", "a/*", "unborn/*"], publish=["b", "p/*"])),
    "ticket": ticket,
    "ticket after its time": lambda: ticket(life=-1),
    "ticket after its token's time": lambda: ticket(ends=_now(-1)),
    "ticket for another channel": lambda: ticket("b"),
    "ticket by the secret itself": lambda: signed(_good(), typ="ticket"),
    "ticket turned into a token": lambda: signed(_good(), TICKET_SECRET),
    "expired": lambda: signed(_good(exp=_now(-60))),
    "without an end": lambda: signed(_good(exp=None)),
    "too long-lived": lambda: signed(_good(exp=_now(1e7))),
    "not valid yet": lambda: signed(_good(nbf=_now(60))),
    "wrong audience": lambda: signed(_good(aud="other")),
    "without an audience": lambda: signed(_good(aud=None)),
    "wrong key": lambda: signed(_good(), "x" * 40),
    "wrong key, expired": lambda: signed(_good(exp=5), "x" * 40),
    "wrong key by ES256": lambda: by_key(_good(), "ES256", key=ec.generate_private_key(ec.SECP256R1())),
    "unknown key id": lambda: by_key(_good(), "RS256", kid="other"),
    "another key's id": lambda: by_key(_good(), "ES256", kid="RS256"),
    "alg none": lambda: unsigned(_good()),
    "alg none, as a ticket": lambda: f"{part({'alg': 'none', 'typ': 'ticket'})}.{part(_good())}.",
    "key confusion: PEM": lambda: signed(_good(), _PUBLIC.public_bytes(Encoding.PEM, _SPKI), kid="RS256"),
    "key confusion: PKCS #1": lambda: signed(_good(), _PUBLIC.public_bytes(Encoding.PEM, _PKCS1), kid="RS256"),
    "key confusion: DER": lambda: signed(_good(), _PUBLIC.public_bytes(Encoding.DER, _SPKI), kid="RS256"),
    "key confusion: JWK": lambda: signed(_good(), json.dumps(json.loads(jwk_set("RS256"))["keys"][0]), kid="RS256"),
    "key confusion: modulus": lambda: signed(_good(), json.loads(jwk_set("RS256"))["keys"][0]["n"], kid="RS256"),
    "not a token": lambda: "hello",
    "revoked token": lambda: signed(_good(jti="revoked")),
    "revoked user": lambda: signed(_good(sub="revoked", iat=_now(-300))),
    "ticket of a revoked token": lambda: ticket(jti="revoked"),
    "ticket of a revoked user": lambda: ticket(sub="revoked", iat=_now(-300)),
}
"""Each kind there is, good and bad: the good ones read `a` and `unborn`, and publish on `p`.

"revoked" is a token's id and a user that a test has to revoke.
"""
