"""`flask sse publish | tail | embed | token | revoke | config`, over the shared store or, with --url, over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import shlex
import signal
import ssl
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, BinaryIO, Final, Self, TypeVar
from urllib.parse import urlencode, urlsplit

import click
from flask.cli import AppGroup, ScriptInfo

from sse.access.decision import unreached
from sse.access.revocations import one_revoked
from sse.access.token import id_of
from sse.config import check_pattern
from sse.errors import InvalidEvent, SSEError, TooLarge, Unavailable
from sse.event import DEFAULT_TYPE, RESERVED_PREFIX, Event, LastEventId, check_channel, check_type
from sse.hub.subscriber import starting_points
from sse.log import plain
from sse.service import Service
from sse.stores import Publication
from sse.transports.stream import Stream
from sse.web.script import embed_tag
from sse.wire import MAX_BATCH, Block, Parser

T = TypeVar("T")
Put = Callable[[Sequence[Event], str | None], list[str]]
"""Publishes events under one idempotency key; their ids."""

_READ: Final = 65_536
_LONGEST_LINE: Final = (1 << 20) + 1  # longer than any SSE_MAX_EVENT_BYTES allows
_HEARTBEAT: Final = 5
_QUIET: Final = 15.0  # three heartbeats
_ANSWER: Final = 30.0
_SOON: Final = 100  # milliseconds before a stream in this process is taken up again
_AGAIN: Final = (408, 425, 429)
_URL_HINT: Final = "give the service's prefix, such as https://push.example/sse"


class _Group(AppGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            with plain():
                return super().invoke(ctx)
        except SSEError as error:
            raise click.ClickException(str(error)) from None


cli = _Group(
    "sse", help="Publish events, follow channels, embed the script, make and revoke tokens, show the settings."
)


def _checked(check: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return [check(item) for item in value]
            return None if value is None else check(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    extra = parts.query or parts.fragment or parts.username
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or extra:
        raise ValueError(_URL_HINT)
    return url.rstrip("/")


def _check_key(key: str) -> str:
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError("a key is visible ASCII characters only")
    return key


def _check_once(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", key):
        raise ValueError("give 1 to 128 of A-Z a-z 0-9 _ . : -")
    return key


_url = click.option(
    "--url", metavar="URL", callback=_checked(_check_url), help="Over HTTP: the service's prefix, https://…/sse."
)


def _secret(name: str, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    variable = f"THROUGHLINE_{name.upper()}"
    return click.option(
        f"--{name}",
        metavar=name.upper(),
        envvar=variable,
        callback=_checked(_check_key),
        help=f"{help} Better in {variable}, where no process list shows it.",
    )


@cli.command(with_appcontext=False)
@click.argument("channel", callback=_checked(check_channel))
@click.argument("data", required=False)
@click.option("--type", default=DEFAULT_TYPE, show_default=True, callback=_checked(check_type), help="The event type.")
@click.option("--lines", is_flag=True, help="Make each line of standard input an event, as it comes.")
@_url
@_secret("key", "A publishing key, or a token, for --url.")
@click.option(
    "--idempotency-key",
    metavar="K",
    callback=_checked(_check_once),
    help="Repeating the command with the same K within 300 s publishes nothing twice.",
)
@click.option("--quiet", "-q", is_flag=True, help="Do not print the id.")
def publish(
    channel: str,
    data: str | None,
    type: str,
    lines: bool,
    url: str | None,
    key: str | None,
    idempotency_key: str | None,
    quiet: bool,
) -> None:
    """Publish DATA on CHANNEL; with - what standard input brings, less one line end. Prints the event's id.

    With --lines, such as in `tail -F app.log | flask sse publish app/log --lines`, each line is published as soon as
    it is complete, once and in order: while the service cannot be reached, it is tried again and nothing is dropped. A
    line that can never be published is reported and passed over, and the exit status is then 1. Bytes that are not
    UTF-8 become U+FFFD. Without --lines they are refused.
    """
    if lines and (data not in (None, "-") or idempotency_key):
        raise click.UsageError("--lines reads standard input and makes the idempotency keys: leave out DATA and K")
    if not lines and data is None:
        raise click.UsageError("give DATA, or - to read standard input")
    with _putting(channel, url, key) as put:
        if lines:
            _Lines(put, type).publish(sys.stdin.buffer)
        else:
            ids = put([Event(_standard_input() if data == "-" else data, type)], idempotency_key)
            if not quiet:
                click.echo("\n".join(ids))


@cli.command(with_appcontext=False)
@click.argument("channels", metavar="CHANNEL…", nargs=-1, required=True, callback=_checked(check_channel))
@click.option("--last-event-id", metavar="ID", default="", help="Go on after this, from an earlier run.")
@click.option("--replay", metavar="N", type=click.IntRange(0), default=0, help="Without an ID: the newest N first.")
@click.option("--json", "as_json", is_flag=True, help='One line each: {"channel", "id", "type", "data"}.')
@_url
@_secret("token", "For --url, where channels are not public.")
def tail(
    channels: list[str], last_event_id: str, replay: int, as_json: bool, url: str | None, token: str | None
) -> None:
    """Print the data of each event on these channels as it comes; goes on by itself after any interruption.

    Resets, which say that events may have been missed, are told on standard error. So is, at the end (Ctrl-C), the
    last event id to go on from.
    """
    channels = list(dict.fromkeys(channels))
    with contextlib.ExitStack() as stack:
        if url:
            connect = partial(_stream_over_http, _Remote(url, token), channels, last_event_id, replay)
        else:
            connect = partial(_stream_here, stack.enter_context(_service()), channels, last_event_id, replay)
        last = last_event_id
        try:
            ending = stack.enter_context(_Ending())
            for block in stack.enter_context(contextlib.closing(_follow(connect))):
                with ending.held():
                    _tell(block, as_json)
                    last = block.last_event_id
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            # Whoever read has had enough. What is left unwritten must not fail once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            last = ""
        finally:
            if last:
                click.echo(f"to go on from here: --last-event-id {shlex.quote(last)}", err=True)


@cli.command(with_appcontext=False)
@click.option(
    "--channel", "channels", multiple=True, callback=_checked(check_channel), help="To follow; once for each."
)
@click.option(
    "--url",
    metavar="URL",
    callback=_checked(_check_url),
    help="For pages of other sites: the service's prefix, https://…/sse.",
)
def embed(channels: list[str], url: str | None) -> None:
    """Print the tag that puts the script into a page, at this version and held to its hash."""
    click.echo(embed_tag(url or _app_service().config.prefix, list(dict.fromkeys(channels))))
    if not channels:
        click.echo(
            "this tag follows no channel by itself: give --channel, or call SSE(url, {channels}) in the page", err=True
        )


@cli.command(with_appcontext=False)
@click.option("--sub", required=True, metavar="NAME", help="Whom it is for.")
@click.option(
    "--subscribe", multiple=True, metavar="PATTERN", callback=_checked(check_pattern), help="To read; once for each."
)
@click.option(
    "--publish", "to_publish", multiple=True, metavar="PATTERN", callback=_checked(check_pattern), help="To publish on."
)
@click.option("--lifetime", metavar="S", type=click.IntRange(1), default=3600, show_default=True, help="Seconds.")
def token(sub: str, subscribe: list[str], to_publish: list[str], lifetime: int) -> None:
    """Print a token, signed by SSE_SECRET. It is a secret itself."""
    if not (subscribe or to_publish):
        raise click.UsageError("it would be good for nothing: give --subscribe or --publish")
    service = _app_service()
    if not service.config.secret:
        raise click.UsageError("SSE_SECRET is not set here: give it as the service has it")
    if lifetime > service.config.token_lifetime:
        raise click.UsageError(f"SSE_TOKEN_LIFETIME is {service.config.token_lifetime}: no longer one is taken")
    click.echo(service.tokens.make(sub, subscribe, to_publish, lifetime))


@cli.command(with_appcontext=False)
@click.option("--sub", metavar="NAME", help="Of a subject: all that was issued to it until now.")
@click.option("--channel", metavar="CHANNEL", callback=_checked(check_channel), help="For a channel: the same.")
@click.option("--token", metavar="ID", help="A token, by its id (the claim jti); or the whole token.")
def revoke(sub: str | None, channel: str | None, token: str | None) -> None:
    """End streams and waiting polls on every worker, and refuse their tokens from now on. Prints what is revoked.

    The exit status is 1 if that ends nobody's reading, as on a public channel.
    """
    try:
        kind, value = one_revoked(sub=sub, channel=channel, token=token and (id_of(token) or token))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with _service("") as service:
        service.revocations.revoke(kind, value)
        if trouble := unreached(service.config, kind, value):
            raise click.ClickException(trouble)
    click.echo(f"revoked: {kind} {value}")


@cli.command(with_appcontext=False)
def config() -> None:
    """List the settings: name, value, default, help. Secrets are shown as a hash."""
    service = _app_service()
    service.begin()  # tells of settings that came too late
    rows = [("NAME", "VALUE", "DEFAULT", "HELP"), *service.config.table()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())
    for key in service.keys:
        if key.name:
            click.echo(f"publishing key {key.name}  {key.shown}  {' '.join(key.patterns)}")


def _app_service() -> Service:
    app = click.get_current_context().ensure_object(ScriptInfo).load_app()
    service = app.extensions.get("sse")
    if not isinstance(service, Service):
        raise click.UsageError("this app has no SSE: call SSE(app), or give --url")
    return service


@contextlib.contextmanager
def _service(hint: str = ", or give --url to go over HTTP") -> Iterator[Service]:
    """The app's service, over a store that others share."""
    service = _app_service()
    if not service.shared:
        raise click.UsageError(f"the memory store is the serving process's own: set SSE_REDIS_URL as there{hint}")
    try:
        yield service
    finally:
        service.close()


