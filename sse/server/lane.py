"""The fast lane: requests for streams, polls and publishes that need neither Flask nor a greenlet of their own.

The event loop reads the bytes of a request, see `Rows.take_up`. One greenlet, the leader, takes the connections from
`Rows.ready`, one after the other: it recognises their requests, has them answered, and writes the answers. A request
that is not plain, or not for this lane, goes to gunicorn, together with all bytes that were read.

A connection is in `Handled` while it is in one of the states below. It has one holder, who alone may close or move it.

    state       holder                    when                               the next state
    ----------  ------------------------  ---------------------------------  ---------------------------------------
    ready       `Rows.ready`              a leader takes it                  led
    led         a leader                  its request is answered            ready if bytes have come behind it; else
                                                                             Parked, Sending or closed
                                          a stream or a poll begins          Streams or Polls
                                          its publish is submitted           submitted
                                          the request is not complete        Partial
                                          it is not for this lane            gunicorn's
                                          an exception strikes               closed
    submitted   `Publishes`               the store has an outcome           as after an answer; nothing more of this
                                                                             connection is parsed before

The code that a leader calls may wait, for the limits or the store. Then another leader, its successor, serves the rest:

    leader      known by                  when                               the next state
    ----------  ------------------------  ---------------------------------  ---------------------------------------
    idle        `_is_idle`                a connection becomes ready         leading
    leading     `_leader`                 no connection is ready             idle
                                          its request waits                  old; a successor starts, if a greenlet is
                                                                             free and a connection is ready
                                          it dies                            away; a successor starts as above
    old         `is_counted`              its request is done                leading, if it has no successor; else away.
                                                                             Its place is for a successor, or for a
                                                                             connection that waits for a greenlet

The event loop finds out that a leader waits: a callback that was armed before the request runs while the leader is
still inside. A leader that only lets others run for a moment is back before the callback runs a second time, and goes
on. Only old leaders take a place among the greenlets that answer requests.
"""

from __future__ import annotations

import os
import re
import time
from _socket import socket
from collections.abc import Callable
from functools import lru_cache
from socket import AF_UNIX, SOCK_STREAM
from typing import TYPE_CHECKING, Any, Final, Protocol

import gevent
from gevent.pool import Group
from gunicorn import SERVER  # type: ignore[import-untyped]

from sse.server.app_lane import AppLane, Reply
from sse.server.framing import LAST_CHUNK, date, framed
from sse.server.head import Rest
from sse.server.lane_switch import LaneSwitch
from sse.server.plain import Incomplete, Plain, Recogniser
from sse.server.publishes import Prepared, Publishes
from sse.server.rows import Rows, send
from sse.spread import PAUSE

if TYPE_CHECKING:  # the library is not patched yet, so the transports, which need the stores, may not be imported
    from sse.transports.poll import Poll
    from sse.transports.stream import Stream

_TURN: Final = 64  # requests of one turn
_TURN_SECONDS: Final = 0.005  # of one turn
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BLANKS: Final = " \t"
_VALUE: Final = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")


class Places(Protocol):
    """The places of the greenlets that answer requests."""

    greenlets: Group
    """The greenlets that are cut at the end of the worker."""

    @property
    def closes(self) -> bool:
        """True if connections close after their answers."""

    def is_busy(self) -> bool:
        """Return whether all places are taken."""

    def take_place(self) -> None:
        """Take a place for a greenlet."""

    def leave_place(self) -> None:
        """Give a place back to those who wait for one."""

    def count_request(self) -> None:
        """Count a request that is answered."""


class _Leader:
    """A greenlet that serves connections."""

    __slots__ = ("is_counted", "is_inside", "number")

    def __init__(self) -> None:
        self.is_counted = False  # it has a place, because it waits or has waited
        self.is_inside = False  # it is serving a connection
        self.number = 0  # of its requests


