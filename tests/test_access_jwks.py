"""Keys from a JWKS address are fetched when a token needs them, and kept while the address fails.

Tokens with invented key ids do not cause requests to the address.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import jwt
import pytest

from sse import SSE
from sse.access.jwks import Fetched, parse_keys
from sse.access.token import Tokens
from sse.config import Config
from sse.errors import Unauthorized, Unavailable
from tests.conftest import MakeApp
from tests.key_issuer import Issuer
from tests.servers import wait_until
from tests.tokens import EC, SECRET, by_key, claims, jwk_set, signed


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as server:
        yield server
        server.drips = False
        server.go_on.set()


def test_they_are_fetched_when_a_token_needs_them(issuer: Issuer) -> None:
    made = Tokens(Config(jwks=(issuer.url,)))
    for _ in range(3):
        assert made.verify(by_key(claims(), "RS256")).sub == "ann"
    assert issuer.asked == 1


def test_an_unknown_id_fetches_them_anew_but_seldom(issuer: Issuer) -> None:
    now = [1000.0]
    keys = Fetched(issuer.url, clock=lambda: now[0])
    assert keys.find("RS256", "RS256")[0]
    for number in range(50):
        assert not keys.find("RS256", f"made-up-{number}")[0]
    assert issuer.asked == 1
    issuer.body = jwk_set("RS256", "ES256")
    now[0] += 31
    assert keys.find("ES256", "ES256")[0]
    assert (issuer.asked, keys.generation) == (2, 2)


def test_an_id_that_is_new_since_they_were_fetched_is_told_to_come_again(issuer: Issuer) -> None:
    now = [1000.0]
    keys = Fetched(issuer.url, clock=lambda: now[0])
    assert keys.find("RS256", "RS256")[0]
    issuer.body = jwk_set("RS256", "ES256")
    now[0] += 10
    assert (keys.find("ES256", "ES256"), issuer.asked) == (((), 20), 1)
    now[0] += 20
    assert keys.find("ES256", "ES256")[0]


def test_a_token_by_such_a_key_is_told_when_to_come_again(issuer: Issuer) -> None:
    made = Tokens(Config(jwks=(issuer.url,)))
    assert made.verify(by_key(claims(), "RS256"))
    made._jwks[""]._tried_at -= 10  # type: ignore[attr-defined]
    with pytest.raises(Unauthorized) as refusal:
        made.verify(by_key(claims(), "ES256"))
    assert refusal.value.code == "token_invalid"
    assert refusal.value.headers["Retry-After"] == "20"


def test_a_stream_by_a_key_that_may_soon_be_known_is_not_ended_for_good(issuer: Issuer, make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLIC="", SSE_JWKS=issuer.url)
    known, new = ({"Authorization": f"Bearer {by_key(claims(), alg)}"} for alg in ("RS256", "ES256"))
    client = app.test_client()
    assert client.get("/sse/poll?channel=a&timeout=0", headers=known).status_code == 200
    app.extensions["sse"].tokens._jwks[""]._tried_at -= 10
    answer = client.get("/sse/stream?channel=a", headers=new)
    assert (answer.status_code, '"reason":"busy"' in answer.text) == (200, True)
    answer = client.get("/sse/poll?channel=a&timeout=0", headers=new)
    assert (answer.status_code, answer.headers["Retry-After"]) == (401, "20")


def test_a_cookie_by_keys_that_cannot_be_had_is_passed_over(issuer: Issuer, make_app: MakeApp) -> None:
    issuer.status = 503
    sse = SSE()
    app = make_app(sse, SSE_PUBLIC="open", SSE_JWKS=issuer.url, SSE_SECRET=SECRET)
    with app.app_context():
        ticket = sse.ticket(["a"])
    headers = {"Cookie": f"sse_token={by_key(claims(), 'RS256')}"}
    for query, status in (("channel=open", 200), (f"channel=a&token={ticket}", 200), ("channel=a", 503)):
        answer = app.test_client(use_cookies=False).get(f"/sse/poll?timeout=0&{query}", headers=headers)
        assert answer.status_code == status


def test_after_a_long_quiet_time_the_first_is_judged_by_new_keys(issuer: Issuer) -> None:
    now = [1000.0]
    keys = Fetched(issuer.url, clock=lambda: now[0])
    assert keys.find("RS256", "RS256")[0]
    issuer.body = jwk_set("ES256")
    now[0] += 36_000
    assert keys.generation == 2
    assert not keys.find("RS256", "RS256")[0]
    assert keys.find("ES256", "ES256")[0]


def test_a_key_that_is_withdrawn_is_forgotten_in_time(issuer: Issuer) -> None:
    now = [1000.0]
    keys = Fetched(issuer.url, clock=lambda: now[0])
    assert keys.find("RS256", "RS256")[0]
    before = keys.generation
    issuer.body = jwk_set("ES256")
    now[0] += 301
    wait_until(lambda: keys.generation != before, 5)
    assert not keys.find("RS256", "RS256")[0]


@pytest.mark.parametrize(("status", "body"), [(500, ""), (200, "{}"), (302, ""), (200, " " * (1 << 20) + "{}")])
def test_while_the_address_fails_the_known_keys_stay(issuer: Issuer, status: int, body: str) -> None:
    now = [1000.0]
    keys = Fetched(issuer.url, clock=lambda: now[0])
    assert keys.find("RS256", "RS256")[0]
    issuer.status, issuer.body = status, body
    now[0] += 10_000
    _ = keys.generation
    assert keys.find("RS256", "RS256")[0]
    wait_until(lambda: issuer.asked == 2, 5)
    assert keys.find("RS256", "new") == ((), 30)  # which waits for that
    assert keys.find("RS256", "RS256")[0]
    assert issuer.asked == 2


def test_without_any_key_yet_one_is_to_come_again(issuer: Issuer) -> None:
    issuer.status = 503
    made = Tokens(Config(jwks=(issuer.url,)))
    began = time.monotonic()
    for _ in range(5):
        with pytest.raises(Unavailable):
            made.verify(by_key(claims(), "RS256"))
    assert issuer.asked == 1
    assert time.monotonic() - began < 30


def test_who_needs_none_of_them_does_not_wait_for_an_address_that_is_mute(issuer: Issuer) -> None:
    issuer.go_on.clear()
    made = Tokens(Config(jwks=(issuer.url,), secret=(SECRET,)))
    text = signed(claims())
    assert made.verify(text).sub == made.verify(text).sub == "ann"
    with pytest.raises(Unauthorized):
        made.verify("x.y.z")
    assert issuer.asked == 0
    # The known keys are used while newer ones are being fetched.
    now = [1000.0]
    keys = Fetched(issuer.url, clock=lambda: now[0])
    issuer.go_on.set()
    assert keys.find("RS256", "RS256")[0]
    issuer.go_on.clear()
    issuer.body = jwk_set("ES256")
    now[0] += 301
    assert keys.generation == 1
    wait_until(lambda: issuer.asked == 2, 5)
    assert keys.find("RS256", "RS256")[0]
    assert keys.generation == 1
    issuer.go_on.set()
    wait_until(lambda: keys.generation == 2, 5)
    assert not keys.find("RS256", "RS256")[0]


def test_an_address_that_answers_byte_by_byte_holds_nobody_for_long(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse.access.jwks._TIMEOUT", 0.3)
    issuer.drips = True
    keys = Fetched(issuer.url)
    began = time.monotonic()
    with pytest.raises(Unavailable):
        keys.find("RS256", "RS256")
    assert time.monotonic() - began < 3
    issuer.drips = False
    wait_until(lambda: keys.generation == 1, 5)
    assert keys.find("RS256", "RS256")[0]


def test_without_an_id_a_token_is_verified_by_the_only_key_of_its_algorithm(issuer: Issuer) -> None:
    text = jwt.encode(claims(), EC, "ES256")
    issuer.body = jwk_set("ES256", "RS256")
    assert Tokens(Config(jwks=(issuer.url,))).verify(text)
    two = [{**json.loads(jwk_set("ES256"))["keys"][0], "kid": kid} for kid in ("one", "two")]
    issuer.body = json.dumps({"keys": two})
    with pytest.raises(Unauthorized):
        Tokens(Config(jwks=(issuer.url,))).verify(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"alg": "RS512"},
        {"key_ops": ["sign"]},
        {"key_ops": None},
        {"key_ops": 5},
        {"key_ops": "verify"},
        {"d": "x"},
        {"n": "AQAB"},
        {"n": "A" * 300 + json.loads(jwk_set("RS256"))["keys"][0]["n"][:200]},
        {"n": 5},
        {"e": None},
        {"kid": 5},
    ],
)
def test_a_key_for_something_else_verifies_nothing(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no key"):
        parse_keys(jwk_set("RS256", **changes))
