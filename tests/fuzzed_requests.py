"""Faulty requests, made from a seed. test_fuzz_requests.py judges the answers.

Each begins as a valid request of six parts, of which none to all are spoiled. So most get past the first check.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from tests.tokens import KEY, RSA, SECRET, TICKET_SECRET, by_key, claims, part, signed, unsigned

COUNT = int(os.environ.get("FUZZ", "20000"))  # of inputs
MODULUS = RSA.public_key().public_numbers().n.to_bytes(256)
EVIL = "https://evil.example"
ENDED = ("own/done", "own/failed")  # channels of runs that have ended for these reasons
OWN: dict[str, Any] = {"subscribe": ["own/*"], "publish": ["own/*"]}

PARTS = ("token", "ticket", "channel", "id", "headers", "body")
WAYS = {  # method, path, and the status of success
    "stream": ("GET", "/sse/stream", 200),
    "poll": ("GET", "/sse/poll", 200),
    "publish": ("POST", "/sse/publish", 201),
    "raw": ("POST", "/sse/publish/", 201),
    "ticket": ("POST", "/sse/ticket", 201),
}

# Values that spoil the parts.

# fmt: off
PIECES = [
    "", "A" * 300, "9" * 30, *"~=&?#+/.*{[%'\"<;,\0\t\x7f\x85éÿ ", "ð\x90\x8d\x88", "%00", "%0a", "%0d%0aX: y", "~~",
    "//", "..", "../private", "private", "own/a", "own/*", "own/private", "sse.revoked", "null", "nan", "-1", "token",
    "0-0", "1-1", "58-2893764512345678", "own/a=0-0", "own/a=1-1~private=1-1", "Bearer ", "alg", "eyJ", "\\u000a",
]
FORGED = "event: forged\ndata: x\n\n"
TEXTS = [
    *PIECES, FORGED, f"x\n\n{FORGED}", f"x\r\r{FORGED}",
    "\r\n", "\n", "\u2028", "😀", "id: 1\n\n", ": x\n", "\ufeff",
]
NAMES = [
    "own/", "own/*", "*", "own//a", "own/./a", "own/../private", "own/a/../../private", "Own/a", "own%2fa", "own\\a",
    "sse.revoked", "{sse.revoked}", "sse.x/a", "own/a ", "own/a\n", "own/a\r\nX: y", "own/a\0", "", "ｏｗｎ/a", "own/é",
    "own/\u202ea", "other/a", "prıvate", "-own/a", f"own/{'a' * 124}", f"own/{'a' * 125}",
]
BYTES = [  # names in an address: overlong, cut off, surrogates, no UTF-8; whole, doubled, not percent-encoded
    b"own/%c0%afa", b"own%c0%ae%c0%ae/private", b"own/%ff", b"own/%e2%82", b"own/%ed%a0%80", b"own/\xff\xfe", b"%",
    b"own/%f4%90%80%80", b"own%252fa", b"own/%u0061", b"own/%", b"own/%zz", b"own+/a", b"own/a;channel=private",
    b"own%2Fa", b"%6f%77%6e/%61", b"own/\xc3\xa9", b"own/a%00", b"own/a%0d%0aX-Evil:%20y",
]
JSONS = [
    *[b"1e400", b'"\\ud800"'] * 3,
    b"[" * 50_000, b"[" * 300 + b"]" * 300, b"9" * 5000, b"-1e-400", b"NaN", b"-Infinity", b"-0", b"1E+2",
    b'{"\\udfff":1}', b'"\xed\xa0\x80"', b'"\xff"', b'{"a":1,"a":2}', b'"\\u0000\\r\\n\\n"', b"'x'", b"",
    b'"\\ud83d\\ude00"', b'"a\tb"', b'1}{"channel":"private"', b'1,"channel":"private"', b'1,"extra":2', b"01",
    b"[1,]", b'"' + b"x" * 70_000 + b'"',
]
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**400, "", "*", "own/a", "private", [], {}, [[]], [None], ["own/a", 5], {"own/a": 1},
    ["private", "own/a"], ["own/a"] * 101, ["own/b"] * 100,
    "open", "error", "sse.x", "a b", "t\nid: 5", "\u2028", "é", "a" * 65, FORGED,
]
LENGTHS = ["", "0", "1", "-1", "x", "+5", "1e3", "9" * 30, " 5", "5, 5", "\xb2", "0x5"]
HEADERS = {
    "ORIGIN": ["null", "https://a.example", EVIL, "https://a.example.evil.example", "https://A.example", ""],
    "SEC_FETCH_SITE": ["same-origin", "cross-site", "none", ""],
    "HOST": ["a.example", "evil.example:1", "[::1", "a b", "", "\xff"],
    "X_FORWARDED_FOR": ["192.0.2.1", "1.1.1.1, ::1", "[2001:db8::1]:5, x", ",,,", "unknown"],
    "X_FORWARDED_HOST": ["evil.example"],
    "X_FORWARDED_PREFIX": ["//evil.example"],
    "X_HTTP_METHOD_OVERRIDE": ["DELETE"],
    "ACCEPT_ENCODING": ["gzip", "gzip;q=x", "*;q=0"],
    "IF_NONE_MATCH": ["*", '"', 'W/"x"'],
    "RANGE": ["bytes=0-0", "bytes=-"],
    "EXPECT": ["100-continue", "x"],
    "ACCESS_CONTROL_REQUEST_METHOD": ["POST", "x"],
    "ACCESS_CONTROL_REQUEST_HEADERS": ["authorization", "x-evil, y"],
    "COOKIE": ["sse_token", "=;=;", 'sse_token="', "a=b; a=c; sse_token=", "sse_token=\xff"],
    "CONTENT_ENCODING": ["gzip", "identity", "IDENTITY", "gzip, identity", ""],
    "IDEMPOTENCY_KEY": ["once", "a b", "", "x" * 129],
    "CONTENT_TYPE": [
        "text/plain; charset=utf-16", "text/plain; charset=", "image/png", "image", "image/png; charset=\xff", "",
        "application/json; charset=latin-1", "application/json;charset=UTF-8", "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded", "text/html,application/json", "a/b+json", "text/plain;" * 50,
    ],
}

# Claims, headers and payloads of tokens that are truly signed. Of these, none lets anybody into a channel here.
PATTERNS: list[Any] = [
    "*", "own/*", None, {"own/a": 1}, [["own/*"]], ["own/*", 5], ["own*"], ["*/a"], ["own/"], ["**"], ["OWN/*"],
    ["own/*/"], ["own/*/a"], ["own"], ["elsewhere/*"], [], ["own/?"], ["own/.*"], ["^own/a$"], ["own/%61"], ["\ud800"],
]
HEADS: list[dict[str, Any]] = [
    {"typ": "ticket"}, {"crit": ["exp"]}, {"alg": "RS256"}, {"alg": None}, {"alg": ["HS256"]}, {"alg": "hs256"},
    {"b64": False, "crit": ["b64"]}, {"kid": 5},
]
PAYLOADS = [b"{", b"[]", b"5", b"null", b"", b"\xff", b"[" * 5000, b'{"exp":' + b"9" * 5000 + b"}", b"e30"]

# And these do not keep anybody out.
GOOD_HEADS: list[dict[str, Any]] = [
    {"typ": None}, {"typ": ["ticket"]}, {"kid": "RS256"}, {"kid": "x" * 99}, {"jku": EVIL}, {"zip": "DEF"},
]
# fmt: on


class Credential(NamedTuple):
    """The place of a credential in the request, and whether it gives access."""

    headers: dict[str, str]
    query: str | None = None
    good: bool = False


class Input(NamedTuple):
    environ: dict[str, Any]
    way: str | None  # None: to no route, most likely
    spoiled: set[str]
    credential: Credential
    sound: bool  # all but the credential
    body: bytes | None  # None where who knows how much of it is read


def bearer(text: str, scheme: str = "Bearer ", good: bool = False) -> Credential:
    return Credential({"AUTHORIZATION": scheme + text}, None, good)


def cookie(text: str, good: bool = False, **page: str) -> Credential:
    return Credential({"COOKIE": f"a=b; sse_token={text}", **page}, None, good)


def in_query(text: str, good: bool = False) -> Credential:
    return Credential({}, text, good)


def essence(text: str) -> tuple[str, bytes]:
    """Return a form that all spellings of one token share. Base64 has spare bits, and readers skip other bytes."""
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
    """One client, with tokens and a key for `own/*` and no right to `private`, whose newest position it knows.

    Whoever sends its requests adds to `stored` what is published, so that others can go on from there.
    """

    def __init__(self, seed: int, private: str) -> None:
        self.random = random.Random(seed)
        self.private = private
        self.began = int(time.time())
        self.stored: dict[str, list[str]] = defaultdict(list)  # positions by channel
        self.renew()

    def renew(self) -> None:
        """Make new tokens, since a long run outlives them. The unusual ones are valid too."""
        now = int(time.time())
        odd: list[dict[str, Any]] = [
            {"aud": ["x", "sse"]}, {"exp": now + 99.5}, {"iat": now + 2}, {"nbf": now + 2}, {"sub": None},
            {"jti": None}, {"sub": "\ud800"}, {"sub": "", "jti": "x" * 2000}, {"x": [[]], "alg": "none"}, {"ends": 5},
        ]  # fmt: skip
        self.tokens = [signed(claims(**OWN)), by_key(claims(**OWN), "RS256")]
        self.odd = [signed(claims(**OWN | change)) for change in odd]
        self.odd += [signed(claims(**OWN), **head) for head in GOOD_HEADS]

    def request(self) -> Input:
        way = None if self.one_in(50) else self.pick(*WAYS)
        like = way or self.pick(*WAYS)
        method, path, _ = WAYS[like]
        reads = like in ("stream", "poll")
        spoiled = {part for part in PARTS if self.one_in(5)}
        names, raw = self.channels("channel" in spoiled)
        credential = self.credential(way, reads, ["own/*"] if "channel" in spoiled else names, spoiled)
        sound = way is not None and not spoiled & {"channel", "headers"} and (reads or "body" not in spoiled)

        headers, query = {**credential.headers}, [b"channel=" + name for name in raw]
        if credential.query is not None:
            query.append(b"token=" + quote(credential.query.encode("utf-8", "replace"), safe="").encode())
        if reads:
            header, parameters = self.place(names, "id" in spoiled)
            headers |= header
            query += parameters
        if "id" in spoiled and self.one_in(3):
            name = self.pick(
                *"last_event_id lastEventId replay heartbeat timeout max_bytes ids types form end token type".split()
            )
            query.append(
                f"{name}={quote(self.mutated(self.pick('1', 'delta', 'data', 'bare', 'cut', '9' * 30)))}".encode()
            )
            sound = False
        if like == "poll":
            query += [b"timeout=0", *self.pick([], [b"max_bytes=1024"])]
        elif like == "stream":
            query += self.pick([], [b"ids=delta"], [b"types=data"], [b"form=bare"]) + self.pick([], [b"end=cut"])

        headers["CONTENT_TYPE"], content = self.content(way, like, names, "body" in spoiled)
        body: bytes | None = content
        framing: dict[str, Any] = {"CONTENT_LENGTH": str(len(content)), "wsgi.input": io.BytesIO(content)}
        if "body" in spoiled and self.one_in(3):
            body, framing = None, self.misframed(content, framing)
        if reads and (body is None or len(body) > 16_384):
            sound = False  # an unexpected body is read and dropped, if it can be and is not too large

        if "headers" in spoiled:
            headers |= self.bad_headers(fixed={"COOKIE", "ORIGIN", "SEC_FETCH_SITE"} if "COOKIE" in headers else set())
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
        return Input(environ, way, spoiled, credential, sound, body)

    # Chance

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

    def text(self) -> str:
        return self.mutated(self.pick(*TEXTS), TEXTS)

    # Credentials

    def credential(self, way: str | None, reads: bool, channels: list[str], spoiled: set[str]) -> Credential:
        if "token" in spoiled:
            return self.good(way, channels, self.odd) if self.one_in(4) else self.bad_token()
        if "ticket" not in spoiled:
            return self.good(way, channels, self.tokens)
        bad = self.bad_ticket(way, channels)
        return in_query(self.odd_ticket(channels), good=reads) if self.one_in(4) else bad

    def good(self, way: str | None, channels: list[str], tokens: list[str]) -> Credential:
        token = self.pick(*tokens)
        if way in ("publish", "raw"):
            return bearer(self.pick(token, KEY), good=True)
        if way == "ticket":
            return bearer(token, good=True)
        page = self.pick({}, {"ORIGIN": "https://a.example"}, {"SEC_FETCH_SITE": "same-origin"})
        credential: Credential = self.pick(
            bearer(token, self.pick("Bearer ", "bearer  "), good=True), cookie(token, good=True, **page),
            bearer(self.ticket(channels), good=True), in_query(self.ticket(channels), good=True),
        )  # fmt: skip
        return credential

    def bad_token(self) -> Credential:
        good, wanted = self.pick(*self.tokens), claims(subscribe=["*"], publish=["*"])
        make: Callable[[], str] = self.pick(
            lambda: self.forged(good), lambda: self.edited(good), lambda: self.forged(KEY),
            lambda: unsigned(wanted, self.pick("none", "None", "NONE", "", "HS256")),
            lambda: signed(wanted, self.pick("", SECRET[:-1], MODULUS, TICKET_SECRET), kid=self.pick("RS256", "")),
            lambda: signed(wanted, **self.pick(*HEADS)), lambda: signed(self.pick(*PAYLOADS)),
            lambda: self.mutated("".join(self.pick(*PIECES) for _ in range(3))),
            *[lambda: signed(self.wrong_claims())] * 3,
        )  # fmt: skip
        text = make()
        misplaced = self.pick(  # a good one where it does not count
            in_query(good), bearer(good, "Basic "), bearer(good, "Bearer"), bearer(good, ""), cookie(KEY),
            cookie(good, ORIGIN=EVIL), cookie(good, ORIGIN="null", SEC_FETCH_SITE="same-origin"), Credential({}),
            cookie(good, SEC_FETCH_SITE="cross-site"), bearer(f"{good}, Bearer {good}"),
        )  # fmt: skip
        credential: Credential = self.pick(bearer(text), bearer(text), cookie(text), in_query(text), misplaced)
        return credential

    def wrong_claims(self) -> dict[str, Any]:
        """Return claims that give no access, even when signed."""
        now = int(time.time())
        wrong: dict[str, list[Any]] = {
            "aud": ["other", None, [], {}, [["sse"]], "SSE", "sse ", True, 5, ["ss", "e"]],
            "exp": [now - 10, None, "x", [], {}, now + 10**7, now + 10**9, 10**400, 1e308, -1, "9" * 5000, math.nan],
            "iat": [now + 100, None, "x", [], -(10**12), 10**400, 1e308, math.inf, "9" * 5000],
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

    def forged(self, text: str) -> str:
        """Return the token with a change that is not another spelling of the same token."""
        while True:
            changed = self.mutated(text)
            if text not in changed and essence(changed) != essence(text):
                return changed

    def edited(self, text: str) -> str:
        """Return the token with changed claims, and perhaps header, as by an attacker without the secret."""
        head, body, signature = text.split(".")
        header, payload = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in (head, body))
        payload[self.pick("sub", "aud", "exp", "iat", "subscribe", "publish", "ends")] = self.pick("x", ["*"], 10**12)
        if self.one_in(2):
            header[self.pick("alg", "typ", "kid", "crit", "b64", "jku", "jwk")] = self.pick(
                "none", "HS256", "RS256", "HS512", "ticket", "", None, 5, [], ["exp"], {}, False
            )
        return f"{part(header)}.{part(payload)}.{signature}"

    def ticket(self, channels: Any, key: bytes = TICKET_SECRET, typ: str = "ticket", **changes: Any) -> str:
        now = int(time.time())
        good = {"subscribe": channels, "publish": ["own/*"], "exp": now + 60, "ends": now + 600}
        return signed(claims(**good | changes), key, typ=typ)

    def odd_ticket(self, channels: list[str]) -> str:
        """Return an unusual but valid ticket."""
        odd = self.pick({"sub": None}, {"jti": None}, {"ends": None}, {"aud": ["sse"]}, {"publish": ["*"]})
        return self.ticket([*channels, "elsewhere/*"], **odd)

    def bad_ticket(self, way: str | None, channels: list[str]) -> Credential:
        good, before = self.ticket(channels), int(time.time()) - 1
        changes: dict[str, Any] = self.pick(
            {"exp": before}, {"ends": before}, {"ends": "x"}, {"ends": True}, {"ends": 1e400}, {"exp": None},
            {"exp": "x"}, {"jti": "revoked"}, {"sub": "revoked", "iat": self.began}, {"aud": "other"}, {"iat": None},
        )  # fmt: skip
        text = self.pick(
            self.forged(good), self.edited(good), self.ticket(channels, **changes), self.ticket(self.pick(*PATTERNS)),
            self.ticket(channels, SECRET.encode()), self.ticket(channels, typ="JWT"),
            self.ticket([*channels[1:], "own/z"]),
            self.ticket([]) if way in ("stream", "poll", None) else good,
        )  # fmt: skip
        credential: Credential = self.pick(in_query(text), in_query(text), bearer(text), cookie(good))
        return credential

    # The other parts

    def channels(self, spoiled: bool) -> tuple[list[str], list[bytes]]:
        """Return channel names, and their form in an address."""
        third = f"own/{self.random.randrange(COUNT)}" if self.one_in(4) else "own/c"
        names: list[str] = self.pick(
            ["own/a"], ["own/a"], ["own/b"], ["own/a", "own/b"], ["own/b", third], ["own/a", third],
            [self.pick(*ENDED)], self.pick(["own/a", self.pick(*ENDED)], [*ENDED]),
        )  # fmt: skip
        if spoiled:
            names = [self.pick(*NAMES, *["private", self.mutated("own/a"), self.mutated("private")] * 5)]
            names += self.pick([], ["own/a"], ["private"])
        raw = [quote(name.encode("utf-8", "surrogatepass"), self.pick("", "/=~*")).encode() for name in names]
        if spoiled and self.one_in(3):
            many = [b"own/%d" % number for number in range(50)]
            raw = self.pick(raw[:-1], [*raw, *many], [b"own/" + b"a" * 120] * 40, *[[name, b"own/a"] for name in BYTES])
        return names, raw

    def place(self, channels: list[str], spoiled: bool) -> tuple[dict[str, str], list[bytes]]:
        """Return the position that a reader goes on from, as a header or in the query."""
        if not spoiled and not self.one_in(2):
            return {}, self.pick([], [], [b"replay=%d" % self.random.randrange(7)])
        text = self.last_event_id(channels, spoiled).encode("utf-8", "replace")
        if self.one_in(2):
            return {"LAST_EVENT_ID": text.decode("latin-1")}, []
        return {}, [self.pick(b"last_event_id=", b"lastEventId=") + quote(text, safe="=~").encode()]

    def last_event_id(self, channels: list[str], spoiled: bool) -> str:
        entries = []
        for channel in self.pick(channels, channels, ["own/a"], ["own/b", "own/c"]):
            known = self.stored.get(channel) or ["1-1"]
            position = self.pick(*known[-4:])
            if spoiled:
                position = self.pick(
                    position, known[0], self.private, self.mutated(position), f"{len(known)}-1", "", "0-0", "٣-1",
                    f"{len(known) + 1}-{position[2:]}", f"{'9' * 5000}-1", "9007199254740992-1",
                )  # fmt: skip
            entries.append(f"{channel}={position}")
        if not spoiled:
            return "~".join(entries)
        more = [[], [], [f"private={self.private}"], ["", "x"], [entries[0]], ["own/a=1-2"], ["own/a=1-1"] * 500]
        text = "~".join(self.random.sample(entries, len(entries)) + self.pick(*more))
        return self.mutated(text) if self.one_in(3) else text

    def bad_headers(self, fixed: set[str]) -> dict[str, str]:
        return {
            name: self.mutated(self.pick(*HEADERS[name])) if self.one_in(2) else self.pick(*HEADERS[name])
            for name in self.random.sample(sorted(HEADERS.keys() - fixed), self.pick(1, 2, 3))
        }

    def content(self, way: str | None, like: str, channels: list[str], spoiled: bool) -> tuple[str, bytes]:
        """Return the body and its type."""
        if like == "publish":
            return "application/json", self.json_body(channels, spoiled)
        if way != "raw" and not spoiled:
            return "", b""
        type = self.pick("text/plain", "text/plain; charset=utf-8", "image/png")
        content = self.text().encode("utf-8", "replace")
        if spoiled:
            content = self.pick(content, self.random.randbytes(9), content + b"\xff", b"x" * 70_000)
        return type, content

    def event(self, channels: list[str]) -> dict[str, Any]:
        data = self.pick(self.text(), {"x": [self.mutated("\n")]}, None, [FORGED], 5)
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

    def misframed(self, content: bytes, framing: dict[str, Any]) -> dict[str, Any]:
        """Return a body that has another length than its head says, is chunked, breaks off, or is too large."""
        length = self.pick(*LENGTHS, str(len(content) + 5), str(len(content) // 2))
        chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
        broken = {"wsgi.input": io.BufferedReader(Broken())}
        large = {"wsgi.input": io.BytesIO(bytes(1 << 20 | 1))} if self.one_in(20) else {}
        changes = self.pick(*[{"CONTENT_LENGTH": length}] * 4, chunked, chunked | broken, broken, chunked | large)
        framing = framing | changes
        if "wsgi.input_terminated" in framing:
            del framing["CONTENT_LENGTH"]
        return framing