class FastLane:
    """The fast lane of one worker.

    :param lane: of the app. It decides about requests, and this one about connections.
    :param cfg: gunicorn's settings.
    :param log: gunicorn's log.
    """

    def __init__(self, rows: Rows, lane: AppLane, switch: LaneSwitch, places: Places, cfg: Any, log: Any) -> None:
        self._rows = rows
        self._lane = lane
        self._switch = switch
        self._places = places
        self._log = log
        self._recogniser = Recogniser(cfg, lane.route)
        self._publishes = Publishes(lane.publish_each, places.greenlets.spawn)
        self._leader: _Leader | None = None
        self._go_on: Callable[[], object]  # of the leader, while it is idle
        self._is_idle = False
        self._is_armed = False
        self._is_free = False
        self._is_stopped = False

    @property
    def needs_place(self) -> bool:
        """True if a leader is missing, because all greenlets were taken when the last one began to wait."""
        return self._leader is None and bool(self._rows.ready)

    def wake(self) -> None:
        """Have a leader serve the connections that are ready. If no greenlet is free, the next free one is for that."""
        if self._is_idle:
            self._is_idle = False
            gevent.get_hub().loop.run_callback(self._go_on)
        elif self.needs_place and not (self._places.is_busy() or self._is_stopped):
            self._leader = _Leader()
            self._places.greenlets.spawn(self._lead, self._leader)

    def look(self) -> None:
        """Look whether the lane is on, so that bytes are read for it."""
        self._rows.has_lane = not self._is_stopped and self._switch.is_free()

    def stop(self) -> None:
        """Start no more leaders. The caller kills the leaders that are running."""
        self._is_stopped = True
        self._rows.has_lane = False

    # The leaders

    def _lead(self, me: _Leader) -> None:
        try:
            while self._leader is me:
                if not self._rows.ready:
                    self._is_idle = True
                    self._go_on = gevent.getcurrent().switch
                    gevent.get_hub().switch()  # cheaper than an Event
                    continue
                self._take_turn(me)
                self._lead_again(me)
                if self._leader is me and self._rows.ready:
                    gevent.sleep(PAUSE)
        finally:
            if self._leader is me:
                self._leader, self._is_idle = None, False
            if me.is_counted:
                self._places.leave_place()
            else:
                self.wake()

    def _lead_again(self, me: _Leader) -> None:
        """Have an old leader that nobody has succeeded go on."""
        if self._leader is None and not self._is_stopped:
            self._leader = me
            me.is_counted = False
            self._places.leave_place()

    def _take_turn(self, me: _Leader) -> None:
        ready = self._rows.ready
        self._is_free = self._switch.is_free()
        ends = time.monotonic() + _TURN_SECONDS
        for _ in range(_TURN):
            fd = ready.popitem(last=False)[0]
            self._lead_one(me, fd)
            if self._leader is not me or not ready or time.monotonic() >= ends:
                break

    def _lead_one(self, me: _Leader, fd: int) -> None:
        me.number += 1
        me.is_inside = True
        if not self._is_armed:
            self._is_armed = True
            gevent.get_hub().loop.run_callback(self._look_at, me, 0)
        try:
            self._serve(fd)
        except (Exception, gevent.Timeout):  # noqa: BLE001 - logged; the others go on
            self._log.exception("a connection is cut after a fault")
            self._rows.give_up(fd)
        except BaseException:
            self._rows.give_up(fd)
            raise
        finally:
            me.is_inside = False

    def _look_at(self, me: _Leader, number: int) -> None:
        """Start a successor of a leader that waits. gevent's hub calls this, so the leader is not running."""
        if self._leader is not me or not me.is_inside:
            self._is_armed = False
        elif me.number != number:
            gevent.get_hub().loop.run_callback(self._look_at, me, me.number)
        else:
            self._is_armed = False
            me.is_counted = True
            self._places.take_place()
            self._leader = None
            self.wake()

    # One request

    def _serve(self, fd: int) -> None:
        rows = self._rows
        if not self._is_free:
            rows.give_back(fd)
            return
        data = rows.read_ahead[fd]
        try:
            peer = _peer_of(fd)
        except OSError:
            rows.close(fd)  # the peer has reset it
            return
        found = self._recogniser.read(data, peer)
        if found is None:
            rows.give_back(fd)
        elif isinstance(found, Incomplete):
            self._gather(fd, data, found.end)
        else:
            self._answer(fd, found, data[found.end :])

    def _gather(self, fd: int, data: bytes, end: int) -> None:
        gathered = Rest(end) if end else self._recogniser.head()
        gathered.add(data)
        if isinstance(gathered, Rest) or gathered.has_begun:
            self._rows.gather(fd, gathered, is_head=not end)
        else:
            self._rows.give_back(fd)  # an empty line, which may come long before a head

    def _answer(self, fd: int, plain: Plain, rest: bytes) -> None:
        request = self._lane.request(plain.environ)
        opening = b""
        try:
            reply = self._decide(plain, request)
            if hasattr(reply, "publications"):
                self._rows.keep(fd, rest)
                del plain.environ["wsgi.input"]  # the body has been read, and may be larger than what is to be stored
                self._publishes.submit(reply, self._publisher(fd, plain, request, reply))
                return
            if reply is not None and not isinstance(reply.body, bytes) and reply.body.is_stream:
                opening = _opening_of(reply.body)
        except Exception:  # noqa: BLE001 - logged
            reply = self._lane.failed(plain.route, request)
        if reply is None:
            self._rows.give_back(fd)
        else:
            self._send(fd, reply, rest, closes=plain.closes, opening=opening)

    def _decide(self, plain: Plain, request: Any) -> Any:
        """Return the answer to a request; None if it is gunicorn's. For a publish, return what is to be stored."""
        route, lane = plain.route, self._lane
        if route.kind == "publish":
            return None if self._publishes.is_full else lane.prepare(route, request)
        if lane.may_ask_app(route, request):
            return None
        plain.environ["sse.can_hand_off"] = True
        return lane.reply(route, request)

    def _publisher(self, fd: int, plain: Plain, request: Any, prepared: Prepared) -> Callable[[Any], None]:
        """Return the function that answers a publish once the store has an outcome. It does not wait."""

        def answer(outcome: Any) -> None:
            try:
                reply = self._lane.published(request, prepared, outcome)
                self._send(fd, reply, self._rows.take(fd), closes=plain.closes)
            except BaseException:
                self._rows.give_up(fd)
                raise

        return answer

    # The answers

    def _send(self, fd: int, reply: Reply, rest: bytes, *, closes: bool, opening: bytes = b"") -> None:
        """Send an answer, or have a row go on with it.

        :param opening: of a stream.
        """
        self._places.count_request()
        closes = closes or self._places.closes
        body = reply.body
        if isinstance(body, bytes):
            self._write(fd, _whole(reply, body, closes=closes), rest, closes=closes or reply.breaks_off)
        elif body.is_stream:
            self._begin_stream(fd, reply, opening, rest, closes=closes)
        else:
            self._begin_poll(fd, reply, rest, closes=closes)

    def _write(self, fd: int, data: bytes, rest: bytes, *, closes: bool) -> None:
        sent = send(os.write, fd, data)
        if sent == len(data):
            self._rows.answered(fd, rest, closes=closes)
        elif sent < 0:
            self._rows.close(fd)
        else:
            self._rows.send_unsent(fd, memoryview(data)[sent:], closes=closes, read_ahead=rest)

    def _begin_stream(self, fd: int, reply: Reply, opening: bytes, rest: bytes, *, closes: bool) -> None:
        # As in `Responder`: a request that has come behind this one is never answered, and with `end=cut` the head does
        # not say that the connection closes.
        stream: Stream = reply.body
        has_ended, is_taken_over = stream.ended, False
        is_cut = has_ended and stream.cuts
        closes = closes or not (has_ended or stream.cuts)
        try:
            head = _head(reply.status, reply.headers, closes, chunked=True)
            last = LAST_CHUNK if has_ended and not is_cut else b""
            data = b"%bDate: %b\r\n\r\n%b" % (head, date(), framed(opening, last))
            if not has_ended and (sent := send(os.write, fd, data)) >= 0:
                self._rows.take_over_stream(fd, stream, chunked=True, unsent=memoryview(data)[sent:])
                is_taken_over = True
        finally:
            if not is_taken_over:
                stream.log_end()
                stream.close()
        # The log may wait. So the connection is given up only now, and its number is no other client's meanwhile.
        if has_ended:
            self._write(fd, data, rest, closes=closes or is_cut)
        elif not is_taken_over:
            self._rows.close(fd)

    def _begin_poll(self, fd: int, reply: Reply, rest: bytes, *, closes: bool) -> None:
        poll: Poll = reply.body
        is_taken_over = False
        try:
            self._rows.take_over_poll(fd, poll, _head(reply.status, reply.headers, closes), rest)
            is_taken_over = True
        finally:
            if not is_taken_over:
                poll.close()


