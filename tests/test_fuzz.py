"""Whatever is sent, by whatever credential: nobody in, who belongs is let in, no 5xx, no forged frame.

Each input is a sound request, of whose six parts none to all are spoiled: so most get past the first check. The long
form: FUZZ=1000000 pytest -o faulthandler_timeout=3600 tests/test_fuzz.py
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import io
import json
import os
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote_to_bytes

import pytest
from flask import Flask

from sse import SSE
from tests.client import Parser
from tests.conftest import MakeApp
from tests.tokens import RSA, SECRET, by_key, claims, jwk_set, part, signed, unsigned

COUNT = int(os.environ.get("FUZZ", "20000"))
KEY = "a-publishing-key-for-these-tests"
NEWS = "the private news"
TICKET_KEY = hmac.digest(SECRET.encode(), b"throughline ticket", hashlib.sha256)
MODULUS = RSA.public_key().public_numbers().n.to_bytes(256)
EVIL = "https://evil.example"

PARTS = ("token", "ticket", "channel", "id", "headers", "body")
WAYS = {
    "stream": ("GET", "/sse/stream", 200),
    "poll": ("GET", "/sse/poll", 200),
    "publish": ("POST", "/sse/publish", 201),
    "raw": ("POST", "/sse/publish/", 201),
    "ticket": ("POST", "/sse/ticket", 201),
}
# All are to be met with, lest a generator gone blunt is taken for a service that holds.
CODES = """bad_batch bad_json bad_request forbidden idempotency_conflict invalid_channel invalid_data invalid_event
    invalid_idempotency_key invalid_type method_not_allowed not_found token_audience token_claims token_early
    token_expired token_in_query token_invalid token_lifetime token_revoked too_large unauthorized unsupported_media
    trimmed unknown diverged invalid missing""".split()

# fmt: off
FORGED = "event: forged\ndata: x\n\n"
PIECES = ["", "A" * 300, "9" * 30, *"~=&?#+/.*{[%'\"<;,\0\t\x7f\x85éÿ ", "ð\x90\x8d\x88", "%00", "%0a", "%0d%0aX: y",
          "~~",
          "//", "..", "../private", "private", "own/a", "own/*", "own/private", "sse.revoked", "null", "nan", "-1",
          "token",
          "0-0", "1-1", "58-2893764512345678", "own/a=0-0", "own/a=1-1~private=1-1", "Bearer ", "alg", "eyJ", "\\u000a"]
TEXTS = [*PIECES, FORGED, f"x\n\n{FORGED}", f"x\r\r{FORGED}", "\r\n", "\n", "\u2028", "😀", "id: 1\n\n", ": x\n",
         "\ufeff"]
NAMES = ["own/", "own/*", "*", "own//a", "own/./a", "own/../private", "own/a/../../private", "Own/a", "own%2fa",
         "own\\a",
         "sse.revoked", "{sse.revoked}", "sse.x/a", "own/a ", "own/a\n", "own/a\r\nX: y", "own/a\0", "", "ｏｗｎ/a",
         "own/é",
         "own/\u202ea", "other/a", "prıvate", "-own/a", f"own/{'a' * 124}", f"own/{'a' * 125}"]
# Overlong, cut off, surrogates, no UTF-8 at all; whole, doubled, and not percent-encoded.
BYTES = [b"own/%c0%afa", b"own%c0%ae%c0%ae/private", b"own/%ff", b"own/%e2%82", b"own/%ed%a0%80", b"own/\xff\xfe", b"%",
         b"own/%f4%90%80%80", b"own%252fa", b"own/%u0061", b"own/%", b"own/%zz", b"own+/a", b"own/a;channel=private",
         b"own%2Fa", b"%6f%77%6e/%61", b"own/\xc3\xa9", b"own/a%00", b"own/a%0d%0aX-Evil:%20y"]
JSONS = [*[b"1e400", b'"\\ud800"'] * 3, b"[" * 50_000, b"[" * 300 + b"]" * 300, b"9" * 5000, b"-1e-400", b"NaN",
         b"-Infinity",
         b"-0", b"1E+2", b'{"\\udfff":1}', b'"\xed\xa0\x80"', b'"\xff"', b'{"a":1,"a":2}', b'"\\u0000\\r\\n\\n"',
         b"'x'", b"",
         b'"\\ud83d\\ude00"', b'"a\tb"', b'1}{"channel":"private"', b'1,"channel":"private"', b'1,"extra":2', b"01",
         b"[1,]",
         b'"' + b"x" * 70_000 + b'"']
VALUES: list[Any] = [None, True, 0, -1, 1.5, 10**400, "", "*", "own/a", "private", [], {}, [[]], [None], ["own/a", 5],
                     {"own/a": 1}, ["private", "own/a"], ["own/a"] * 101, ["own/b"] * 100, "open", "error", "sse.x",
                     "a b",
                     "t\nid: 5", "\u2028", "é", "a" * 65, FORGED]
LENGTHS = ["", "0", "1", "-1", "x", "+5", "1e3", "9" * 30, " 5", "5, 5", "\xb2", "0x5"]
HEADERS = {
    "ORIGIN": ["null", "https://a.example", EVIL, "https://a.example.evil.example", "https://A.example", ""],
    "SEC_FETCH_SITE": ["same-origin", "cross-site", "none", ""],
    "HOST": ["a.example", "evil.example:1", "[::1", "a b", "", "\xff"],
    "X_FORWARDED_FOR": ["192.0.2.1", "1.1.1.1, ::1", "[2001:db8::1]:5, x", ",,,", "unknown"],
    "X_FORWARDED_HOST": ["evil.example"], "X_FORWARDED_PREFIX": ["//evil.example"],
    "X_HTTP_METHOD_OVERRIDE": ["DELETE"],
    "ACCEPT_ENCODING": ["gzip", "gzip;q=x", "*;q=0"], "IF_NONE_MATCH": ["*", '"', 'W/"x"'], "RANGE": ["bytes=0-0",
    "bytes=-"],
    "EXPECT": ["100-continue", "x"], "ACCESS_CONTROL_REQUEST_METHOD": ["POST", "x"],
    "ACCESS_CONTROL_REQUEST_HEADERS": ["authorization", "x-evil, y"],
    "COOKIE": ["sse_token", "=;=;", 'sse_token="', "a=b; a=c; sse_token=", "sse_token=\xff"],
    "CONTENT_ENCODING": ["gzip", "identity", "IDENTITY", "gzip, identity", ""],
    "IDEMPOTENCY_KEY": ["once", "a b", "", "x" * 129],
    "CONTENT_TYPE": [
        "text/plain; charset=utf-16", "text/plain; charset=", "image/png", "image", "image/png; charset=\xff", "",
        "application/json; charset=latin-1", "application/json;charset=UTF-8", "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded", "text/html,application/json", "a/b+json", "text/plain;" * 50],
}
OURS = re.compile(r"own(/(?!\.\.?(/|\Z))[A-Za-z0-9_.:@-]+)+")
OWN: dict[str, Any] = {"subscribe": ["own/*"], "publish": ["own/*"]}
# Claims, headers and payloads of tokens that are truly signed. Of these, none lets anybody into a channel here.
PATTERNS: list[Any] = ["*", "own/*", None, {"own/a": 1}, [["own/*"]], ["own/*", 5], ["own*"], ["*/a"], ["own/"], ["**"],
                       ["OWN/*"], ["own/*/"], ["own/*/a"], ["own"], ["elsewhere/*"], [], ["own/?"], ["own/.*"],
                       ["^own/a$"], ["own/%61"], ["\ud800"]]
HEADS: list[dict[str, Any]] = [{"typ": "ticket"}, {"crit": ["exp"]}, {"alg": "RS256"}, {"alg": None},
                               {"alg": ["HS256"]},
                               {"alg": "hs256"}, {"b64": False, "crit": ["b64"]}, {"kid": 5}]
PAYLOADS = [b"{", b"[]", b"5", b"null", b"", b"\xff", b"[" * 5000, b'{"exp":' + b"9" * 5000 + b"}", b"e30"]
# fmt: on


class Carried(NamedTuple):
    """How a credential comes, and whether it lets in."""

    headers: dict[str, str]
    query: str | None = None
    good: bool = False


class Input(NamedTuple):
    environ: dict[str, Any]
    way: str | None
    spoiled: set[str]
    carried: Carried
    sound: bool  # all but the credential
    body: bytes | None  # None where who knows how much of it is read

    @property
    def asked(self) -> list[str]:
        """The channels that are named in the query, by the standard library."""
        query = parse_qsl(self.environ["QUERY_STRING"], keep_blank_values=True)
        return list(dict.fromkeys(value for name, value in query if name == "channel"))

    @property
    def published(self) -> list[tuple[str, tuple[str, str] | None]] | None:
        """By channel, the type and data of what is in the body, None where that is not known."""
        if self.body is None:
            return None
        path, type, kind = self.environ["PATH_INFO"], "message", self.environ["CONTENT_TYPE"]
        if path != "/sse/publish":
            text = self.body.decode("utf-8", "replace")
            if kind == "image/png":
                text = f"data:image/png;base64,{base64.b64encode(self.body).decode()}"
            type = dict(reversed(parse_qsl(self.environ["QUERY_STRING"]))).get("type", type)  # the first counts
            known = kind in ("image/png", "text/plain", "text/plain; charset=utf-8")
            return [(path.removeprefix("/sse/publish/"), (type, as_lines(text)) if known else None)]
        events = json.loads(self.body)
        return [
            (channel, (event.get("type") or type, as_lines(event["data"])))
            for event in (events if isinstance(events, list) else [events])
            for channel in (event["channel"] if isinstance(event["channel"], list) else [event["channel"]])
        ]


def as_lines(data: Any) -> str:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return re.sub("\r\n?", "\n", text)


def bearer(text: str, scheme: str = "Bearer ", good: bool = False) -> Carried:
    return Carried({"AUTHORIZATION": scheme + text}, None, good)


def cookie(text: str, good: bool = False, **page: str) -> Carried:
    return Carried({"COOKIE": f"a=b; sse_token={text}", **page}, None, good)


def essence(text: str) -> tuple[str, bytes]:
    """Equal for spellings of one token: base64 has spare bits, and its readers pass over what is none."""
    head, _, signature = text.strip().rpartition(".")
    with contextlib.suppress(ValueError):
        return head, base64.urlsafe_b64decode(signature + "==")
    return text, b""


class Broken(io.RawIOBase):
    """A body that breaks off."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise OSError("the client has gone")


