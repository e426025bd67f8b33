"""`flask sse publish | run | tail | doctor | embed | token | revoke | config`, over the shared store or over HTTP.

The app imports this module whenever it starts, so the doctor's modules are imported only by its command.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import click
from flask import Flask
from flask.cli import AppGroup, ScriptInfo

from sse.access.decision import unreached
from sse.access.revocations import one_revoked
from sse.access.token import id_of
from sse.cli.ending import StopSignals
from sse.cli.lines import Lines
from sse.cli.local import Local
from sse.cli.piping import pipe
from sse.cli.remote import Remote, check_origin, check_url
from sse.cli.tail import Output, follow
from sse.config import check_pattern
from sse.doctor import LONGEST_WAIT
from sse.doctor.proxies import NAMES
from sse.errors import InvalidEvent, RunRefused, SSEError
from sse.event import DEFAULT_TYPE, Event, check_channel, check_type
from sse.log import plain
from sse.service import Service
from sse.web.script import embed_tag

T = TypeVar("T")


class _Group(AppGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            with plain():
                return super().invoke(ctx)
        except SSEError as error:
            raise click.ClickException(str(error)) from None


cli = _Group(
    "sse",
    help="Publish events, run commands, follow channels, examine a service, embed the script, make and revoke "
    "tokens, show the settings.",
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


def _check_key(key: str) -> str:
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError("a key has visible ASCII characters only")
    return key


def _check_once(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", key):
        raise ValueError("give 1 to 128 of A-Z a-z 0-9 _ . : -")
    return key


_url = click.option(
    "--url", metavar="URL", callback=_checked(check_url), help="The service's prefix, https://…/sse, to go over HTTP."
)


def _secret(name: str, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    variable = f"THROUGHLINE_{name.upper()}"
    return click.option(
        f"--{name}",
        metavar=name.upper(),
        envvar=variable,
        callback=_checked(_check_key),
        help=f"{help} Better set {variable}, which no process list shows.",
    )


@cli.command(with_appcontext=False)
@click.argument("channel", callback=_checked(check_channel))
@click.argument("data", required=False)
@click.option("--type", default=DEFAULT_TYPE, show_default=True, callback=_checked(check_type), help="The event type.")
@click.option("--lines", is_flag=True, help="Publish each line of standard input as it comes.")
@_url
@_secret("key", "A publishing key or a token, for --url.")
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
    """Publish DATA on CHANNEL, and print the event's id. The DATA - is standard input without its last line end.

    With --lines, such as in `tail -F app.log | flask sse publish app/log --lines`, each line is published as soon as
    it is complete, once and in order. While the service cannot be reached, the command tries again and drops nothing. A
    line that can never be published is reported and skipped, and the exit status is then 1. With --lines, bytes that
    are not UTF-8 become U+FFFD; without it, they are refused.
    """
    if lines and (data not in (None, "-") or idempotency_key):
        raise click.UsageError("--lines reads standard input and makes the idempotency keys: leave out DATA and K")
    if not lines and data is None:
        raise click.UsageError("give DATA, or - to read standard input")
    if url and key is None:
        raise click.UsageError("--url needs a publishing key: give --key, or THROUGHLINE_KEY in the environment")
    with _reached(url, key) as service:
        send = partial(service.publish, channel)
        if lines:
            Lines(send, type).publish(sys.stdin.buffer)
        else:
            ids = send([Event(_standard_input() if data == "-" else data, type)], idempotency_key)
            if not quiet:
                click.echo("\n".join(ids))


@cli.command(with_appcontext=False, context_settings={"ignore_unknown_options": True})
@click.argument("channel", callback=_checked(check_channel))
@click.argument("command", metavar="-- COMMAND…", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--restart", is_flag=True, help="Begin again where a run is or was there.")
@click.option("--stderr", "with_errors", is_flag=True, help="Write the lines of standard error, too.")
def run(channel: str, command: tuple[str, ...], restart: bool, with_errors: bool) -> None:
    """Run COMMAND, write its output to CHANNEL line by line, and end the channel with it.

    The lines of standard output are pieces of one text, each with its line end. Standard error stays where it is,
    unless --stderr is given. The exit status is the command's. If it is not 0, the channel ends as failed. Ctrl-C and
    SIGTERM stop the command, and end the channel as stopped. If a page stops the run, the command gets SIGTERM, and
    after 5 s SIGKILL. While Redis is away, nothing more is read, so that the command soon waits, too.
    """
    with _service("") as service:
        writing = service.writing(channel, Event, restart=restart)
        try:
            status = pipe(writing, command, with_errors=with_errors)
        except RunRefused as error:
            hint = "give another channel, or --restart" if error.code == "run_exists" else error.hint
            raise RunRefused(error.message, hint, code=error.code) from None
    raise click.exceptions.Exit(status)


@cli.command(with_appcontext=False)
@click.argument("channels", metavar="CHANNEL…", nargs=-1, required=True, callback=_checked(check_channel))
@click.option("--last-event-id", metavar="ID", default="", help="Continue after this id, from an earlier run.")
@click.option(
    "--replay",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    help="Begin with the newest N events, if no ID is given.",
)
@click.option("--json", "as_json", is_flag=True, help='Print each event as a line {"channel", "id", "type", "data"}.')
@_url
@_secret("token", "A token, for --url with channels that are not public.")
def tail(
    channels: list[str], last_event_id: str, replay: int, as_json: bool, url: str | None, token: str | None
) -> None:
    """Print the data of each event on these channels as it comes, and reconnect after each interruption.

    The pieces of a text (events of the type "text") are printed as one text, any other event as a line. Resets, after
    which events may be missing, are printed on standard error, as are the ends of channels. The command ends when all
    channels have ended, or with Ctrl-C. Then the last event id is printed there too, so that the next run can continue
    from it.
    """
    channels = list(dict.fromkeys(channels))
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(_reached(url, token))
        connect = partial(service.stream, channels, last_event_id, replay)
        last = last_event_id
        output = Output(as_json)
        try:
            signals = stack.enter_context(StopSignals())
            for block in stack.enter_context(contextlib.closing(follow(connect))):
                with signals.held():
                    output.show(block)
                    last = block.last_event_id
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            # The reader has gone. Output that is still buffered must not fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            last = ""
        finally:
            if last:
                output.tell(f"to go on from here: --last-event-id {shlex.quote(last)}")


@cli.command(with_appcontext=False)
@click.argument("url", callback=_checked(check_url))
@_secret("key", "A publishing key or a token, unless the service has SSE_DOCTOR=1.")
@click.option(
    "--origin",
    metavar="ORIGIN",
    callback=_checked(check_origin),
    help="The origin of the pages that read the service, https://www.example, if it is another one.",
)
@click.option("--quick", is_flag=True, help="Leave out all that takes longer than some 15 s.")
@click.option(
    "--wait",
    metavar="S",
    type=click.FloatRange(5, LONGEST_WAIT),
    default=LONGEST_WAIT,
    show_default=True,
    help="Seconds that streams are watched.",
)
@click.option("--proxy", type=click.Choice([*NAMES]), help="The proxy in front, if it is not recognised.")
@click.option("--json", "as_json", is_flag=True, help='Print {"url", "ok", "findings", "measured"}.')
@click.option("--link", is_flag=True, help="Print the address of the page that does the same in a browser.")
def doctor(
    url: str,
    key: str | None,
    origin: str | None,
    quick: bool,
    wait: float,
    proxy: str | None,
    as_json: bool,
    link: bool,
) -> None:
    """Find out what is broken between here and the service at URL, and how to mend it.

    URL is the service's prefix, such as https://push.example/sse. The command connects as browsers do, for some 100 s,
    and sends no events to anybody. The exit status is 0 if there is no fault, though there may be warnings, 1 if there
    is one, and 3 if the service cannot be reached, or does not let the doctor in.
    """
    of_doctor = import_module("sse.cli.doctor")
    if link:
        click.echo(of_doctor.page_link(url, key))
        return
    status = of_doctor.examine(
        url, key=key, origin=origin or "", wait=wait, quick=quick, proxy=proxy or "", as_json=as_json
    )
    raise click.exceptions.Exit(status)


@cli.command(with_appcontext=False)
@click.option(
    "--channel",
    "channels",
    multiple=True,
    callback=_checked(check_channel),
    help="A channel to follow; give it once for each.",
)
@click.option(
    "--url",
    metavar="URL",
    callback=_checked(check_url),
    help="The service's prefix, https://…/sse, for pages of other sites.",
)
def embed(channels: list[str], url: str | None) -> None:
    """Print the tag that puts this version of the script into a page, with the hash that browsers check."""
    click.echo(embed_tag(url or _app_service().config.prefix, list(dict.fromkeys(channels))))
    if not channels:
        click.echo(
            "this tag follows no channel by itself: give --channel, or call SSE(url, {channels}) in the page", err=True
        )


@cli.command(with_appcontext=False)
@click.option("--sub", required=True, metavar="NAME", help="The subject that the token is for.")
@click.option(
    "--subscribe",
    multiple=True,
    metavar="PATTERN",
    callback=_checked(check_pattern),
    help="Channels to read; give it once for each.",
)
@click.option(
    "--publish",
    "to_publish",
    multiple=True,
    metavar="PATTERN",
    callback=_checked(check_pattern),
    help="Channels to publish on; once for each.",
)
@click.option(
    "--presence",
    multiple=True,
    metavar="PATTERN",
    callback=_checked(check_pattern),
    help="Channels to ask who listens on; once for each.",
)
@click.option("--lifetime", metavar="S", type=click.IntRange(1), default=3600, show_default=True, help="Seconds.")
def token(sub: str, subscribe: list[str], to_publish: list[str], presence: list[str], lifetime: int) -> None:
    """Print a token, signed with SSE_SECRET. Keep the token secret."""
    if not (subscribe or to_publish or presence):
        raise click.UsageError("the token would allow nothing: give --subscribe, --publish or --presence")
    service = _app_service()
    if not service.config.secret:
        raise click.UsageError("SSE_SECRET is not set here: set it to the service's value")
    if lifetime > service.config.token_lifetime:
        raise click.UsageError(
            f"--lifetime is {lifetime}, but SSE_TOKEN_LIFETIME is {service.config.token_lifetime}: give a shorter one"
        )
    click.echo(service.tokens.make(sub, subscribe, to_publish, lifetime, presence))


@cli.command(with_appcontext=False)
@click.option("--sub", metavar="NAME", help="A subject: every token issued to it until now.")
@click.option(
    "--channel",
    metavar="CHANNEL",
    callback=_checked(check_channel),
    help="A channel: every right to it that was given until now.",
)
@click.option("--token", metavar="ID", help="A token: its id (the claim jti), or the whole token.")
def revoke(sub: str | None, channel: str | None, token: str | None) -> None:
    """End streams and waiting polls on every worker, refuse their tokens from now on, and print what is revoked.

    The exit status is 1 if this ends no stream or poll, such as for a public channel.
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
    """List the settings: name, value, default, help. Secrets are shown as a hash.

    The lines at the end tell whether requests may go past the app, by the fast lane. gunicorn's settings count too: the
    log at its start tells of both.
    """
    app = _app()
    service = _service_of(app)
    service.begin()  # warns of settings that came too late
    rows = [("NAME", "VALUE", "DEFAULT", "HELP"), *service.config.table()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())
    for key in service.keys:
        if key.name:
            click.echo(f"publishing key {key.name}  {key.shown}  {' '.join(key.patterns)}")
    rule = app.extensions["sse.lane"].rule
    reasons = rule.look()
    click.echo(f"fast lane  {'off, because ' + '; '.join(reasons) if reasons else 'on'}")
    if rule.passed_by:
        click.echo(f"requests pass by  {'; '.join(rule.passed_by)}")


def _app() -> Flask:
    return click.get_current_context().ensure_object(ScriptInfo).load_app()


def _app_service() -> Service:
    return _service_of(_app())


def _service_of(app: Flask) -> Service:
    service = app.extensions.get("sse")
    if not isinstance(service, Service):
        raise click.UsageError("this app has no SSE: call SSE(app), or give --url")
    return service


@contextlib.contextmanager
def _service(hint: str = ", or give --url to go over HTTP") -> Iterator[Service]:
    """Yield the app's service, over a store that the serving processes share, and close it afterwards."""
    service = _app_service()
    if not service.shared:
        raise click.UsageError(f"the memory store belongs to the serving process: set SSE_REDIS_URL as it has it{hint}")
    try:
        yield service
    finally:
        service.close()


@contextlib.contextmanager
def _reached(url: str | None, key: str | None) -> Iterator[Local | Remote]:
    """Yield the service at the URL; the app's own if there is no URL."""
    if url:
        yield Remote(url, key)
    else:
        with _service() as service:
            yield Local(service)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InvalidEvent(
            f"standard input is not UTF-8 at byte {error.start}",
            "POST it to …/publish/CHANNEL with its Content-Type, which makes it a data: URL",
        ) from None
