"""Every setting, in one place: its name, type, default, help and check.

`Config` has a field for each setting. The field's metadata has the help text, and the check, which converts a value or
raises ValueError with the remedy. `Config.load` reads the environment and `app.config`, and reports all faults at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from sse.errors import ConfigError, InvalidEvent
from sse.event import check_channel, plain_int, plain_str

_PREFIX: Final = "SSE_"
_REDIS_URL: Final = "SSE_REDIS_URL"
_COMMON_REDIS_URL: Final = "REDIS_URL"  # the name that platforms and other programs use
_NOTHING: Final[Mapping[str, object]] = {}
KEY = re.compile(r"[!-+\--~]{22,}")  # visible ASCII without the comma that separates keys
_SECRET_BYTES: Final = 32  # RFC 7518, 3.2
_COOKIE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_RATE = re.compile(r"[1-9][0-9]{0,11}/(second|minute|hour|day)")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PATH = re.compile(r"(/[A-Za-z0-9_.~-]+)+")
_REDIS_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?|[0-9a-f:]*:[0-9a-f:]*")
# The options that redis-py takes in each kind of URL, and the form of their values, without the options that this
# service sets itself.
_DATABASE: Final = {"db": "[0-9]{1,9}"}
_REDIS_OPTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "redis": _DATABASE,
    "rediss": {
        **_DATABASE,
        "ssl_cert_reqs": "none|optional|required",
        "ssl_check_hostname": "(?i:true|false)",
        "ssl_ca_certs": ".+",
        "ssl_certfile": ".+",
        "ssl_keyfile": ".+",
    },
    "unix": {**_DATABASE, "username": ".+", "password": ".+"},
}
# Options of other clients, with their remedies. Only these names are shown in an error: any other word could be part of
# a password.
_OTHERS_OPTIONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("timeout", "socket_timeout", "socket_connect_timeout"), "set SSE_REDIS_TIMEOUT in place of"),
    **dict.fromkeys(("username", "password"), "write USER:PASSWORD@ before the host in place of"),
    **dict.fromkeys(
        ("client_name", "decode_responses", "encoding", "encoding_errors", "health_check_interval", "max_connections",
         "protocol", "retry_on_error", "retry_on_timeout", "socket_keepalive", "ssl", "ssl_ca_path", "ssl_cert_reqs",
         "ssl_check_hostname", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_min_version"),
        "leave out",
    ),
}  # fmt: skip
_NEAR: Final = 2  # letters by which a mistyped name differs at most; names of other programs differ by more
_ENCODE: Final = "percent-encode special characters in a user or password"


def check_pattern(pattern: str) -> str:
    """Return a channel pattern if it is valid: an exact channel, `*`, or `a/b/*` with the star as last segment.

    :raises InvalidEvent: for anything else.
    """
    if pattern != "*":
        channel = pattern.removesuffix("/*")
        if "*" in channel:
            raise InvalidEvent(
                f"pattern {pattern[:60]!a} has a * that is not its last segment", "give a channel, *, or news/*"
            )
        check_channel(channel)
    return pattern


def matches(pattern: str, channel: str) -> bool:
    """Return True if a channel matches a pattern. The star stands for one or more segments."""
    if pattern.endswith("*"):
        return pattern == "*" or (channel.startswith(pattern[:-1]) and len(channel) >= len(pattern))
    return pattern == channel


def _whole(low: int, high: int, unit: str) -> Callable[[object], int]:
    def check(value: object) -> int:
        number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value.strip()) else value
        if isinstance(number, int) and not isinstance(number, bool) and low <= number <= high:
            return number
        raise ValueError(f"give a whole number of {unit} from {low} to {high}")

    return check


def _items(value: object) -> tuple[str, ...]:
    """Return the items of a list, or of one string in which commas or white space separate them; none for None."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(item for item in re.split(r"[\s,]+", value) if item)
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(item, str) for item in value):
        return tuple(map(plain_str, value))
    raise ValueError("give a list of strings, or one string with commas between")


def _patterns(value: object) -> tuple[str, ...]:
    try:
        return tuple(check_pattern(item) for item in _items(value))
    except InvalidEvent as error:
        raise ValueError(f"{error.message}; give channels, *, or patterns such as news/*") from None


def _origins(value: object) -> tuple[str, ...]:
    origins = _items(value)
    if origins == ("*",):
        return origins
    for origin in origins:
        try:
            parts = urlsplit(origin)
            exact = f"{parts.scheme}://{parts.netloc}" == origin and parts.port != 0
        except ValueError:
            exact = False
        if (
            not exact
            or parts.scheme not in ("http", "https")
            or not re.fullmatch(r"([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", parts.netloc)
        ):
            raise ValueError(
                f"{origin!r} is not an exact origin; give scheme://host[:port] in small letters, or * alone"
            )
    return origins