class Fuzzer:
    """One client, with tokens and a key for `own/*` and no right to the channel `private`; and what it published."""

    def __init__(self, app: Flask, seed: int) -> None:
        self.app = app
        self.random = random.Random(seed)
        self.private = str(app.extensions["sse"].store.newest(["private"])[0])
        self.began = int(time.time())
        self.stored: dict[str, list[str]] = defaultdict(list)  # positions by channel
        self.texts: dict[str, tuple[str, str] | None] = {}  # type and data by id
        self.met: Counter[object] = Counter()
        self.renew()

    def renew(self) -> None:
        """Make tokens anew: a long run outlives them. The odd ones are good too."""
        now = int(time.time())
        odd: list[dict[str, Any]] = [
            {"aud": ["x", "sse"]}, {"exp": now + 99.5}, {"iat": now + 2}, {"nbf": now + 2}, {"sub": None},
            {"jti": None}, {"sub": "\ud800"}, {"sub": "", "jti": "x" * 2000}, {"x": [[]], "alg": "none"}, {"ends": 5},
        ]  # fmt: skip
        heads: list[dict[str, Any]] = [
            {"typ": None}, {"typ": ["ticket"]}, {"kid": "RS256"}, {"kid": "x" * 99}, {"jku": EVIL}, {"zip": "DEF"},
        ]  # fmt: skip
        self.tokens = [signed(claims(**OWN)), by_key(claims(**OWN), "RS256")]
        self.odd = [signed(claims(**OWN | change)) for change in odd]
        self.odd += [signed(claims(**OWN), **head) for head in heads]

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def one_in(self, count: int) -> bool:
        return not self.random.randrange(count)

    def mutated(self, text: str, pieces: list[str] = PIECES) -> str:
        for _ in range(self.random.randrange(4)):
            at = self.random.randrange(len(text) + 1)
            cut = at + self.random.randrange(4)
            text = text[:at] + self.pick(self.pick(*pieces), chr(self.random.randrange(1, 256))) + text[cut:]
        return text

    # Credentials

    def ticket(self, channels: Any, key: bytes = TICKET_KEY, typ: str = "ticket", **changes: Any) -> str:
        now = int(time.time())
        good = {"subscribe": channels, "publish": ["own/*"], "exp": now + 60, "ends": now + 600}
        return signed(claims(**good | changes), key, typ=typ)

    def good(self, way: str | None, channels: list[str], tokens: list[str]) -> Carried:
        token = self.pick(*tokens)
        if way in ("publish", "raw"):
            return bearer(self.pick(token, KEY), good=True)
        if way == "ticket":
            return bearer(token, good=True)
        page = self.pick({}, {"ORIGIN": "https://a.example"}, {"SEC_FETCH_SITE": "same-origin"})
        carried: Carried = self.pick(
            bearer(token, self.pick("Bearer ", "bearer  "), good=True), cookie(token, good=True, **page),
            bearer(self.ticket(channels), good=True), Carried({}, self.ticket(channels), True),
        )  # fmt: skip
        return carried

    def forged(self, text: str) -> str:
        """Changed, and not another spelling of the same."""
        while True:
            changed = self.mutated(text)
            if text not in changed and essence(changed) != essence(text):
                return changed

    def edited(self, text: str) -> str:
        """With its claims and perhaps its header changed, by one who does not have the secret."""
        head, body, signature = text.split(".")
        header, payload = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in (head, body))
        payload[self.pick("sub", "aud", "exp", "iat", "subscribe", "publish", "ends")] = self.pick("x", ["*"], 10**12)
        if self.one_in(2):
            header[self.pick("alg", "typ", "kid", "crit", "b64", "jku", "jwk")] = self.pick(
                "none", "HS256", "RS256", "HS512", "ticket", "", None, 5, [], ["exp"], {}, False
            )
        return f"{part(header)}.{part(payload)}.{signature}"

    def wrong_claims(self) -> dict[str, Any]:
        """Claims that give nothing, though they be signed."""
        now = int(time.time())
        wrong: dict[str, list[Any]] = {
            "aud": ["other", None, [], {}, [["sse"]], "SSE", "sse ", True, 5, ["ss", "e"]],
            "exp": [
                now - 10,
                None,
                "x",
                [],
                {},
                now + 10**7,
                now + 10**9,
                10**400,
                1e308,
                -1,
                "9" * 5000,
                float("nan"),
            ],
            "iat": [now + 100, None, "x", [], -(10**12), 10**400, 1e308, float("inf"), "9" * 5000],
            "nbf": [now + 100, "x", [], 1e308, 10**400],
            "jti": ["revoked", 5],
            "sub": ["revoked", ["ann"]],
            "patterns": PATTERNS,
        }
        name = self.pick(*wrong)
        value = self.pick(*wrong[name])
        if name == "patterns":
            return claims(subscribe=value, publish=value)
        return claims(**OWN | ({"iat": self.began} if name == "sub" else {}) | {name: value})

    def bad_token(self) -> Carried:
        good, wanted = self.pick(*self.tokens), claims(subscribe=["*"], publish=["*"])
        make: Callable[[], str] = self.pick(
            lambda: self.forged(good), lambda: self.edited(good), lambda: self.forged(KEY),
            lambda: unsigned(wanted, self.pick("none", "None", "NONE", "", "HS256")),
            lambda: signed(wanted, self.pick("", SECRET[:-1], MODULUS, TICKET_KEY), kid=self.pick("RS256", "")),
            lambda: signed(wanted, **self.pick(*HEADS)), lambda: signed(self.pick(*PAYLOADS)),
            lambda: self.mutated("".join(self.pick(*PIECES) for _ in range(3))),
            *[lambda: signed(self.wrong_claims())] * 3,
        )  # fmt: skip
        text = make()
        misplaced = self.pick(  # a good one where it does not count
            Carried({}, good), bearer(good, "Basic "), bearer(good, "Bearer"), bearer(good, ""), cookie(KEY),
            cookie(good, ORIGIN=EVIL), cookie(good, ORIGIN="null", SEC_FETCH_SITE="same-origin"), Carried({}),
            cookie(good, SEC_FETCH_SITE="cross-site"), bearer(f"{good}, Bearer {good}"),
        )  # fmt: skip
        carried: Carried = self.pick(bearer(text), bearer(text), cookie(text), Carried({}, text), misplaced)
        return carried

    def bad_ticket(self, way: str | None, channels: list[str]) -> Carried:
        good, before = self.ticket(channels), int(time.time()) - 1
        changes: dict[str, Any] = self.pick(
            {"exp": before}, {"ends": before}, {"ends": "x"}, {"ends": True}, {"ends": 1e400}, {"exp": None},
            {"exp": "x"}, {"jti": "revoked"}, {"sub": "revoked", "iat": self.began}, {"aud": "other"}, {"iat": None},
        )  # fmt: skip
        text = self.pick(
            self.forged(good), self.edited(good), self.ticket(channels, **changes), self.ticket(self.pick(*PATTERNS)),
            self.ticket(channels, SECRET.encode()), self.ticket(channels, typ="JWT"), self.ticket([*channels[1:],
            "own/z"]),
            good if way in ("publish", "raw", "ticket") else self.ticket([]),
        )  # fmt: skip
        carried: Carried = self.pick(Carried({}, text), Carried({}, text), bearer(text), cookie(good))
        return carried

    # The rest of a request

    def last_event_id(self, asked: list[str], spoiled: bool) -> str:
        entries = []
        for channel in self.pick(asked, asked, ["own/a"], ["own/b", "own/c"]):
            known = self.stored.get(channel) or ["1-1"]
            position = self.pick(*known[-4:])
            if spoiled:
                position = self.pick(
                    *(position, known[0], self.private, self.mutated(position), f"{len(known)}-1", "", "0-0", "٣-1"),
                    *(f"{len(known) + 1}-{position[2:]}", f"{'9' * 5000}-1", "9007199254740992-1"),
                )
            entries.append(f"{channel}={position}")
        if not spoiled:
            return "~".join(entries)
        more = [[], [], [f"private={self.private}"], ["", "x"], [entries[0]], ["own/a=1-2"], ["own/a=1-1"] * 500]
        text = "~".join(self.random.sample(entries, len(entries)) + self.pick(*more))
        return self.mutated(text) if self.one_in(3) else text

    def event(self, channels: list[str]) -> dict[str, Any]:
        data = self.pick(self.mutated(self.pick(*TEXTS), TEXTS), {"x": [self.mutated("\n")]}, None, [FORGED], 5)
        type = self.pick({}, {"type": "t"}, {"type": None})
        return {"channel": self.pick(channels, channels[-1]), "data": data, **type}

    def json_body(self, channels: list[str], spoiled: bool) -> bytes:
        event = self.event(channels)
        if not spoiled:
            return json.dumps(self.pick(event, [event, self.event(channels)])).encode()
        text = bytearray(json.dumps(event).encode())
        for _ in range(3):
            text[self.random.randrange(len(text))] = self.random.randrange(256)
        changed = event | {self.pick("channel", "type", "data", "extra"): self.pick(*VALUES)}
        batch = [event] * self.pick(99, 101, 101)
        less = {name: event[name] for name in ("channel", "data") if self.one_in(2)}
        body: bytes = self.pick(
            bytes(text), *[b'{"channel":"own/a","data":%b}' % self.pick(*JSONS) for _ in range(3)],
            json.dumps(event).encode(self.pick("utf-16", "utf-8-sig", "utf-32")),
            *[json.dumps(value).encode() for value in (changed, [event, changed], batch, less)],
        )  # fmt: skip
        return body

    def channels(self, spoiled: bool) -> tuple[list[str], list[bytes]]:
        """Names, and how they stand in an address."""
        third = f"own/{self.random.randrange(COUNT)}" if self.one_in(4) else "own/c"
        names: list[str] = self.pick(
            ["own/a"], ["own/a"], ["own/b"], ["own/a", "own/b"], ["own/b", third], ["own/a", third]
        )
        if spoiled:
            names = [self.pick(*NAMES, *["private", self.mutated("own/a"), self.mutated("private")] * 5)]
            names += self.pick([], ["own/a"], ["private"])
        raw = [quote(name.encode("utf-8", "surrogatepass"), self.pick("", "/=~*")).encode() for name in names]
        if spoiled and self.one_in(3):
            many = [b"own/%d" % number for number in range(50)]
            raw = self.pick(raw[:-1], [*raw, *many], [b"own/" + b"a" * 120] * 40, *[[name, b"own/a"] for name in BYTES])
        return names, raw

    def request(self) -> Input:
        way = self.pick(*WAYS) if self.random.randrange(50) else None
        method, path, _ = WAYS[way] if way else self.pick(*WAYS.values())
        spoiled = {part for part in PARTS if self.one_in(5)}
        names, raw = self.channels("channel" in spoiled)
        granted = ["own/*"] if "channel" in spoiled else names
        if "token" in spoiled:
            carried = self.good(way, granted, self.odd) if self.one_in(4) else self.bad_token()
        else:
            carried = self.bad_ticket(way, granted) if "ticket" in spoiled else self.good(way, granted, self.tokens)
        if spoiled & {"token", "ticket"} == {"ticket"} and self.one_in(4):
            odd = self.pick({"sub": None}, {"jti": None}, {"ends": None}, {"aud": ["sse"]}, {"publish": ["*"]})
            carried = Carried({}, self.ticket([*granted, "elsewhere/*"], **odd), path in ("/sse/stream", "/sse/poll"))
        headers, query = {**carried.headers}, [b"channel=" + name for name in raw]
        if carried.query is not None:
            query.append(b"token=" + quote(carried.query.encode("utf-8", "replace"), safe="").encode())
        sound = not spoiled & {"channel", "headers"} and way is not None

        reads = path in ("/sse/stream", "/sse/poll")
        if reads and ("id" in spoiled or self.one_in(2)):
            text = self.last_event_id(names, "id" in spoiled).encode("utf-8", "replace")
            if self.one_in(2):
                headers["LAST_EVENT_ID"] = text.decode("latin-1")
            else:
                query.append(self.pick(b"last_event_id=", b"lastEventId=") + quote(text, safe="=~").encode())
        elif reads:
            query += self.pick([], [], [b"replay=%d" % self.random.randrange(7)])
        if "id" in spoiled and self.one_in(3):
            name = self.pick(*"last_event_id lastEventId replay heartbeat timeout ids types token type".split())
            query.append(f"{name}={quote(self.mutated(self.pick('1', 'delta', 'data', '9' * 30)))}".encode())
            sound = False
        if path == "/sse/poll":
            query.append(b"timeout=0")
        elif reads:
            query += self.pick([], [b"ids=delta"], [b"types=data"])

        body: bytes | None = b""
        content: Any = b""
        if path == "/sse/publish":
            headers["CONTENT_TYPE"] = "application/json"
            content = self.json_body(names, "body" in spoiled)
        elif way == "raw" or "body" in spoiled:
            headers["CONTENT_TYPE"] = self.pick("text/plain", "text/plain; charset=utf-8", "image/png")
            content = self.mutated(self.pick(*TEXTS), TEXTS).encode("utf-8", "replace")
            if "body" in spoiled:
                content = self.pick(content, self.random.randbytes(9), content + b"\xff", b"x" * 70_000)
        framing: dict[str, Any] = {"CONTENT_LENGTH": str(len(content)), "wsgi.input": io.BytesIO(content)}
        body = content
        if "body" in spoiled:
            sound = sound and reads
            if self.one_in(3):
                body = None
                chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
                length = self.pick(*LENGTHS, str(len(content) + 5), str(len(content) // 2))
                broken = {"wsgi.input": io.BufferedReader(Broken())}
                large = {"wsgi.input": io.BytesIO(bytes(1 << 20 | 1))} if self.one_in(20) else {}
                framing |= self.pick(
                    *[{"CONTENT_LENGTH": length}] * 4, chunked, chunked | broken, broken, chunked | large
                )
                if "wsgi.input_terminated" in framing:
                    del framing["CONTENT_LENGTH"]

        if "headers" in spoiled:
            fixed = {"COOKIE", "ORIGIN", "SEC_FETCH_SITE"} if "COOKIE" in headers else set()
            for name in self.random.sample(sorted(HEADERS.keys() - fixed), self.pick(1, 2, 3)):
                headers[name] = self.mutated(self.pick(*HEADERS[name])) if self.one_in(2) else self.pick(*HEADERS[name])
            method = self.pick(*[method] * 8, "HEAD", "OPTIONS", "PUT", "get", "G\xc9T")
        elif way in ("publish", "raw") and self.one_in(9):
            headers["IDEMPOTENCY_KEY"] = f"once-{self.random.randrange(5)}"
            sound = False  # it may have been used
        where = (path if way else f"/sse/{self.mutated(path[5:])}").encode("utf-8", "replace")
        if way == "raw":
            where += unquote_to_bytes(b"/".join(raw[:1]))
        fields = {  # as a server gives them: Latin-1, and no line ends
            f"HTTP_{name}".replace("HTTP_CONTENT_T", "CONTENT_T"): re.sub("[\r\n\0]|[^\0-\xff]", " ", value)
            for name, value in headers.items()
        }
        environ = {
            "REQUEST_METHOD": method, "SCRIPT_NAME": "", "QUERY_STRING": b"&".join(query).decode("latin-1"),
            "PATH_INFO": where.decode("latin-1"), "SERVER_NAME": "push.example", "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "192.0.2.1", "CONTENT_TYPE": "",
            "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.errors": io.StringIO(), "wsgi.multithread": True,
            "wsgi.multiprocess": False, "wsgi.run_once": False, **fields, **framing,
        }  # fmt: skip
        return Input(environ, way, spoiled, carried, sound, body)

    # What is answered

    def send(self, environ: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; of a stream, what comes without waiting."""
        told: list[Any] = []
        wsgi: Any = self.app.wsgi_app
        body = wsgi(environ, lambda *answer: told.append(answer[:2]))
        with contextlib.closing(body):
            ((status, headers),) = told
            for name, value in headers:
                assert re.fullmatch("[A-Za-z0-9-]+", name)
                assert re.fullmatch("[\x20-\x7e]*", value), "what no header should have"
            headers = {name.lower(): value for name, value in headers}
            chunks: Iterator[bytes] = iter(body)
            if headers.get("content-type") != "text/event-stream" or environ["REQUEST_METHOD"].upper() != "GET":
                return int(status[:3]), headers, b"".join(chunks)
            text = next(chunks)
            (opened,) = [block.json()["channels"] for block in Parser().feed(text) if block.event == "sse.open"]
            if any(self.is_behind(name, channel["position"]) for name, channel in opened.items()):
                text += next(chunks)
            return int(status[:3]), headers, text

    def is_behind(self, channel: str, position: str | None) -> bool:
        stored = self.stored.get(channel)
        return position is None or bool(stored and position != stored[-1])

    def judge(self, given: Input, status: int, headers: dict[str, str], body: bytes) -> None:
        environ, carried = given.environ, given.carried
        brought = f"{environ['QUERY_STRING']} {environ.get('HTTP_LAST_EVENT_ID')}"
        assert status in (200, 201, 304) or 400 <= status < 500
        if (status, headers.get("content-type")) == (400, "text/html; charset=utf-8"):
            assert "HTTP_HOST" in environ  # which Flask looks at before all else
            return
        assert headers["x-content-type-options"] == "nosniff"
        assert headers.get("access-control-allow-origin") in (None, "https://a.example")
        assert "access-control-allow-origin" not in headers or environ["HTTP_ORIGIN"] == "https://a.example"
        assert NEWS.encode() not in body
        assert self.private.encode() not in body or self.private in brought
        if status >= 400 and environ["REQUEST_METHOD"] != "HEAD":
            error = json.loads(body)["error"]
            assert error.keys() - {"channels"} == {"code", "message", "hint"}
            assert error["message"] and (error["hint"] or given.body is None), "an error names the fault and the remedy"
            self.met[error["code"]] += 1
        if (status, given.way) != (201, "ticket"):
            pieces = re.split("[. ]", " ".join([SECRET, KEY, carried.query or "", *carried.headers.values()]))
            told = f"{body!r} {headers}"
            assert not [piece for piece in pieces if len({*piece}) > 14 and piece in told], "a credential is told"
        if status in (200, 201) and environ["REQUEST_METHOD"].upper() in ("GET", "POST", "HEAD"):
            assert carried.good, "one got in who should not"
            if body:
                self.judge_told(given, body)
        if given.sound:
            assert (status == WAYS[given.way or ""][2]) if carried.good else (status in (401, 403)), "the wrong one"
        for item in given.spoiled or {"nothing"}:
            self.met[item, status < 400] += 1
        self.met[given.way, status] += 1

    def judge_told(self, given: Input, body: bytes) -> None:
        path, asked = given.environ["PATH_INFO"], given.asked
        if path.startswith("/sse/publish"):
            return self.judge_published(given, json.loads(body)["ids"])
        assert asked and all(map(OURS.fullmatch, asked))
        told: list[tuple[str, str, str]] = []
        resets: list[Any] = []
        if path == "/sse/ticket":
            payload = json.loads(body)["ticket"].split(".")[1]
            assert json.loads(base64.urlsafe_b64decode(payload + "=="))["subscribe"] == asked
        elif path == "/sse/poll":
            answer = json.loads(body)
            places = dict(entry.split("=") for entry in answer["last_event_id"].split("~"))
            assert list(places) == asked
            assert not [channel for channel, position in places.items() if self.is_behind(channel, position)]
            told = [(event["id"], event["type"], event["data"]) for event in answer["events"]]
            resets = answer["resets"]
        else:
            for block in Parser().feed(body):
                assert {entry.partition("=")[0] for entry in block.id.split("~")} <= {*asked}
                if block.event == "sse.open":
                    assert list(block.json()["channels"]) == asked
                elif block.event == "sse.reset":
                    resets.append(block.json())
                elif block.event != "sse.heartbeat":
                    type, data = block.event, block.data or ""
                    if type == "sse.event":
                        type, _, data = data.partition("\n")
                    told.append((block.id.partition("~")[0], type, data))
        assert {reset["channel"] for reset in resets} <= {*asked}
        self.met.update(reset["reason"] for reset in resets)
        self.met["event"] += len(told)
        before: dict[str, int] = {}
        for id, type, data in told:
            channel, _, position = id.partition("=")
            offset = int(position.partition("-")[0])
            assert self.texts[id] in (None, (type, data)), "a forged frame"
            assert channel in asked and before.get(channel, offset - 1) == offset - 1
            before[channel] = offset
        return None

    def judge_published(self, given: Input, ids: list[str]) -> None:
        texts = given.published or [(id.partition("=")[0], None) for id in ids]
        for id, (channel, text) in zip(ids, texts, strict=True):
            name, _, position = id.partition("=")
            assert name == channel and OURS.fullmatch(name)
            if id in self.texts:
                assert "HTTP_IDEMPOTENCY_KEY" in given.environ and text in (None, self.texts[id])
            else:
                self.texts[id] = text
                self.stored[channel].append(position)
                assert position.partition("-")[0] == str(len(self.stored[channel])), "stored once"


@pytest.fixture
def fuzzed(make_app: MakeApp, tmp_path: Path) -> Flask:
    (tmp_path / "jwks").write_text(jwk_set("RS256"))
    (tmp_path / "keys").write_text(f"own {KEY} own/*\n")
    sse = SSE()
    app = make_app(
        sse, SSE_PUBLIC="", SSE_SECRET=SECRET, SSE_JWKS=str(tmp_path / "jwks"), SSE_ORIGINS="https://a.example",
        SSE_PUBLISH_KEYS_FILE=str(tmp_path / "keys"), SSE_PROXIES=1, SSE_RING=5,
        SSE_LIMIT_SUBSCRIBE="999999999/minute", SSE_LIMIT_PUBLISH="", SSE_LIMIT_CHANNEL="",
    )  # fmt: skip
    with app.app_context():
        sse.publish("private", NEWS)
        sse.revoke(token="revoked")
        sse.revoke(sub="revoked")
    return app


def test_nobody_gets_in_and_nothing_falls_over(fuzzed: Flask, request: pytest.FixtureRequest) -> None:
    seed = int(request.config.option.hypothesis_seed)
    fuzzer = Fuzzer(fuzzed, seed)
    for number in range(COUNT):
        if number % 500 == 0:
            fuzzer.renew()
        given = fuzzer.request()
        answer: Any = None
        try:
            answer = fuzzer.send(given.environ)
            fuzzer.judge(given, *answer)
        except Exception as fault:
            fault.add_note(f"input {number} of seed {seed}: {given} gave {answer}")
            raise
    store, met = fuzzed.extensions["sse"].store, fuzzer.met
    rings = {channel: str(ring.newest) for channel, ring in store._rings.items() if ring.newest.offset}
    stored = {channel: positions[-1] for channel, positions in fuzzer.stored.items() if positions}
    assert rings == stored | {"private": fuzzer.private}, "each publication is stored, and nothing else"
    # The inputs are worth something only if each way is gone, in and out, and each reason given.
    assert met.keys() >= {*CODES}, {*CODES} - met.keys()
    assert met["nothing", False] < met["nothing", True], met
    assert min(met[part, through] for part in PARTS for through in (True, False)) > COUNT / 200, met
    assert min(met[way, status] for way, (_, _, status) in WAYS.items()) > COUNT / 50, met
    assert met["event"] > COUNT / 10, met


def test_what_is_published_is_one_frame_whatever_it_holds(fuzzed: Flask) -> None:
    fuzzer = Fuzzer(fuzzed, random.SystemRandom().randrange(2**32))
    client = fuzzed.test_client()
    reader = {"Authorization": f"Bearer {fuzzer.tokens[0]}"}
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
