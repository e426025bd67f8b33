"""Runs: iterables of the app that end, each of which a thread of its own writes; and the runs' ends in this process.

A run of this process is in one of these states. Its `Writer` has states of its own, which say what the store knows.

| state    | what happens                                  | next    | what is stored                     |
|----------|-----------------------------------------------|---------|------------------------------------|
| none     | `begin`, and the store begins the run         | running | lease, marker, ring                |
| none     | `begin`, and a run is or was there            | none    | nothing; the iterable is closed    |
| running  | the iterable gives a value                    | running | a piece or an event                |
| running  | it comes to its end                           | ended   | the end `done`                     |
| running  | it raises, or gives a value that is no event  | ended   | the end `failed`; the log says why |
| running  | `stop`, in any process                        | closing | the end `stopped`, by `stop`       |
| running  | the writer is over for another reason         | closing | see `Writer`                       |
| running  | `finish`, and its time is over                | closing | the end `interrupted`              |
| closing  | the iterable is closed                        | ended   | nothing                            |
| ended    |                                               |         | the keeper does not know it        |

- If `begin` is repeated by two processes at once, the store begins one run, and the other process gets False.
- If the reply to `begin` is lost, it is repeated with its token, which begins the run once. If it fails for good, the
  run may have begun: nobody renews its lease, and it ends `lost`.
- A frozen process that wakes confirms its lease before it asks the iterable for a value.
- An iterable that waits for its next value is interrupted at once where `breaker` can do that, and closed at its next
  value elsewhere. Its end is stored before that, so that no client waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from sse.errors import RunFailed, RunRefused, SSEError, Stopped, StoreUnavailable, Unavailable
from sse.event import DEFAULT_TYPE, EndReason
from sse.log import warn
from sse.spread import Pauses
from sse.stores import Store
from sse.stores.leases import Start
from sse.transports.items import Breaker
from sse.work.keeper import Keeper
from sse.work.writer import MakeEvent, Writer

_log = logging.getLogger("sse")
_CLOSING_SECONDS: Final = 1.2  # for which `finish` waits for runs to end that it has interrupted; of 1.5 s that it has
_NOTHING: Final = object()


class Runs:
    """The runs of one process.

    :param write_every: seconds for which pieces are gathered.
    :param max_bytes: the most bytes of one piece.
    :param answering_since: returns since when the store has answered without interruption, by `time.monotonic`.
    """

    def __init__(
        self,
        store: Store,
        *,
        write_every: float,
        max_bytes: int,
        answering_since: Callable[[], float],
    ) -> None:
        self._store = store
        self._write_every = write_every
        self._max_bytes = max_bytes
        self._keeper = Keeper(store, answering_since)
        self._is_closed = False

    @property
    def is_busy(self) -> bool:
        """True if this process has runs that have not ended."""
        return bool(self._keeper.writers)

    def begin(
        self,
        channel: str,
        iterable: Iterable[object],
        make_event: MakeEvent,
        *,
        restart: bool,
        context: Callable[[], AbstractContextManager[object]],
        breaker: Breaker | None = None,
        daemon: bool = False,
    ) -> bool:
        """Begin a run in a thread of its own, and return True; return False if a run is or was there.

        :param context: the context in which the iterable runs.
        :param breaker: called in that thread.
        :param daemon: the process does not wait for the run when it exits.
        :raises RunRefused: if the channel has ordinary events.
        :raises StoreUnavailable: if the run may not have begun.
        :raises RuntimeError: if the process cannot start a thread now. The run has ended as `failed`.
        """
        iterator = iter(iterable)
        try:
            writer = self._open(channel, make_event, restart)
        except (RunRefused, RuntimeError):
            _close(iterator, channel)
            raise
        if writer is None:
            _close(iterator, channel)
            return False
        run = _Run(writer, iterator, context, breaker, partial(self._keeper.remove, writer))
        try:
            threading.Thread(target=run.work, name="sse-run", daemon=daemon).start()
        except RuntimeError:
            self._keeper.remove(writer)
            writer.end("failed")
            _close(iterator, channel)
            raise
        return True

    @contextlib.contextmanager
    def writing(self, channel: str, make_event: MakeEvent, *, restart: bool) -> Iterator[Writer]:
        """Begin a run and yield its writer. The end of the block is the run's.

        An error in the block makes it `failed`, Ctrl-C `stopped`, and an exit of the process or greenlet
        `interrupted`; all of them go on. So does a `Stopped` or `RunFailed` of the writer, whose end is stored already.

        :raises RunRefused: if a run is or was there, or if the channel has ordinary events.
        :raises StoreUnavailable: if the run may not have begun.
        """
        writer = self._open(channel, make_event, restart)
        if writer is None:
            raise RunRefused(
                f"channel {channel} has or had a run",
                "give each run a channel of its own, or restart=True, as for a task that is delivered again",
                code="run_exists",
            )
        try:
            yield writer
        except BaseException as error:
            with contextlib.suppress(SSEError):  # the block's own error says more
                writer.end(_reason_of(error))
            raise
        else:
            writer.end("done")
        finally:
            self._keeper.remove(writer)

    def stop(self, channel: str) -> bool:
        """Store the end `stopped` of a run in any process; return False if there is no live run.

        :raises StoreUnavailable: if it may not have been stored.
        """
        writers = [writer for writer in self._keeper.writers if writer.channel == channel]  # not one that begins later
        ended = self._store.leases.end(channel, "stopped") is not None
        if ended:
            for writer in writers:
                writer.lose()
        return ended

    def orphaned(self, channel: str) -> None:
        """Have the end `lost` stored for a run that nobody holds, see `Keeper`. This does not wait."""
        self._keeper.orphaned(channel)

    def finish(self, seconds: float) -> None:
        """Give the runs of this process so many seconds to end by themselves, and end the rest as `interrupted`.

        Without runs, this returns at once.
        """
        self._keeper.wait_until_idle(seconds)
        left = self._keeper.writers
        if not left:
            return
        enders = [threading.Thread(target=_interrupt, args=(writer,), name="sse-end", daemon=True) for writer in left]
        end = time.monotonic() + _CLOSING_SECONDS
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join(max(end - time.monotonic(), 0))
        self._keeper.wait_until_idle(min(end - time.monotonic(), _CLOSING_SECONDS / 3))
        for writer in self._keeper.writers:
            writer.abandon()  # if its end is not stored by now, the store is away: others will find it `lost`
            self._keeper.remove(writer)

    def close(self) -> None:
        """End all runs of this process now, as `interrupted`. No run begins afterwards."""
        self._is_closed = True
        self.finish(0)

    def _open(self, channel: str, make_event: MakeEvent, restart: bool) -> Writer | None:
        """Begin a run in the store; return its writer, or None if a run is or was there."""
        self._check_open()
        token = secrets.token_hex(16)
        asked_at = time.monotonic()
        started = self._start(channel, token, restart)
        if started == "refused":
            raise RunRefused(
                f"channel {channel} has events that were published on it, so it cannot have a run",
                "use a channel for the run alone, such as one with a random part in its name",
            )
        if started == "exists":
            return None
        writer = Writer(
            self._store,
            channel,
            token,
            every=self._write_every,
            max_bytes=self._max_bytes,
            make_event=make_event,
            renewed_at=asked_at,
        )
        try:
            self._keeper.add(writer)
        except RuntimeError:
            writer.end("failed")
            raise
        try:
            self._check_open()
        except Unavailable:  # it was closed meanwhile, so nobody would end this run
            self._keeper.remove(writer)
            writer.abandon()
            raise
        return writer

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable("this process is ending, so no run can begin in it", "try again elsewhere")

    def _start(self, channel: str, token: str, restart: bool) -> Start:
        try:
            return self._store.leases.start(channel, token, restart=restart)
        except StoreUnavailable:  # the reply may be lost, so the same once more
            return self._store.leases.start(channel, token, restart=restart)


class _Run:
    """One iterable, and the thread that writes its values."""

    def __init__(
        self,
        writer: Writer,
        iterator: Iterator[object],
        context: Callable[[], AbstractContextManager[object]],
        breaker: Breaker | None,
        forget: Callable[[], object],
    ) -> None:
        self._writer = writer
        self._iterator = iterator
        self._context = context
        self._breaker = breaker
        self._forget = forget
        self._awaits_value = False

    def work(self) -> None:
        """Write the values of the iterable and the end of the run. This is the whole life of the thread."""
        writer = self._writer
        try:
            with self._context():
                if self._breaker:
                    throw = self._breaker()
                    writer.when_gone = lambda: throw(self._may_be_cut)
                try:
                    reason = self._write_all()
                finally:
                    _close(self._iterator, writer.channel)
            writer.end(reason)
        except Stopped:
            pass  # the end is stored, by whoever stopped the run
        except RunFailed as error:
            warn("the run of channel %s has failed: %s", writer.channel, error)
        except StoreUnavailable as error:
            warn("the end of channel %s is not stored: %s", writer.channel, error)
        except BaseException as error:
            # The app's context has failed, or the thread is being ended.
            with contextlib.suppress(SSEError):
                writer.end(_reason_of(error))
            if not isinstance(error, Exception):
                raise
            _log.exception("the run of channel %s has failed", writer.channel)
        finally:
            self._forget()

    def _write_all(self) -> EndReason:
        """Write each value; return the reason of the end.

        :raises Stopped: if the run is over before the iterable has come to its end.
        :raises RunFailed: if the store has ended the run as failed.
        """
        writer, pause = self._writer, Pauses()
        try:
            while True:
                writer.confirm()
                value = self._next()
                if value is _NOTHING:
                    return "done"
                if isinstance(value, str):
                    writer.write(value)
                else:
                    writer.publish(value, DEFAULT_TYPE)
                pause()
        except (Stopped, RunFailed, StoreUnavailable):
            if not writer.is_over:
                _log.exception("the run of channel %s has failed", writer.channel)
                return "failed"  # the app's own call of the service has raised this
            raise
        except GeneratorExit:
            writer.confirm()  # raises the reason why the run was interrupted
            return "interrupted"
        except Exception:  # noqa: BLE001 - logged
            _log.exception("the run of channel %s has failed", writer.channel)
            return "failed"

    def _may_be_cut(self) -> bool:
        """Return whether the wait for a value is to be cut now: once only, because a `finally` may wait, too."""
        if not self._awaits_value:
            return False
        self._awaits_value = False
        return True

    def _next(self) -> object:
        self._awaits_value = True
        try:
            return next(self._iterator, _NOTHING)
        finally:
            self._awaits_value = False


def _interrupt(writer: Writer) -> None:
    """Store the end `interrupted`, and have the iterable closed."""
    with contextlib.suppress(SSEError):
        writer.end("interrupted")
    writer.when_gone()


def _reason_of(error: BaseException) -> EndReason:
    if isinstance(error, Exception):
        return "failed"
    return "stopped" if isinstance(error, KeyboardInterrupt) else "interrupted"


def _close(iterator: Iterator[object], channel: str) -> None:
    """Close a generator, or any other iterator that can be closed."""
    close = getattr(iterator, "close", None)
    if not callable(close):
        return
    try:
        close()
    except Exception:  # noqa: BLE001 - logged
        _log.exception("the iterable of channel %s could not be closed", channel)