class _Ending:
    """Makes Ctrl-C and SIGTERM a KeyboardInterrupt. A signal that comes while `held` is raised after that.

    A signal that is ignored stays so: a shell has what runs in its background ignore Ctrl-C (POSIX, XCU 2.11).
    """

    def __init__(self) -> None:
        self._held = self._asked = False

    def __enter__(self) -> Self:
        heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        self._before = [(number, signal.signal(number, self._end)) for number in heeded]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _end(self, *_: object) -> None:
        if not self._held or self._asked:  # asked twice: perhaps nobody reads what is being written
            raise KeyboardInterrupt
        self._asked = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._held = True
        yield
        self._held = False
        if self._asked:
            raise KeyboardInterrupt


def _pause(attempt: int, least: float) -> None:
    time.sleep(least + random.uniform(0.5, 1) * min(0.1 * 2 ** min(attempt, 10), 10))


# Publishing


@contextlib.contextmanager
def _putting(channel: str, url: str | None, key: str | None) -> Iterator[Put]:
    if url is None:
        with _service() as service:
            yield partial(_put_in_store, service, channel)
    elif key is None:
        raise click.UsageError("--url needs a publishing key: give --key, or THROUGHLINE_KEY in the environment")
    else:
        yield partial(_put_over_http, _Remote(url, key), channel)


