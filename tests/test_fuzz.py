"""Whatever is sent, by whatever credential: no 5xx, nobody in, no forged frame.

The long form: FUZZ=1000000 pytest -o faulthandler_timeout=3600 tests/test_fuzz.py
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask

from sse import SSE
from sse.token import Tokens
from tests.client import Parser
from tests.conftest import MakeApp
from tests.tokens import RSA, SECRET, by_key, claims, jwk_set, part, signed, unsigned

COUNT = int(os.environ.get("FUZZ", "20000"))
KEY = "a-publishing-key-for-these-tests"
NEWS = "the private news"
FORGED = "event: forged\ndata: x\n\n"
PIECES = [
    *("", " ", "\0", "\t", "\x7f", "\x85", "é", "ÿ", "ð\x90\x8d\x88", "A" * 300, "9" * 30, "\\u000a", "'", '"', "<"),
    *("%", "%00", "%0a", "~", "=", "~~", "==", "&", "?", "#", "+", "/", "//", ".", "..", "...", "../private", "*"),
    *(
        "private",
        "own/a",
        "own/*",
        "own/private",
        "sse.revoked",
        "{",
        "[",
        "{}",
        "null",
        "nan",
        "-1",
        "channel",
        "token",
    ),
    *("0-0", "1-1", "58-2893764512345678", "private=1-1", "own/a=0-0", "own/a=1-1~private=1-1"),
    *("Bearer", "Bearer ", "alg", "eyJ"),
]
TEXTS = [
    *PIECES,
    FORGED,
    f"x\n\n{FORGED}",
    f"x\r\r{FORGED}",
    "\r\n",
    "\n",
    "\u2028",
    "\ud800",
    "😀",
    "id: 1\n\n",
    ": x\n",
]


MODULUS = RSA.public_key().public_numbers().n.to_bytes(256)


class Fuzzer:
    """One client without a right to the channel `private`: its own token and key are for `own/*` and nothing else."""

    def __init__(self, app: Flask, seed: int) -> None:
        self.app = app
        self.random = random.Random(seed)
        self.tokens: Tokens = app.extensions["sse"].tokens
        self.token = signed(claims(subscribe=["own/*"], publish=["own/*"]))
        self.own = [
            self.token,
            by_key(claims(subscribe=["own/*"], publish=["own/*"]), "RS256"),
            self.tokens.make_ticket(["own/a"], self.tokens.verify(self.token)),
        ]

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def mutated(self, text: str, pieces: list[str] = PIECES) -> str:
        for _ in range(self.random.randrange(4)):
            at = self.random.randrange(len(text) + 1)
            cut = at + self.random.randrange(4)
            text = text[:at] + self.pick(self.pick(*pieces), chr(self.random.randrange(1, 256))) + text[cut:]
        return text

    def edited_token(self) -> str:
        """One of ours with its header or claims changed, by one who does not have the secret."""
        head, body, signature = self.pick(*self.own).split(".")
        header, payload = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in (head, body))
        if self.pick(True, False):
            header[self.pick("alg", "typ", "kid", "crit", "b64", "jku", "jwk", "zip")] = self.pick(
                "none", "HS256", "RS256", "HS512", "ticket", "", None, 5, [], ["exp"], {}, False
            )
        if self.pick(True, False):
            payload[self.pick("sub", "aud", "exp", "iat", "nbf", "subscribe", "publish", "ends", "jti", "iss")] = (
                self.pick(["*"], ["private"], "*", "sse", ["sse"], 10**12, -1, 1e400, None, True, "", {}, [[]])
            )
        return f"{part(header)}.{part(payload)}.{signature}"

    def credential(self) -> str:
        wanted = claims(subscribe=["*"], publish=["*"])
        make: Callable[[], str] = self.pick(
            *[lambda: self.pick(*self.own)] * 6,
            lambda: self.mutated(self.pick(*self.own)),
            self.edited_token,
            lambda: unsigned(wanted, self.pick("none", "None", "NONE", "", "HS256")),
            lambda: signed(wanted, self.pick("", "x" * 32, SECRET[:-1], MODULUS)),
            lambda: signed(wanted, self.mutated("y" * 40), kid=self.pick("RS256", "", "x"), typ="ticket"),
            *[lambda: KEY] * 2,
            lambda: self.mutated(KEY),
            lambda: self.mutated("".join(self.pick(*PIECES) for _ in range(3))),
        )  # fmt: skip
        return make()

    def channel(self) -> str:
        return str(
            self.pick(*["own/a"] * 4, "private", self.mutated("own/a"), self.mutated("private"), self.pick(*PIECES))
        )

    def request(self) -> dict[str, Any]:
        """A WSGI environment."""
        query: list[tuple[str, str]] = [("channel", self.channel()) for _ in range(self.pick(1, 1, 1, 2, 3))]
        headers: dict[str, str] = {}
        credential = self.credential()
        where = self.pick("header", "cookie", "query", "nowhere", "all")
        if where in ("header", "all"):
            headers["AUTHORIZATION"] = self.pick("Bearer ", "bearer ", "Basic ", "Bearer") + credential
        if where in ("cookie", "all"):
            headers["COOKIE"] = self.pick("sse_token=", "a=b; sse_token=", 'sse_token="') + credential
        if where in ("query", "all"):
            query.append(("token", credential))
        for name, values in (
            ("ORIGIN", ["null", "https://a.example", "https://evil.example", self.mutated("https://a.example")]),
            ("SEC_FETCH_SITE", ["same-origin", "cross-site", "none", ""]),
            ("LAST_EVENT_ID", [self.mutated("own/a=1-1"), "private=1-1"]),
            ("IDEMPOTENCY_KEY", [self.mutated("once")]),
            ("X_FORWARDED_FOR", [self.mutated("192.0.2.1")]),
            ("CONTENT_ENCODING", ["gzip", "identity"]),
        ):
            if not self.random.randrange(6):
                headers[name] = self.pick(*values)
        for name, value in (
            ("last_event_id", self.mutated("own/a=1-1~private=1-1")),
            ("replay", self.mutated("5")),
            ("ids", "delta"),
            ("types", "data"),
            ("heartbeat", self.mutated("3")),
        ):
            if not self.random.randrange(6):
                query.append((name, value))
        path, method = self.pick(
            ("/sse/poll", "GET"), ("/sse/poll", "GET"), ("/sse/stream", "GET"), ("/sse/stream", "HEAD"),
            ("/sse/publish", "POST"), (f"/sse/publish/{self.channel()}", "POST"), ("/sse/ticket", "POST"),
            (f"/sse/{self.mutated('poll')}", self.pick("GET", "PUT")), ("/sse/poll", "POST"),
        )  # fmt: skip
        if path == "/sse/poll":
            query.append(("timeout", "0"))
        body = b""
        if method == "POST":
            text = self.mutated(self.pick(*TEXTS), TEXTS)
            event = {"channel": self.channel(), "data": text, **self.pick({}, {"type": text})}
            plain = text.encode("utf-8", "replace")
            body = self.pick(
                json.dumps(event).encode(), json.dumps([event, event]).encode(), plain, self.random.randbytes(9)
            )
            headers["CONTENT_TYPE"] = self.pick(
                "application/json", "text/plain", "image/png", self.mutated("text/plain")
            )
        safe = self.pick("", "/=~*")
        return {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path.encode("utf-8", "replace").decode("latin-1"),
            "QUERY_STRING": "&".join(f"{name}={quote(value, safe, errors='replace')}" for name, value in query),
            "SERVER_NAME": "push.example",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "192.0.2.1",
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": headers.pop("CONTENT_TYPE", ""),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **{f"HTTP_{name}": value.encode("latin-1", "replace").decode("latin-1") for name, value in headers.items()},
        }  # fmt: skip

    def send(self, environ: dict[str, Any]) -> tuple[int, bytes]:
        """The status and the body; of a stream, what it begins with."""
        told: list[str] = []
        wsgi: Any = self.app.wsgi_app
        body = wsgi(environ, lambda status, headers, fault=None: told.append(status))
        with contextlib.closing(body):
            endless = (
                environ["PATH_INFO"] == "/sse/stream"
                and told[0].startswith("200")
                and environ["REQUEST_METHOD"] == "GET"
            )
            chunks: Iterator[bytes] = iter(body)
            return int(told[0][:3]), next(chunks, b"") if endless else b"".join(chunks)


@pytest.fixture
def fuzzed(make_app: MakeApp, tmp_path: Path) -> Flask:
    (tmp_path / "jwks").write_text(jwk_set("RS256"))
    (tmp_path / "keys").write_text(f"own {KEY} own/*\n")
    sse = SSE()
    app = make_app(
        sse, SSE_PUBLIC="", SSE_SECRET=SECRET, SSE_JWKS=str(tmp_path / "jwks"), SSE_ORIGINS="https://a.example",
        SSE_PUBLISH_KEYS_FILE=str(tmp_path / "keys"),
        SSE_LIMIT_SUBSCRIBE="", SSE_LIMIT_PUBLISH="", SSE_LIMIT_CHANNEL="",
    )  # fmt: skip
    with app.app_context():
        sse.publish("private", NEWS)
    return app


def test_nobody_gets_in_and_nothing_falls_over(fuzzed: Flask, request: pytest.FixtureRequest) -> None:
    seed = int(request.config.option.hypothesis_seed)
    fuzzer = Fuzzer(fuzzed, seed)
    store = fuzzed.extensions["sse"].store
    private = store.newest(["private"])
    statuses: dict[int, int] = {}
    for number in range(COUNT):
        environ = fuzzer.request()
        status, body = fuzzer.send(environ)
        where = f"input {number} of seed {seed}: {environ} gave {status} {body!r}"
        statuses[status] = statuses.get(status, 0) + 1
        assert status < 500, where
        assert NEWS.encode() not in body, where
        if status == 200 and environ["PATH_INFO"] == "/sse/poll" and body:
            answer = json.loads(body)
            assert {item["channel"].split("/")[0] for item in answer["events"] + answer["resets"]} <= {"own"}, where
            assert all(entry.startswith("own/") for entry in answer["last_event_id"].split("~")), where
        if status == 200 and environ["PATH_INFO"] == "/sse/stream":
            blocks = Parser().feed(body)
            assert "forged" not in {block.event for block in blocks}, where
            assert all(entry.startswith("own/") for block in blocks for entry in block.id.split("~")), where
    assert store.newest(["private"]) == private
    # The inputs are worth something only if each way is gone, in and out.
    assert statuses.keys() >= {200, 201, 400, 401, 403, 404, 405, 415, 422}, statuses
    assert min(statuses[status] for status in (200, 201, 401, 403)) > COUNT / 500, statuses


def test_what_is_published_is_one_frame_whatever_it_holds(fuzzed: Flask) -> None:
    fuzzer = Fuzzer(fuzzed, random.SystemRandom().randrange(2**32))
    client = fuzzed.test_client()
    reader = {"Authorization": f"Bearer {fuzzer.token}"}
    for number in range(200):
        channel = f"own/frames/{number}"
        text = fuzzer.mutated(fuzzer.pick(*TEXTS), TEXTS).encode("utf-8", "replace").decode()
        answer = client.post(f"/sse/publish/{channel}", data=text.encode(), content_type="text/plain",
                             headers={"Authorization": f"Bearer {KEY}"})  # fmt: skip
        assert answer.status_code == 201
        with client.get(f"/sse/stream?channel={channel}&replay=1", headers=reader) as stream:
            chunks: Iterator[Any] = iter(stream.response)
            parser = Parser()
            blocks = [block for block in parser.feed(next(chunks) + next(chunks)) if not block.event.startswith("sse.")]
        expected = text.replace("\r\n", "\n").replace("\r", "\n")
        assert [(block.event, block.data) for block in blocks] == [("message", expected)]