def _keys(value: object) -> tuple[str, ...]:
    keys = _items(value)
    for number, key in enumerate(keys, 1):
        if not KEY.fullmatch(key):
            raise ValueError(
                f"key {number} is not at least 22 visible ASCII characters; make one with `openssl rand -hex 24`"
            )
    return keys


def _secrets(value: object) -> tuple[str, ...]:
    secrets = _items(value)
    for number, secret in enumerate(secrets, 1):
        if (size := len(secret.encode(errors="replace"))) < _SECRET_BYTES:
            raise ValueError(
                f"secret {number} of {len(secrets)} (white space and commas separate them) has {size} bytes; "
                f"give at least {_SECRET_BYTES}, made with `openssl rand -hex 32`"
            )
    return secrets


def _printable(value: object) -> tuple[str, ...]:
    items = _items(value)
    for item in items:
        if not item.isprintable():
            raise ValueError("give it without characters that cannot be printed")
    return items


def _jwks(value: object) -> tuple[str, ...]:
    sources = _printable(value)
    for source in sources:
        if "://" not in source and ":" not in source.partition("/")[0]:
            continue
        try:
            parts = urlsplit(source)
            local = parts.hostname in ("127.0.0.1", "::1", "localhost")
            good = parts.hostname and parts.port != 0 and not parts.username and not parts.fragment
        except ValueError:
            good = local = False
        # Over plain HTTP, an attacker on the way could change the keys, and sign tokens.
        if not good or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
            raise ValueError("give an https:// address without a user (http:// only to loopback), or a path")
    return sources


def _text(value: object) -> str:
    if isinstance(value, str) and 1 <= len(value) <= 256 and value.isprintable():
        return value
    raise ValueError("give 1 to 256 printable characters")


def _name(value: object) -> str:
    if isinstance(value, str) and _COOKIE.fullmatch(value):
        return value
    raise ValueError("give 1 to 64 of A-Z a-z 0-9 _ . -")


