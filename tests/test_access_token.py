"""A token or ticket is accepted only if its signature, audience and times are valid."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sse.access.token import LEEWAY, TICKET_LIFE, Grant, Tokens
from sse.config import Config
from sse.errors import ConfigError, InvalidEvent, NotFound, TooLarge, Unauthorized
from tests.tokens import EC, RSA, SECRET, by_key, claims, jwk_set, part, signed, unsigned


def tokens(**config: Any) -> Tokens:
    return Tokens(Config(**{"secret": (SECRET,), **config}))


def fault(text: str, made: Tokens | None = None) -> str:
    with pytest.raises(Unauthorized) as refusal:
        (made or tokens()).verify(text)
    assert SECRET not in str(refusal.value)
    assert refusal.value.status == 401
    return refusal.value.code


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(jwk_set())
    return path


def test_a_token_gives_what_its_claims_say() -> None:
    made = claims(subscribe=["news", "user/42/*"], publish=["*"])
    grant = tokens().verify(signed(made))
    assert grant == Grant(
        "ann", ("news", "user/42/*"), ("*",), "1", made["iat"], made["exp"] + LEEWAY, made["exp"] + LEEWAY, False
    )


@pytest.mark.parametrize("changes", [{"subscribe": None}, {"publish": None}, {"sub": None}, {"jti": None}])
def test_a_claim_that_is_left_out_gives_nothing(changes: dict[str, Any]) -> None:
    grant = tokens().verify(signed(claims(**changes)))
    empty = {"subscribe": (), "publish": (), "sub": "", "jti": ""}
    for name in changes:
        assert getattr(grant, {"jti": "id"}.get(name, name)) == empty[name]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"exp": None}, "token_claims"),
        ({"exp": lambda now: now - 3600}, "token_expired"),
        ({"exp": lambda now: now - LEEWAY - 1}, "token_expired"),
        ({"exp": "soon"}, "token_invalid"),
        ({"exp": math.inf}, "token_invalid"),
        ({"exp": math.nan}, "token_invalid"),
        ({"exp": True}, "token_expired"),
        ({"exp": lambda now: now + 10**7}, "token_lifetime"),
        ({"iat": lambda now: now - 10**7}, "token_lifetime"),
        ({"iat": None}, "token_claims"),
        ({"exp": lambda now: str(now + 60)}, "token_claims"),
        ({"aud": None}, "token_claims"),
        ({"aud": "other"}, "token_audience"),
        ({"aud": ["other"]}, "token_audience"),
        ({"aud": 5}, "token_audience"),
        ({"nbf": lambda now: now + 60}, "token_early"),
        ({"iat": lambda now: now + 60}, "token_early"),
        ({"iat": "today"}, "token_claims"),
        ({"sub": 5}, "token_claims"),
        ({"jti": 5}, "token_claims"),
        ({"subscribe": "a"}, "token_claims"),
        ({"subscribe": [5]}, "token_claims"),
        ({"subscribe": ["a*"]}, "token_claims"),
        ({"publish": [".*"]}, "token_claims"),
        ({"publish": ["sse.x"]}, "token_claims"),
    ],
)  # fmt: skip
def test_a_claim_at_fault_makes_the_token_worthless(changes: dict[str, Any], code: str) -> None:
    now = int(time.time())
    assert (
        fault(signed(claims(**{name: value(now) if callable(value) else value for name, value in changes.items()})))
        == code
    )


def test_one_of_several_audiences_will_do_and_so_does_the_leeway() -> None:
    assert tokens().verify(signed(claims(aud=["x", "sse"])))
    assert tokens().verify(signed(claims(exp=int(time.time()) - LEEWAY + 3)))
    assert tokens(audience="mine").verify(signed(claims(aud="mine")))


def test_an_issuer_is_required_where_one_is_set() -> None:
    made = tokens(issuer=("https://id.example",))
    assert made.verify(signed(claims(iss="https://id.example")))
    assert fault(signed(claims(iss="https://other.example")), made) == "token_issuer"
    assert fault(signed(claims()), made) == "token_claims"


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "..", "a.b.c", "x" * 9000, "é.é.é", "\udc80.a.b", part({"alg": "HS256"}), f"{part({})}.{part({})}."),
        unsigned(claims()),
        unsigned(claims(), "None"),
        unsigned(claims(), "HS256"),
        signed(claims(), "another-secret-of-the-tests-32-bytes-long"),
        signed(claims(), ""),
        signed(claims(), alg="HS384"),
        signed(claims(), alg=["HS256"]),
        signed(claims(), alg=None),
        signed(claims(), kid=5),
        signed(claims(), crit=["exp"]),
        signed(claims(), b64=False),
        signed(claims(), typ="ticket"),
        signed([1]),
        signed(b"[" * 4000),
        f"{part(b'[' * 3000)}.a.b",
        signed(claims())[:-2],
        signed(claims()) + "x",
    ],
)
def test_what_is_not_signed_by_the_secret_gives_nothing_and_is_told_nothing(text: str) -> None:
    assert fault(text) == "token_invalid"


def test_a_stranger_learns_nothing_of_claims() -> None:
    for changes in ({"exp": 5}, {"aud": "other"}, {"subscribe": 5}, {"exp": None}):
        assert fault(signed(claims(**changes), "x" * 40)) == "token_invalid"


def test_secrets_are_rotated_by_having_two() -> None:
    old, new = "old-secret-of-the-tests-with-32-bytes", "new-secret-of-the-tests-with-32-bytes"
    both = tokens(secret=(new, old))
    assert both.verify(signed(claims(), old)).sub == both.verify(signed(claims(), new)).sub == "ann"
    made = both.make("bob", ["a"], [], 60)
    assert tokens(secret=(new,)).verify(made).sub == "bob"
    assert fault(made, tokens(secret=(old,))) == "token_invalid"


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
def test_public_keys_verify_the_tokens_of_others(alg: str, key_file: Path) -> None:
    made = tokens(secret=(), jwks=(str(key_file),))
    assert made.configured
    assert made.verify(by_key(claims(), alg)).sub == "ann"
    assert fault(by_key(claims(aud="x"), alg), made) == "token_audience"
    assert fault(by_key(claims(), alg, kid="other"), made) == "token_invalid"
    assert fault(signed(claims()), made) == "token_invalid"


def test_a_public_key_is_never_taken_for_a_secret(key_file: Path) -> None:
    made = tokens(jwks=(str(key_file),))
    key = RSA.public_key()
    for encoding, form in (
        (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.PEM, PublicFormat.PKCS1),
    ):
        for kid in ("RS256", ""):
            assert fault(signed(claims(), key.public_bytes(encoding, form), kid=kid), made) == "token_invalid"
    item = json.loads(jwk_set("RS256"))["keys"][0]
    assert fault(signed(claims(), item["n"], kid="RS256"), made) == "token_invalid"


def test_a_key_has_one_algorithm_whatever_the_token_says(key_file: Path) -> None:
    made = tokens(jwks=(str(key_file),))
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert fault(by_key(claims(), "RS256", key=other), made) == "token_invalid"
    for text in (by_key(claims(), "RS512", "RS256", RSA), by_key(claims(), "PS256", "RS256", RSA)):
        assert fault(text, made) == "token_invalid"
    assert fault(by_key(claims(), "ES256", "RS256", EC), made) == "token_invalid"


def test_a_token_brings_no_key_of_its_own(key_file: Path) -> None:
    own = {"jwk": json.loads(jwk_set("RS256"))["keys"][0], "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/"}
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = jwt.encode(claims(), other, "RS256", headers={"kid": "RS256", **own})
    assert fault(text, tokens(jwks=(str(key_file),))) == "token_invalid"


def test_each_of_several_issuers_is_verified_by_its_own_keys(tmp_path: Path) -> None:
    for name, alg in (("one", "RS256"), ("two", "ES256")):
        (tmp_path / name).write_text(jwk_set(alg, kid="k"))
    made = tokens(jwks=(str(tmp_path / "one"), str(tmp_path / "two")), issuer=("https://one", "https://two", "own"))
    for iss, alg, other in (("https://one", "RS256", "ES256"), ("https://two", "ES256", "RS256")):
        assert made.verify(by_key(claims(iss=iss), alg, "k")).sub == "ann"
        assert fault(by_key(claims(iss=iss), other, "k"), made) == "token_invalid"
    for iss in ("https://three", "own", "", None):
        assert fault(by_key(claims(iss=iss), "RS256", "k"), made) == "token_invalid"
    assert made.verify(signed(claims(iss="own"))).sub == "ann"
    assert fault(signed(claims(iss="https://three")), made) == "token_issuer"


@pytest.mark.parametrize("issuers", [(), ("https://one",), ("https://one", "https://one"), ("a", "a", "b")])
def test_of_several_sets_each_needs_an_issuer(issuers: tuple[str, ...], key_file: Path) -> None:
    with pytest.raises(ConfigError, match="SSE_ISSUER"):
        tokens(jwks=(str(key_file), str(key_file)), issuer=issuers)


def test_the_log_tells_whose_keys_do_not_fit_and_the_bearer_is_not_told(
    key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = tokens(jwks=(str(key_file),))
    for text in (signed(claims(), "another-secret-of-the-tests-32-bytes-long"), by_key(claims(), "RS256", kid="k\n2")):
        caplog.clear()
        with pytest.raises(Unauthorized) as refusal:
            made.verify(text)
        assert str(refusal.value) == "the token is not valid here: fetch a new one"
        assert text.partition(".")[0] not in caplog.text
    assert "no key for its alg 'RS256', kid 'k\\n2'" in caplog.text


def test_a_key_that_is_taken_from_the_file_verifies_nothing_more(key_file: Path) -> None:
    made = tokens(secret=(), jwks=(str(key_file),))
    text = by_key(claims(), "ES256")
    assert made.verify(text)
    key_file.write_text(jwk_set("RS256"))
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            made.verify(text)
        except Unauthorized as error:
            assert error.code == "token_invalid"
            return
        time.sleep(0.05)
    raise AssertionError("the token is still taken")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"keys": []}', '{"keys": 5}', '{"keys": [{"kty": "oct", "k": "QUJD"}]}', "["]
)
def test_a_file_without_a_usable_key_is_refused_at_start(text: str, tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_text(text)
    with pytest.raises(ConfigError, match="SSE_JWKS"):
        tokens(jwks=(str(path),))
    with pytest.raises(ConfigError, match="SSE_JWKS"):
        tokens(jwks=(str(tmp_path / "none"),))


def test_a_token_that_lives_too_long_is_refused_at_its_end_too() -> None:
    now = [time.time()]
    made = Tokens(Config(secret=(SECRET,), token_lifetime=3600), clock=lambda: now[0])
    text = signed(claims(exp=int(now[0]) + 7200))
    for _ in range(2):
        assert fault(text, made) == "token_lifetime"
        now[0] += 7100


def test_a_ticket_is_worth_nothing_after_the_end_of_its_token() -> None:
    now = [time.time()]
    made = Tokens(Config(secret=(SECRET,)), clock=lambda: now[0])
    ends = int(now[0]) + 10
    text = made.make_ticket(["a"], made.verify(signed(claims(exp=ends))))
    now[0] = ends + LEEWAY - 1
    assert made.verify(text)
    now[0] = ends + LEEWAY
    assert fault(text, made) == "token_expired"


def test_a_ticket_that_would_be_too_long_to_be_taken_is_not_made() -> None:
    made = tokens()
    text = made.make_ticket([f"{number:02}{'x' * 100}" for number in range(50)], Grant("ann"))
    assert made.verify(text).sub == "ann"
    with pytest.raises(TooLarge, match="name fewer channels"):
        made.make_ticket([f"{number:02}{'x' * 100}" for number in range(60)], Grant("ann"))


def test_those_who_have_no_subject_are_told_apart_by_their_tokens() -> None:
    grants = [Grant("", id="1"), Grant("", id="2"), Grant("1"), Grant("2", id="1"), Grant("2", id="2")]
    assert len({grant.scope for grant in grants}) == 4


def test_what_a_ticket_says_of_its_end_means_nothing_in_a_token() -> None:
    grant = tokens().verify(signed(claims(ends=2e9, exp=int(time.time()) + 60)))
    assert grant.ends_at == grant.taken_until < time.time() + 70


def test_a_token_that_was_verified_is_still_refused_after_its_time() -> None:
    now = [time.time()]
    made = Tokens(Config(secret=(SECRET,)), clock=lambda: now[0])
    text = signed(claims())
    assert made.verify(text)
    now[0] += 600 + LEEWAY + 1
    assert fault(text, made) == "token_expired"


def test_tokens_that_are_made_are_taken() -> None:
    made = tokens(audience="x", issuer=("y",))
    grant = made.verify(made.make("bob", ["a/*"], ["b"], 60))
    assert (grant.sub, grant.subscribe, grant.publish) == ("bob", ("a/*",), ("b",))
    assert grant.id
    with pytest.raises(InvalidEvent):
        made.make("bob", ["a*"], [], 60)
    with pytest.raises(NotFound):
        tokens(secret=()).make("bob", [], [], 60)


def test_a_ticket_gives_its_channels_for_a_minute_and_no_publishing() -> None:
    now = [time.time()]
    made = Tokens(Config(secret=(SECRET,)), clock=lambda: now[0])
    token = made.verify(signed(claims(subscribe=["*"], publish=["*"])))
    text = made.make_ticket(["a", "b/c"], token)
    ticket = made.verify(text)
    assert (ticket.subscribe, ticket.publish, ticket.is_ticket) == (("a", "b/c"), (), True)
    assert (ticket.sub, ticket.id, ticket.issued_at, ticket.ends_at) == ("ann", "1", token.issued_at, token.ends_at)
    now[0] += TICKET_LIFE + 1
    assert fault(text, made) == "token_expired"


def test_neither_is_a_ticket_a_token_nor_a_token_a_ticket() -> None:
    made = tokens()
    ticket = made.make_ticket(["a"], Grant("ann"))
    _, payload, signature = ticket.split(".")
    assert fault(f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{payload}.{signature}", made) == "token_invalid"
    assert fault(ticket, tokens(secret=("another-secret-of-the-tests-32-bytes-long",))) == "token_invalid"
    assert fault(signed(claims(), typ="ticket"), made) == "token_invalid"


def test_what_is_kept_of_verified_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse.access.token._KEPT", 3)
    made = tokens()
    texts = [signed(claims(jti=str(number))) for number in range(10)]
    assert [made.verify(text).id for text in texts * 2] == [str(number) for number in range(10)] * 2
    assert len(made._kept) == 3
    assert not any(text.encode() in key for key in made._kept for text in texts)