def _put_in_store(service: Service, channel: str, events: Sequence[Event], once: str | None) -> list[str]:
    publications = [
        Publication(channel, service.check(event), once and f"cli:{place}:{once}") for place, event in enumerate(events)
    ]
    return [f"{channel}={position}" for position in service.publish(publications)]


def _put_over_http(remote: _Remote, channel: str, events: Sequence[Event], once: str | None) -> list[str]:
    items = [{"channel": channel, "type": event.type, "data": event.data} for event in events]
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": once} if once else {})
    body = json.dumps(items, ensure_ascii=False).encode()
    with remote.ask("POST", "/publish", headers, body, timeout=_ANSWER) as response:
        answer = response.read()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        ids = json.loads(answer)["ids"]
        if len(ids) == len(events):
            return [str(id) for id in ids]
    raise SSEError(f"{remote.url} does not answer as this service does", _URL_HINT)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InvalidEvent(
            f"standard input is not UTF-8 at byte {error.start}",
            "POST it to …/publish/CHANNEL with its Content-Type, and it becomes a data: URL",
        ) from None


def _lines(source: BinaryIO) -> Iterator[list[str]]:
    """Lines as they come, those at hand together. Of one that is too long for any service, only the start."""
    pending = b""
    while chunk := source.read1(_READ):  # type: ignore[attr-defined]
        *lines, rest = (pending + chunk).split(b"\n")
        pending = rest[:_LONGEST_LINE]
        yield [line.decode(errors="replace").removesuffix("\r") for line in lines]
    if pending:
        yield [pending.decode(errors="replace").removesuffix("\r")]


class _Lines:
    """Publishes lines once and in order, and counts them."""

    def __init__(self, put: Put, type: str) -> None:
        self._put = put
        self._type = type
        self._read = self._published = self._refused = 0

    def publish(self, source: BinaryIO) -> None:
        try:
            with _Ending():
                for lines in _lines(source):
                    self._read += len(lines)
                    events = [Event(line, self._type) for line in lines]
                    for start in range(0, len(events), MAX_BATCH):
                        self._send(events[start : start + MAX_BATCH])
        except KeyboardInterrupt:
            pass
        finally:
            lost = self._read - self._published - self._refused
            counts = ((self._published, "published"), (self._refused, "refused"), (lost, "perhaps not published"))
            told = [f"{count} {what}" for count, what in counts if count or what == "published"]
            click.echo(f"lines: {', '.join(told)}", err=True)
        if self._refused or lost:
            raise click.exceptions.Exit(1)

    def _send(self, events: Sequence[Event]) -> None:
        try:
            self._insist(events)
        except (InvalidEvent, TooLarge) as error:
            # Nothing of the batch is stored. Halving it finds the line and keeps the order.
            half = len(events) // 2
            if half:
                self._send(events[:half])
                self._send(events[half:])
            else:
                click.echo(f"line {self._published + self._refused + 1} is refused: {error}", err=True)
                self._refused += 1
        else:
            self._published += len(events)

    def _insist(self, events: Sequence[Event]) -> None:
        """Publish, however long that takes. Each line is known by this key and its place, so none is stored twice."""
        once = secrets.token_hex(16)
        attempt = 0
        while True:
            try:
                self._put(events, once)
            except Unavailable as error:
                if attempt == 0:
                    click.echo(f"waiting: {error}", err=True)
                _pause(attempt, error.retry_after)
                attempt += 1
            else:
                return