def _optional_path(value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.isprintable():
        return value
    raise ValueError("give the path of a file, or leave it out")


def _yes(value: object) -> bool:
    yes = {"1": True, "0": False}.get(str(int(value)) if isinstance(value, bool | int) else str(value).strip())
    if yes is None:
        raise ValueError("give 1 or 0")
    return yes


def _form(value: object) -> str:
    if isinstance(value, str) and value.strip() in ("text", "json"):
        return value.strip()
    raise ValueError("give text or json")


def _lane(value: object) -> str:
    if isinstance(value, str) and value.strip() in ("auto", "on", "off"):
        return value.strip()
    raise ValueError("give auto, on or off")


def _rate(value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and _RATE.fullmatch(value):
        return value
    raise ValueError("give a number and its time, such as 600/minute, or leave it empty for no limit")


def _counter_url(value: object) -> str | None:
    return None if value == "memory://" else _redis_url(value)


def _redis_url(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not value.startswith(tuple(f"{scheme}://" for scheme in _REDIS_OPTIONS)):
        raise ValueError("give redis://, rediss:// or unix://, or leave it out for the memory store")
    fault = _redis_url_fault(value)
    if fault:
        raise ValueError(f"{fault}; give redis://[[USER]:PASSWORD@]HOST[:PORT][/NUMBER], rediss://… or unix:///PATH")
    return value


def _redis_url_fault(url: str) -> str | None:
    """Return the fault in a URL, None if there is none. The text shows no part of it that might be a password's."""
    if not re.fullmatch(r"[!-~]+", url) or "%00" in url:
        return "it has white space, a NUL or a character outside ASCII"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"its host or port cannot be read; {_ENCODE}"
    if parts.fragment or "@" in parts.path + parts.query:
        return f"it has a # or @ where none belongs; {_ENCODE}"
    if port == 0:
        return "its port is 0"
    if parts.scheme == "unix":
        if parts.hostname or not parts.path.strip("/"):
            return "it names no socket"
    elif not _REDIS_HOST.fullmatch(parts.hostname or ""):
        return f"its host is missing or cannot be one; {_ENCODE}"
    elif not re.fullmatch(r"(/[0-9]{0,9})?", parts.path):
        return "its path is not the number of a database"
    number = "" if parts.scheme == "unix" else parts.path.strip("/")
    return _redis_options_fault(parts.scheme, parts.query, number)


def _redis_options_fault(scheme: str, query: str, number: str) -> str | None:
    """Return the fault in the options of a URL whose path has this number of a database; None if there is none."""
    options = parse_qsl(query, keep_blank_values=True)
    forms = _REDIS_OPTIONS[scheme]
    for name, value in options:
        if name not in forms:
            remedy = f": {_OTHERS_OPTIONS[name]} {name}" if name in _OTHERS_OPTIONS else ""
            return f"{scheme}:// takes no option but {', '.join(forms)}{remedy}"
        if not re.fullmatch(forms[name], value):
            return f"its option {name} cannot have that value"
        if name == "db" and number and int(number) != int(value):
            return f"it names two databases, /{number} and ?db={value}"
    return "it has an option twice" if len(dict(options)) < len(options) else None


def _namespace(value: object) -> str:
    if isinstance(value, str) and _NAMESPACE.fullmatch(value):
        return value
    raise ValueError("give 1 to 64 of A-Z a-z 0-9 _ . -")


def _path(value: object) -> str:
    if isinstance(value, str) and _PATH.fullmatch(value):
        return value
    raise ValueError("give a path such as /sse, with no slash at its end")


def _setting(default: Any, help: str, check: Callable[[object], Any], *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"help": help, "check": check, "secret": secret})


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one service; the setting `SSE_RING_TTL` is the field `ring_ttl`."""

    redis_url: str | None = _setting(
        None,
        "Redis that all workers share (also REDIS_URL); without it, the memory store of one process",
        _redis_url,
        secret=True,
    )
    redis_timeout: int = _setting(
        5, "seconds within which a publish fails if Redis does not answer", _whole(1, 20, "seconds")
    )
    namespace: str = _setting("sse", "start of every Redis key", _namespace)
    public: tuple[str, ...] = _setting((), "channel patterns that anybody may read", _patterns)
    origins: tuple[str, ...] = _setting(
        (), "exact origins of other sites whose pages may connect; * alone allows all, without credentials", _origins
    )
    publish_keys: tuple[str, ...] = _setting(
        (),
        "keys for publishing over HTTP, 22 characters or more each; without keys or tokens there is no such route",
        _keys,
        secret=True,
    )
    publish_keys_file: str | None = _setting(
        None,
        "file with more publishing keys, each on a line NAME KEY PATTERN…; it is read again when it changes",
        _optional_path,
    )
    secret: tuple[str, ...] = _setting(
        (),
        "secret that signs tokens (HS256) and tickets, 32 bytes or more; of several, the first signs and all verify",
        _secrets,
        secret=True,
    )
    jwks: tuple[str, ...] = _setting(
        (),
        "https:// address or file of another issuer's JWK set for its tokens (RS256, ES256, EdDSA); one per issuer",
        _jwks,
    )
    issuer: tuple[str, ...] = _setting(
        (), "issuers that a token's iss may name, in the order of SSE_JWKS; without any, iss is not checked", _printable
    )
    audience: str = _setting("sse", "audience that a token's aud has to name, alone or in a list", _text)
    token_lifetime: int = _setting(
        604_800,
        "longest time from a token's iat to its exp, in seconds; a revocation is kept as long",
        _whole(60, 10**8, "seconds"),
    )
    cookie: str = _setting("sse_token", "name of the cookie that may carry a token for reading", _name)
    query_tokens: bool = _setting(False, "1: a query may carry a whole token, not only a ticket", _yes)
    proxies: int = _setting(
        0,
        "number of trusted proxies in front, whose X-Forwarded-For names the client's address",
        _whole(0, 10, "proxies"),
    )
    limit_subscribe: str | None = _setting(
        "3000/minute",
        "new streams, polls and tickets of one client address, in each worker; not for loopback without proxies",
        _rate,
    )
    limit_publish: str | None = _setting(
        "100000/minute", "events published with one key or token, in each worker", _rate
    )
    limit_publish_bytes: str | None = _setting(
        "67108864/minute",
        "bytes published with one key or token, in each worker: data as stored, and 1 KB for each new ring",
        _rate,
    )
    limit_channel: str | None = _setting("100000/minute", "events published on one channel, in each worker", _rate)
    limit_new_channels: str | None = _setting(
        "6000/minute", "new channels that one client address or token creates by listening, in each worker", _rate
    )
    limits_url: str | None = _setting(
        None,
        "Redis that counts the limits for all workers together; without it, each worker counts in its memory",
        _counter_url,
        secret=True,
    )
    ring: int = _setting(1000, "events kept for each channel", _whole(1, 100_000, "events"))
    ring_ttl: int = _setting(
        86_400, "seconds that a channel's ring is kept after its last event", _whole(60, 10**9, "seconds")
    )
    heartbeat: int = _setting(
        15,
        "seconds without an event until a heartbeat is sent; a client may ask for 3 up to this",
        _whole(3, 3600, "seconds"),
    )
    stream_lifetime: int = _setting(
        900, "seconds until a stream is closed, varied by up to 20 %", _whole(5, 10**6, "seconds")
    )
    poll_timeout: int = _setting(
        25, "seconds that a poll waits for an event if it names no timeout", _whole(0, 60, "seconds")
    )
    retry: int = _setting(
        3000, "milliseconds that a client waits before it reconnects", _whole(1, 600_000, "milliseconds")
    )
    max_channels: int = _setting(50, "most channels of one connection", _whole(1, 100, "channels"))
    max_event_bytes: int = _setting(65_536, "most bytes of one event's data", _whole(1, 1_048_576, "bytes"))
    max_subscribers: int = _setting(
        10_000, "most streams and waiting polls of one worker", _whole(1, 1_000_000, "subscribers")
    )
    send_buffer: int = _setting(
        16_384,
        "bytes for one client that the kernel buffers before they are sent; read from the environment only",
        _whole(4096, 16_777_216, "bytes"),
    )
    drain: int = _setting(
        0,
        "seconds over which a stopping worker closes its streams; read from the environment only",
        _whole(0, 3600, "seconds"),
    )
    drain_delay: int = _setting(
        0,
        "seconds for which a stopping worker goes on, and says at /readyz that it ends; read from the environment only",
        _whole(0, 3600, "seconds"),
    )
    run_bytes: int = _setting(
        4_194_304, "most bytes of one run: its data, and 64 for each entry", _whole(65_536, 1_073_741_824, "bytes")
    )
    run_ttl: int = _setting(3600, "seconds that a run's text is kept after its end", _whole(60, 10**9, "seconds"))
    run_grace: int = _setting(
        25,
        "seconds that a stopping worker gives its runs to end by themselves; read from the environment only",
        _whole(0, 3600, "seconds"),
    )
    write_every: int = _setting(
        20,
        "milliseconds for which pieces of a run are gathered before they are stored",
        _whole(0, 1000, "milliseconds"),
    )
    max_sources: int = _setting(100, "most sources that one worker runs", _whole(0, 10_000, "sources"))
    presence: tuple[str, ...] = _setting(
        (), "patterns of channels of which it is known who listens, such as room/*; none by default", _patterns
    )
    doctor: bool = _setting(False, "1: anybody may use the doctor and its probes; without it, they need a pass", _yes)
    log: str = _setting("text", "form of the log: text, or json for an object on each line", _form)
    log_rate: int = _setting(
        50,
        "most lines a second of one worker about streams and held polls that end, the others are summed up; 0: none",
        _whole(0, 100_000, "lines"),
    )
    lane: str = _setting(
        "auto",
        "requests that go past Flask: auto, where the app cannot tell; on, also past its hooks and handlers; off, none",
        _lane,
    )
    prefix: str = _setting("/sse", "path under which all routes are served", _path)

    @classmethod
    def load(cls, environ: Mapping[str, object], config: Mapping[str, object] = _NOTHING) -> Config:
        """Return the settings from the environment and from an app's `config`, which wins.

        An unknown `SSE_*` name in the environment is an error only if it is nearly one of ours: see `foreign`.

        :raises ConfigError: naming every unknown `SSE_*` key and every bad value at once.
        """
        fields = _fields()
        values: dict[str, Any] = {}
        faults = [f"{name} is not a setting{_meant(name)}" for name in _unknown(config)]
        faults += [
            f"{name} is not a setting: did you mean {near}?"
            for name in _unknown(environ)
            if name not in config and (near := _near(name))
        ]
        for name, (given_as, value) in sorted(_chosen(environ, config).items()):
            if name not in fields:
                continue
            item = fields[name]
            try:
                values[item.name] = item.metadata["check"](value)
            except ValueError as error:
                # A URL may contain a password.
                shown = "" if item.metadata["secret"] or ":/" in str(value) else f" is {value!r}"
                faults.append(f"{given_as}{shown}: {error}")
        if faults:
            raise ConfigError("; ".join(faults), "correct the settings; docs/settings.md lists them all")
        return cls(**values)

    def late(self, environ: Mapping[str, object], config: Mapping[str, object]) -> list[str]:
        """Return the names of settings that have another value now than at `load`, and of unknown ones in `config`."""
        chosen = _chosen(environ, config)
        late = [f"{name} (not a setting{_meant(name)})" for name in _unknown(config)]
        for name, item in _fields().items():
            given_as, value = chosen.get(name, (name, item.default))
            try:
                is_late = item.metadata["check"](value) != getattr(self, item.name)
            except ValueError:
                is_late = True
            if is_late:
                late.append(given_as)
        return sorted(late)

    def table(self) -> list[tuple[str, str, str, str]]:
        """Return a row (name, value, default, help) for each setting. It shows a secret as a hash, and no passwords."""
        return [
            (setting_name(item), self._shown(item), _plain(item.default), item.metadata["help"])
            for item in dataclasses.fields(self)
        ]

    def _shown(self, item: dataclasses.Field[Any]) -> str:
        value = getattr(self, item.name)
        if not item.metadata["secret"] or not value or "://" in value:
            return re.sub(r"(?<=://)[^/\s]+(?=@)|(?<=\?)\S+", "…", _plain(value))  # passwords in addresses
        secrets = (value,) if isinstance(value, str) else value
        return ", ".join(f"sha256:{hashlib.sha256(secret.encode()).hexdigest()[:12]}" for secret in secrets)


def of_interest(environ: Mapping[str, object]) -> dict[str, object]:
    """Return the part of an environment that settings are read from."""
    return {name: value for name, value in environ.items() if name.startswith(_PREFIX) or name == _COMMON_REDIS_URL}


def _fields() -> dict[str, dataclasses.Field[Any]]:
    return {setting_name(item): item for item in dataclasses.fields(Config)}


def _unknown(source: Mapping[str, object]) -> list[str]:
    return sorted({name for name in source if name.startswith(_PREFIX)} - _fields().keys())


def foreign(environ: Mapping[str, object]) -> list[str]:
    """Return the `SSE_*` names in an environment that resemble no setting, so they belong to another program."""
    return [name for name in _unknown(environ) if not _near(name)]


def _near(name: str) -> str | None:
    """Return the setting whose name differs from `name` by at most two letters; None if there is none."""
    distances = {ours: _distance(name, ours) for ours in _fields() if abs(len(name) - len(ours)) <= _NEAR}
    nearest = min(distances, key=lambda ours: distances[ours], default="")
    return nearest if nearest and distances[nearest] <= _NEAR else None


def _distance(one: str, other: str) -> int:
    """Return how many letters have to be added, dropped or replaced to turn `one` into `other` (Levenshtein)."""
    row = list(range(len(other) + 1))
    for count, letter in enumerate(one, 1):
        corner, row[0] = row[0], count
        for index, there in enumerate(other, 1):
            corner, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, corner + (letter != there))
    return row[-1]


def _meant(name: str) -> str:
    near = _near(name)
    return f": did you mean {near}?" if near else ""


def _chosen(*sources: Mapping[str, object]) -> dict[str, tuple[str, object]]:
    """Return the name that each setting in `sources` was given as, and its value. A later source wins.

    Within a source, SSE_REDIS_URL wins over REDIS_URL. Other programs read REDIS_URL too, so an empty REDIS_URL
    replaces an earlier REDIS_URL, but not an earlier SSE_REDIS_URL.
    """
    chosen: dict[str, tuple[str, object]] = {}
    for source in sources:
        for name, value in source.items():
            if name.startswith(_PREFIX):
                chosen[plain_str(name)] = plain_str(name), _plain_value(value)
        if _COMMON_REDIS_URL in source and _REDIS_URL not in source:
            url = _plain_value(source[_COMMON_REDIS_URL])
            if url or chosen.get(_REDIS_URL, (_COMMON_REDIS_URL,))[0] == _COMMON_REDIS_URL:
                chosen[_REDIS_URL] = _COMMON_REDIS_URL, url
    return chosen


def setting_name(item: dataclasses.Field[Any]) -> str:
    """Return the name of a setting in the environment and in `app.config`."""
    return _PREFIX + item.name.upper()


def _plain_value(value: object) -> object:
    """Return a str or int without its subclass. Any other value, and a bool, is returned as it is."""
    if isinstance(value, str):
        return plain_str(value)
    return plain_int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _plain(value: object) -> str:
    if value is None or value in ((), ""):
        return "-"
    if isinstance(value, bool):
        return str(int(value))
    return ", ".join(value) if isinstance(value, tuple) else str(value)