def _opening_of(stream: Stream) -> bytes:
    """Open a stream. Return the first bytes of its body. This may wait for the store."""
    try:
        return stream.begin()
    except BaseException:
        stream.close()
        raise


def _peer_of(fd: int) -> Any:
    """Return the address of a connection's other end.

    :raises OSError: if the peer has reset the connection.
    """
    connection = socket(AF_UNIX, SOCK_STREAM, 0, fd)  # the family whose addresses are longest
    try:
        return connection.getpeername()
    finally:
        connection.detach()


def _whole(reply: Reply, body: bytes, *, closes: bool) -> bytes:
    head = _head(reply.status, reply.headers, closes, chunked=reply.breaks_off)
    return b"%bDate: %b\r\n\r\n%b" % (head, date(), framed(body) if reply.breaks_off else body)


@lru_cache(maxsize=512)
def _head(status: str, headers: tuple[tuple[str, str], ...], closes: bool, *, chunked: bool = False) -> bytes:
    """Return the head of an answer as gunicorn would write it, without the date and the final empty line.

    :raises ValueError: for a header that gunicorn would refuse.
    """
    for name, value in headers:
        if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise ValueError(f"the header {name!a} has a character that no header may have")
    lines = [
        f"HTTP/1.1 {status}\r\nServer: {SERVER}\r\nConnection: {'close' if closes else 'keep-alive'}\r\n",
        *[f"{name}: {value.strip(_BLANKS)}\r\n" for name, value in headers],
        "Transfer-Encoding: chunked\r\n" if chunked else "",
    ]
    return "".join(lines).encode("latin-1")
