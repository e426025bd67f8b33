"""A second opinion on tokens: made by hand, so that also those can be made that no library would."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRET = "a-secret-of-the-tests-with-over-32-bytes"


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims, changed; None takes one away."""
    now = int(time.time())
    good = {"sub": "ann", "aud": "sse", "iat": now, "exp": now + 600, "jti": "1", "subscribe": ["a"], "publish": ["a"]}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def part(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(payload: object, secret: str | bytes = SECRET, **header: Any) -> str:
    """HS256, whatever the header says."""
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
    """A token signed by one of KEYS, or by another key."""
    return jwt.encode(payload, key or KEYS[alg], alg, headers={"kid": kid or alg})


def jwk_set(*algs: str, **changes: Any) -> str:
    """The public keys for these algorithms, their ids the algorithms' names."""
    makers: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    keys = [
        {**makers[alg].to_jwk(KEYS[alg].public_key(), as_dict=True), "kid": alg, **changes}
        for alg in algs or tuple(KEYS)
    ]
    return json.dumps({"keys": keys})