# Following


def _stream_here(service: Service, channels: Sequence[str], given: str, replay: int, last: str) -> Generator[bytes]:
    position = LastEventId.parse(last or given) if last or given else None
    starts = starting_points(channels, position, from_header=bool(last), replay=replay)
    lifetime = service.config.stream_lifetime
    yield from Stream(service.hub, starts, heartbeat=service.config.heartbeat, lifetime=lifetime, retry=_SOON)


def _stream_over_http(remote: _Remote, channels: Sequence[str], given: str, replay: int, last: str) -> Generator[bytes]:
    query = [*(("channel", channel) for channel in channels), ("heartbeat", str(_HEARTBEAT))]
    query += [("last_event_id", given)] if given else [("replay", str(replay))] if replay else []
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last.encode()} if last else {})}
    with remote.ask("GET", f"/stream?{urlencode(query)}", headers, timeout=_QUIET) as response:
        if response.headers.get_content_type() != "text/event-stream":
            raise SSEError(f"{remote.url} does not answer as this service does", _URL_HINT)
        while chunk := response.read1(_READ):
            yield chunk


def _follow(connect: Callable[[str], Generator[bytes]]) -> Generator[Block]:
    """The blocks of one stream after another; `connect` opens each, after the last event id."""
    last, retry, attempt = "", 0, 0
    while True:
        parser = Parser(last)
        least, trouble = 0.0, "the service is busy"
        try:
            with contextlib.closing(connect(last)) as chunks:
                for chunk in chunks:
                    for block in parser.feed(chunk):
                        attempt = 0 if block.type == "sse.open" else attempt
                        yield block
        except Unavailable as error:
            least, trouble = error.retry_after, str(error)
        if attempt == 1:  # not at once: most interruptions are over by then
            click.echo(f"waiting: {trouble}", err=True)
        last = parser.last_event_id
        retry = retry if parser.retry is None else parser.retry
        _pause(attempt, max(least, retry / 1000))
        attempt += 1


def _tell(block: Block, as_json: bool) -> None:
    if block.type == "sse.reset":
        click.echo(f"reset: {block.data}", err=True)
    elif not block.type.startswith(RESERVED_PREFIX):
        id = block.last_event_id.partition("~")[0]
        item = {"channel": id.partition("=")[0], "id": id, "type": block.type, "data": block.data}
        # As bytes: whatever encoding a terminal has, the data goes out as it came.
        click.echo((json.dumps(item, ensure_ascii=False) if as_json else block.data).encode())


class _Remote:
    """The service behind a URL. It follows no redirection: the key is for this address alone."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        self._parts = urlsplit(url)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._tls = ssl.create_default_context() if self._parts.scheme == "https" else None

    @contextlib.contextmanager
    def ask(
        self, method: str, path: str, headers: dict[str, Any], body: bytes | None = None, *, timeout: float
    ) -> Iterator[HTTPResponse]:
        """The head of a good answer, its body to be read.

        :raises Unavailable: if the connection fails, or the service says that it may do better later.
        :raises SSEError: for every other answer.
        """
        host, port = self._parts.hostname or "", self._parts.port
        connection = (
            HTTPSConnection(host, port, timeout=timeout, context=self._tls)
            if self._tls
            else HTTPConnection(host, port, timeout=timeout)
        )
        hint = "try again"
        try:
            with contextlib.closing(connection):
                connection.connect()
                if method == "POST":
                    hint = "it may have been published, so repeat it only with the same idempotency key"
                connection.request(method, f"{self._parts.path}{path}", body, {**self._headers, **headers})
                with connection.getresponse() as response:
                    if response.status not in (200, 201):
                        raise self._fault(response)
                    yield response
        except ssl.SSLCertVerificationError as error:
            raise SSEError(f"{self.url}: {error.verify_message}", "SSL_CERT_FILE names the authorities") from None
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{self.url} cannot be reached: {reason}", hint, retry_after=0) from None

    def _fault(self, response: HTTPResponse) -> SSEError:
        message, hint = f"{self.url} answered {response.status} {response.reason}", _URL_HINT
        if location := response.headers.get("Location"):
            hint = f"it points to {location}"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            error = json.loads(response.read(_READ))["error"]
            message, hint = str(error["message"]), str(error["hint"])
        if response.status >= 500 or response.status in _AGAIN:
            after = response.headers.get("Retry-After", "")
            return Unavailable(message, hint, retry_after=int(after) if re.fullmatch("[0-9]{1,3}", after) else 0)
        return {413: TooLarge, 422: InvalidEvent}.get(response.status, SSEError)(message, hint)
