"""Runs a command and writes its output to a channel, line by line."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import IO, Final

import click

from sse.cli.ending import StopSignals
from sse.errors import RunFailed, Stopped
from sse.work.writer import Writer

_LONGEST_LINE: Final = 65_536  # bytes; a longer line is written in parts
_PATIENCE: Final = 5.0  # seconds between SIGTERM and SIGKILL
_INTERRUPTED: Final = 130  # the exit status of a command that Ctrl-C has ended, as in a shell
_NOT_FOUND: Final = 127


class Failed(Exception):
    """The command has ended with another status than 0, so its run is `failed`."""


def pipe(writing: AbstractContextManager[Writer], command: Sequence[str], *, with_errors: bool) -> int:
    """Run a command, write each line of its output as a piece, and return the exit status for this process.

    :param writing: begins the run, and ends it.
    :param with_errors: write the lines of standard error, too.
    """
    status = 1
    try:
        with StopSignals(), writing as out, _started(command, out, with_errors) as process:
            assert process.stdout
            for text in _lines(process.stdout):
                out.write(text)
            out.flush()
            status = _status(process.wait())
            if status:
                raise Failed
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Stopped as error:
        click.echo(f"the command is stopped: {error.message}", err=True)
        return _status(-signal.SIGTERM)
    except RunFailed as error:
        click.echo(str(error), err=True)
        return status or 1
    except Failed:
        pass
    return status


@contextlib.contextmanager
def _started(command: Sequence[str], out: Writer, with_errors: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a process group of its own, and end the whole group with the block."""
    try:
        process = subprocess.Popen(  # noqa: S603 - to run this command is what the user asks for
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if with_errors else None,
            bufsize=0,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            process_group=0,
        )
    except OSError as error:
        click.echo(f"{command[0]}: {error.strerror}", err=True)
        raise click.exceptions.Exit(_NOT_FOUND) from None
    # A command that says nothing would not notice otherwise that a page has stopped the run.
    out.when_gone = threading.Thread(target=_end, args=(process,), name="sse-end-command", daemon=True).start
    try:
        out.confirm()
        yield process
    finally:
        _end(process)
        if process.stdout:
            process.stdout.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a command and its children to end. After 5 s, or at a second Ctrl-C, kill them."""
    if process.poll() is not None:
        return
    try:
        _signal(process, signal.SIGTERM)
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
    except KeyboardInterrupt:
        _signal(process, signal.SIGKILL)
        raise


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # they have ended meanwhile
        os.killpg(process.pid, number)


def _lines(source: IO[bytes]) -> Iterator[str]:
    """Yield each line with its line end, as soon as it is there. Bytes that are not UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pending = b""
    while read := os.read(source.fileno(), _LONGEST_LINE):
        *lines, pending = (pending + read).split(b"\n")
        if lines:
            yield "".join(decoder.decode(line + b"\n") for line in lines)
        if len(pending) >= _LONGEST_LINE:
            yield decoder.decode(pending)
            pending = b""
    if rest := decoder.decode(pending, final=True):
        yield rest


def _status(returned: int) -> int:
    """Return the exit status for a command's: 128 plus the signal's number if a signal has ended it, as in a shell."""
    return returned if returned >= 0 else 128 - returned
