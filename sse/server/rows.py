"""Rows: which of the connections that were handed off wait together, and what each of them gets next.

A connection is a file descriptor in a row, and no greenlet. A stream or a poll decides what is said, and `life` when it
ends; this module decides to whom it goes. Nothing here waits or knows an event loop: see `Effects`.

A connection is in one row at a time, or has a greenlet:

    row         what it waits for          what happens                     where it goes
    ----------  -------------------------  -------------------------------  ----------------------------------------
    Parked      its next request           bytes come                       a greenlet, or `waiting` for one
                                           its time is over, or room is     closed at once
                                           needed
    Streams     an event                   its peer goes, or it ends        doomed: its number is free between rounds
    Polls       an event                   the answer goes out whole        Parked; a greenlet, if its next request
                                                                            has come; doomed, if that was its last
                                           a part of the answer goes out    Sending
                                           its peer goes                    doomed
    Sending     its client to take more    the rest goes out                as from Polls
                                           it takes nothing for 20 s        doomed

A row of streams is in one of these states. The loop's rounds call `serve` and `check`, its events `heard`, and a
greenlet of its own `step`; nothing else brings a row to another state, and all but `step` may write:

    state       known by                   what happens                     the next state
    ----------  -------------------------  -------------------------------  ----------------------------------------
    at rest     none of the following      it is called                     at rest, once all have been told
                                           the hub has not all at hand      asking
                                           one takes only a part of it, or  that one alone: stalled
                                           of its permit's notice
                                           another at rest has told the     one row of both
                                           same, and stands where it does
                                           a goodbye is taken in part       that one alone: ending
    asking      `asks`                     the store answers                holding; detached, if all have left
                                           it is called                     asking: it is called once it has told
    holding     `chunk` is not None        it is served                     at rest, and called once more
    stalled     `rest`                     the rest goes out                at rest, and called
                                           nothing is taken for 20 s        doomed
    ending      `rest`, and `ends`         the rest goes out                doomed
                                           nothing is taken for 20 s        doomed
    any         -                          one is due                       as `life` says: that one alone is told
                                                                            goodbye and doomed, or cut, or goes on

A row of polls waits; once it is behind, it `asks` for its answer, and from then on no other poll joins it.

A push to a long row pauses, so that others have their turn. In a pause there may happen:

    end         The connection leaves its row, and gives back its place. The push may still write to its number, which
                nobody else has before the round is over. If that write is taken in part, nothing comes of it.
    stall       Only the push itself finds that a connection takes no more. A connection that stalled before may catch
                up: its row is called, and is served in the next round.
    join        A new connection has a row of its own, and is served in the next round. Two rows become one only where
                `serve` begins or ends.
    revoke      The connection is due in the next round. It gets this push, whose events came before that.
    drain       As `revoke`. A connection that comes now is due at once.
    call        The row is served again in the next round.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from sse.server.agenda import Agenda
from sse.server.effects import Calls, Effects, Interest
from sse.server.framing import LAST_CHUNK, date, framed
from sse.server.handed_off import HandedOff
from sse.server.wheel import slot_of
from sse.small_set import SmallSet, added, removed
from sse.spread import PAUSE, spread
from sse.transports.life import STALLED_AFTER, Before, CloseReason, Handed, Next, decide

if TYPE_CHECKING:
    from sse.access.permit import Permit
    from sse.transports.poll import Poll
    from sse.transports.stream import Stream

EARLY: Final = 8192
"""Bytes that a client may send behind a poll that waits."""

_TURN: Final = 128  # connections written to, some 1 ms, before the clock is looked at
_MOST_UNTAKEN: Final = 64 << 20  # bytes of answers that clients have asked for and do not take
_READ: Final = 4096  # bytes that are read at once
_FIRST_REQUEST: Final = 20.0  # seconds that a new client has to begin a request
_SILENT: Final = 1.0  # seconds after which a new client has not sent its request with the connection
_LAST_REQUEST: Final = 1.0  # seconds that a client has to send one more when this process ends
_NOTHING: Final = memoryview(b"")


class Unsent(NamedTuple):
    """The part of an answer that its client has not taken yet, and whether the connection ends after it.

    `own` is the size of the answer where it is for this client alone.
    """

    data: memoryview
    closes: bool
    own: int = 0


def send(write: Callable[[int, bytes | memoryview], int], fd: int, data: bytes | memoryview) -> int:
    """Return how many bytes the connection takes now; -1 where it is broken.

    :param write: as `os.write`.
    """
    try:
        return write(fd, data)
    except BlockingIOError:
        return 0
    except OSError:
        return -1


class Row:
    """Connections that wait for the same: of each no more than its number. Only `Rows` adds and removes them."""

    __slots__ = ("asks", "fds", "key", "rows")
    interest: Interest = "end"
    waits = True  # for events, so that its connections are told when this process ends

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.fds: SmallSet[int] = ()  # in the order in which they came
        self.key: Hashable = None  # under which others find it, to join it
        self.asks = False  # a greenlet takes what has come, and may be waiting for the store

    def __call__(self) -> None:
        """Have it served soon: there may be something to tell. The hub calls this, and holds its lock."""
        self.rows.agenda.serve_soon(self)

    def serve(self) -> None:
        """Tell what there is to tell."""

    def heard(self, fd: int) -> None:
        """Take note that a peer has said something, or takes more again. This must not wait."""

    def parted(self, fd: int) -> None:
        """Take note that a peer will say nothing more. This must not wait."""
        self.rows.end(fd)

    def decide(self, fd: int) -> Next:
        """Return what is to happen to a connection now."""
        return self.rows.decide(fd, "nothing")

    def check(self, fd: int) -> None:
        """End a connection whose time is over, or have it looked at again."""

    def on_removed(self, fd: int) -> None:  # noqa: ARG002 - for `Sending`
        """Give back the place of a connection that has just left, and is in no other row."""
        if self.fds:
            self.release()
        elif not self.asks:  # else the body is needed a little longer
            self.detach()

    def asked(self) -> None:
        """Go on, now that the thing it had to wait for is there."""
        self.asks = False
        if self.fds:
            self.rows.agenda.serve_soon(self)  # for what has come meanwhile, too
        else:
            self.detach()

    def release(self) -> None:
        """Let the hub know that one connection fewer is here."""

    def detach(self) -> None:
        """Let the hub know that the last connection is gone."""

    def end_all(self) -> None:
        """End all connections of this row, without a word."""
        for fd in list(self.fds):
            self.rows.end(fd)


class Streams(Row):
    """Streams that have been told the same: a push is encoded once, and costs one write for each."""

    __slots__ = ("chunk", "chunked", "ends", "last_progress", "slot", "stream", "unsent")
    interest = "input"

    def __init__(self, rows: Rows, stream: Stream, *, chunked: bool) -> None:
        super().__init__(rows)
        self.stream = stream
        self.chunked = chunked
        self.chunk: bytes | None = None  # from the store
        # The part of the last write that has not gone out: then this row is of one, until that has caught up.
        self.unsent = _NOTHING
        self.last_progress = 0.0
        self.ends = False  # it is not told more than the rest
        self.slot = 0  # of the wheel, in which it is looked at next

    @property
    def due(self) -> float:
        """When it has something to say, or has stalled for too long, if nothing happens before."""
        return self.last_progress + STALLED_AFTER if self.unsent else self.stream.due

    @property
    def alike(self) -> Hashable:
        """Equal for rows that can become one where they stand at the same place; None if this row is not at rest."""
        stream = self.stream.alike if self._is_told else None
        return None if stream is None else (*cast("tuple[Hashable, ...]", stream), self.chunked)

    @property
    def _is_told(self) -> bool:
        """True if all that was taken has gone out."""
        return not (self.unsent or self.asks or self.chunk is not None)

    def serve(self) -> None:
        if self.unsent:
            if decide(self.rows.effects.clock(), math.inf, last_progress=self.last_progress, before="unsent").cuts:
                self.end_all()
            return
        if self.asks or (self.chunk is None and self.rows.merge(self)):
            return
        chunk, self.chunk = self.chunk, None
        has_asked = chunk is not None
        if chunk is None:
            chunk = self.stream.quick(self.rows.agenda.shared)
        if chunk is None:
            self.asks = True
            self.rows.effects.ask(self.step)
        elif self.stream.ended:
            self._end(chunk)
        else:
            self._tell(chunk)
            if has_asked and not self.stream.waits:
                self.rows.agenda.serve_soon(self)  # there may be more: a call that came while it asked was passed over
            elif self.fds and not self.rows.merge(self):
                self.set_timer()

    def step(self) -> None:
        """Get what needs more than the hub has at hand, which may take its time. The next round tells it."""
        try:
            if self.fds:
                self.chunk = self.stream.step()
        except BaseException:
            self.end_all()
            raise
        finally:
            self.asked()

    def set_timer(self) -> None:
        """Have this row served when it is due, if it is not to be looked at before that."""
        self.slot = self.rows.effects.timer(self, self.due, self.slot)

    def heard(self, fd: int) -> None:
        if not self._listens(fd):
            self.rows.end(fd)
        elif self.unsent:
            self._send_unsent(fd)

    def decide(self, fd: int) -> Next:
        before: Before = "unsent" if self.unsent else "nothing" if self._is_told else "events"
        return self.rows.decide(
            fd, before, last_progress=self.last_progress if self.unsent else math.inf, has_notice=True
        )

    def check(self, fd: int) -> None:
        decided = self.decide(fd)
        if decided.cuts:
            self.rows.end(fd)
        elif decided.reason:
            self._say_goodbye(fd, decided.reason)
        else:
            self.rows.set_end(fd, decided.until)
            permit = self.rows.handed_off.permit(fd)
            if decided.tells and permit:
                self._tell_one(fd, self.stream.notice(permit))

    def release(self) -> None:
        self.stream.release()

    def detach(self) -> None:
        self.stream.detach()

    def _tell(self, chunk: bytes) -> None:
        if not chunk:
            return
        self._push(framed(chunk) if self.chunked else chunk)
        self.stream.written(self.rows.effects.clock())
        if self.stream.is_bare and self.alike != self.key:
            self.rows.joinable.forget(self)  # the first event has made it like other rows than before

    def _push(self, data: bytes) -> None:
        # The cost of a push: as little as can be for each connection.
        size = len(data)
        write, pause = self.rows.effects.write, self.rows.effects.pause
        fds = list(self.fds)
        for start in range(0, len(fds), _TURN):
            for fd in fds[start : start + _TURN]:
                try:
                    sent = write(fd, data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self.rows.end(fd)
                    continue
                if sent != size and fd in self.fds:
                    self._stall(fd, memoryview(data)[sent:])
            pause()

    def _end(self, chunk: bytes) -> None:
        """Give all connections the end of the stream: a pause of its own before each comes back, unless it is lost."""
        reason = None if self.stream.lost else self.stream.reason
        for fd in list(self.fds):
            if reason:
                self._say_goodbye(fd, reason)
            else:
                self._tell_one(fd, chunk, last=True)

    def _say_goodbye(self, fd: int, reason: CloseReason) -> None:
        self._tell_one(fd, self.stream.goodbye(reason, self.rows.handed_off.permit(fd)), last=True)

    def _tell_one(self, fd: int, data: bytes, *, last: bool = False) -> None:
        if self.chunked and data:  # a chunk of no bytes would be the last one
            data = framed(data, LAST_CHUNK if last and not self.stream.cuts else b"")
        sent = send(self.rows.effects.write, fd, data)
        if 0 <= sent < len(data):
            self._stall(fd, memoryview(data)[sent:]).ends = last
        elif sent < 0 or last:
            self.rows.end(fd)

    def _stall(self, fd: int, rest: memoryview) -> Streams:
        """Have a connection that takes no more stand apart, with the bytes that it has not got yet."""
        row = self
        if len(self.fds) > 1:
            row = Streams(self.rows, self.stream.split(), chunked=self.chunked)
            self.rows.move(fd, self, row)
            row.stream.subscriber.wake_by(row)
        self.rows.joinable.forget(row)
        row.unsent, row.last_progress = rest, self.rows.effects.clock()
        self.rows.effects.change(fd, "input or room")
        row.set_timer()
        return row

    def _send_unsent(self, fd: int) -> None:
        sent = send(self.rows.effects.write, fd, self.unsent)
        if sent > 0:
            self.unsent, self.last_progress = self.unsent[sent:], self.rows.effects.clock()
        if sent < 0 or (self.ends and not self.unsent):
            self.rows.end(fd)
        elif not self.unsent:
            self.unsent = _NOTHING
            self.rows.effects.change(fd, self.interest)
            self.stream.written(self.rows.effects.clock())
            self.rows.agenda.serve_soon(self)

    def _listens(self, fd: int) -> bool:
        """Return whether the peer is there still. The bytes that it says now are passed over."""
        try:
            return bool(self.rows.effects.read(fd, _READ))
        except BlockingIOError:
            return True
        except OSError:
            return False


class Polls(Row):
    """Polls that wait at the same place, and have the same head: they get the same answer."""

    __slots__ = ("head", "poll")
    interest = "input"

    def __init__(self, rows: Rows, poll: Poll, head: bytes) -> None:
        super().__init__(rows)
        self.poll = poll
        self.head = head

    def serve(self) -> None:
        if not self.asks and self.poll.is_behind:
            self.asks = True
            self.rows.effects.later(self.poll.GATHER, self.answer)

    def heard(self, fd: int) -> None:
        # The end of a connection may never arrive behind bytes that nobody reads, so they are read, and kept.
        try:
            data = self.rows.effects.read(fd, _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.rows.end(fd)
            return
        early = self.rows.early[fd] = self.rows.early.get(fd, b"") + data
        if len(early) > EARLY:
            self.rows.effects.change(fd, "end")
            if not self.asks or self.decide(fd).ends:  # else the answer is under way
                self._reply_nothing(fd)

    def decide(self, fd: int) -> Next:
        return self.rows.decide(fd, "answer" if self.asks else "nothing")

    def check(self, fd: int) -> None:
        decided = self.decide(fd)
        if decided.ends:
            self._reply_nothing(fd)
        else:
            self.rows.set_end(fd, decided.until)

    def release(self) -> None:
        self.poll.release()

    def detach(self) -> None:
        self.poll.detach()

    def answer(self) -> None:
        """Answer all connections, which may take its time."""
        try:
            answer = self.poll.answer() if self.fds else None
        except Exception as error:  # noqa: BLE001 - told by the log, and to the client when it asks again
            self.rows.effects.warn("polls are to ask again: %s", error)
            answer = self.poll.nothing
        self.rows.joinable.forget(self)  # who comes now waits for the next
        try:
            if answer is not None:
                self._reply_all(answer)
        finally:
            self.asked()

    def _reply_all(self, answer: bytes) -> None:
        rows = self.rows
        draining, data = rows.draining, self._whole(answer)
        for number, fd in enumerate(list(self.fds), 1):
            if draining is not rows.draining:
                draining, data = rows.draining, self._whole(answer)
            if fd in self.fds:
                if rows.handed_off.is_over(fd):
                    self._reply_nothing(fd)
                else:
                    self._reply(fd, data)
            if number % _TURN == 0:
                rows.effects.sleep(PAUSE)

    def _reply_nothing(self, fd: int) -> None:
        # It says the place where the poll began, and asked from there again, it is told all the rest.
        self._reply(fd, self._whole(self.poll.nothing))

    def _whole(self, body: bytes) -> bytes:
        head = self.head
        if self.rows.draining:
            head = head.replace(b"\r\nConnection: keep-alive\r\n", b"\r\nConnection: close\r\n", 1)
        return b"%bDate: %b\r\nContent-Length: %d\r\n\r\n%b" % (head, date(), len(body), body)

    def _reply(self, fd: int, data: bytes) -> None:
        closes = self.rows.draining or b"\r\nConnection: close\r\n" in self.head
        sent = send(self.rows.effects.write, fd, data)
        if sent < 0 or (closes and sent == len(data)):
            self.rows.end(fd)
        elif sent == len(data):
            self.rows.after_answer(fd)
        else:
            self.rows.finish(fd, Unsent(memoryview(data)[sent:], closes))


class Sending(Row):
    """Connections whose client does not take all of an answer at once: each is sent the rest as it takes more."""

    __slots__ = ("_own", "_unsent")
    interest = "room"
    waits = False

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self._unsent: dict[int, Unsent] = {}
        self._own = 0  # bytes of all answers here that are for one client alone

    @property
    def until(self) -> float:
        """When a connection is cut whose client takes nothing from now on."""
        return self.rows.effects.clock() + STALLED_AFTER

    def begin(self, fd: int, rest: Unsent) -> None:
        """Send a connection of this row the rest of its answer.

        If clients leave too much untaken, the connection that has waited longest is cut.
        """
        self._unsent[fd] = rest
        self._own += rest.own
        while self._own > _MOST_UNTAKEN:
            self.rows.end(next(other for other in self.fds if self._unsent[other].own))

    def heard(self, fd: int) -> None:
        rest = self._unsent[fd]
        sent = send(self.rows.effects.write, fd, rest.data)
        if sent < 0 or (rest.closes and sent == len(rest.data)):
            self.rows.end(fd)
        elif sent == len(rest.data):
            self.rows.after_answer(fd)
        elif sent:
            self._unsent[fd] = rest._replace(data=rest.data[sent:])
            self.rows.set_end(fd, self.until)

    def check(self, fd: int) -> None:
        self.rows.end(fd)

    def on_removed(self, fd: int) -> None:
        rest = self._unsent.pop(fd, None)
        self._own -= rest.own if rest else 0


class Parked(Row):
    """Connections between two requests, or before the first: nothing of a request has come yet."""

    __slots__ = ("_seconds",)
    interest = "input"
    waits = False

    def __init__(self, rows: Rows, seconds: float) -> None:
        super().__init__(rows)
        self._seconds = seconds

    @property
    def until(self) -> float:
        """When a connection is closed that sends nothing from now on."""
        return self.rows.effects.clock() + (_LAST_REQUEST if self.rows.draining else self._seconds)

    def heard(self, fd: int) -> None:
        self.rows.give_back(fd)

    def parted(self, fd: int) -> None:
        self.check(fd)  # a request may have come before the end

    def check(self, fd: int) -> None:
        """Close it, unless a request has come just now."""
        if self.rows.effects.unread(fd):
            self.rows.give_back(fd)
        else:
            self.rows.close(fd)


class ParkedConnections:
    """The connections between two requests, and before the first: they give way where room is needed."""

    __slots__ = ("kept", "new")

    def __init__(self, rows: Rows, keepalive: float) -> None:
        self.new = Parked(rows, _FIRST_REQUEST)
        """The connections of which nothing has come yet."""
        self.kept = Parked(rows, keepalive)

    def __len__(self) -> int:
        return len(self.new.fds) + len(self.kept.fds)

    def give_way(self) -> None:
        """Close the connection that has rested longest, and first the connections that have never sent anything."""
        silent = next(iter(self.new.fds), None)
        if silent is not None and self.new.rows.slots[silent] < slot_of(self.new.until - _SILENT):
            self.new.check(silent)
        elif self.kept.fds:
            self.kept.check(next(iter(self.kept.fds)))
        elif silent is not None:
            self.new.check(silent)

    def hurry(self) -> None:
        """Give each the time that it has from now on, which a drain has made short."""
        for resting in (self.new, self.kept):
            for fd in list(resting.fds):
                resting.rows.set_end(fd, resting.until)


class Joinable:
    """The rows that others may join, by what these have in common."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: dict[Hashable, Row] = {}

    def put(self, row: Row, key: Hashable) -> None:
        """Have those who have this in common find a row."""
        self._rows[key] = row
        row.key = key

    def poll(self, key: Hashable, poll: Poll) -> Polls | None:
        """Return the row that waits for a poll too from now on, if there is one."""
        row = self._rows.get(key)
        if isinstance(row, Polls) and not row.asks and row.poll.merge(poll):
            return row
        return None

    def streams(self, row: Streams) -> Streams | None:
        """Return the row that tells the clients of this one too from now on; if there is none, it may be this one."""
        alike = row.alike
        if alike is None:
            return None
        other = self._rows.get(alike)
        if other is None:
            self.put(row, alike)
            return None
        if isinstance(other, Streams) and other.alike == alike and other.stream.merge(row.stream):
            return other
        return None

    def forget(self, row: Row) -> None:
        """Have no other row join this one any more."""
        if self._rows.get(row.key) is row:
            del self._rows[row.key]
        row.key = None


class Rows:
    """The register: the row of each connection that was handed off, and the terms on which it is here."""

    def __init__(self, effects: Effects, keepalive: float) -> None:
        self.effects = effects
        self.agenda: Agenda[Row] = Agenda(effects.clock, effects.wake)
        self.handed_off = HandedOff()
        self.draining = False
        self.room: float = math.inf
        """How many connections may be here."""
        self.row_of: dict[int, Row] = {}
        """By connection, the row in which it is."""
        self.slots = array("q")
        """By connection, the slot of the wheel when it is due; 0 if it is on the agenda to be dismissed.

        File descriptors are small and close together, so that 8 bytes do for each.
        """
        self.waiting: deque[int] = deque()
        """Connections that wait for a greenlet."""
        self.early: dict[int, bytes] = {}
        """By connection, what has come behind the request of a poll, and is to be served after its answer."""
        self.joinable = Joinable()
        self._parked = ParkedConnections(self, keepalive)
        self._sending = Sending(self)

    @property
    def is_empty(self) -> bool:
        """True if no connection is here."""
        return not (self.row_of or self.waiting)

    @property
    def is_full(self) -> bool:
        """True if there is no room for another connection, and no idle connection that could be closed for it."""
        return len(self.row_of) + len(self.waiting) >= self.room and not self._parked

    @property
    def has_listeners(self) -> bool:
        """True if any connection waits for an event, or takes an answer."""
        return len(self.row_of) > len(self._parked)

    # For the worker: from now on, nobody else writes to the connection or closes it.

    def take_over_stream(self, fd: int, stream: Stream, *, chunked: bool) -> None:
        """Go on with a stream that has been opened."""
        self.effects.watch(fd, Streams.interest)  # it may fail: then the stream is still its greenlet's to close
        row = Streams(self, stream, chunked=chunked)
        self._admit(fd, row, stream.hand_off())
        stream.subscriber.wake_by(row)

    def take_over_poll(self, fd: int, poll: Poll, head: bytes, early: bytes = b"") -> None:
        """Go on with a poll that waits.

        :param head: of its answer, but for the date and the length.
        :param early: what has come behind the request.
        """
        self.effects.watch(fd, Polls.interest)
        self._keep_early(fd, early)
        key = poll.alike, head
        row = self.joinable.poll(key, poll)
        if row is None:
            row = Polls(self, poll, head)
            self.joinable.put(row, key)
        self._admit(fd, row, poll.hand_off())
        if row.poll is poll:
            poll.subscriber.wake_by(row)

    def park(self, fd: int, *, new: bool = False) -> None:
        """Wait for the next request on a connection, or the first."""
        self.effects.watch(fd, Parked.interest)
        resting = self._parked.new if new else self._parked.kept
        self._admit(fd, resting, Handed(resting.until, None, ()))

    def send_unsent(self, fd: int, rest: memoryview, *, closes: bool, early: bytes) -> None:
        """Send the rest of an answer that a greenlet has begun, as the client takes it.

        :param early: what has come behind the request.
        """
        self.effects.watch(fd, Sending.interest)
        self._keep_early(fd, early)
        self._admit(fd, self._sending, Handed(self._sending.until, None, ()))
        self._sending.begin(fd, Unsent(rest, closes, len(rest)))

    def drain(self, window: float) -> None:
        """Say goodbye to all streams and polls, spread over `window` seconds, and at once to new ones.

        A connection between two requests has a moment more: its client may be sending the next one just now.
        """
        self.draining = True
        self._parked.hurry()
        waiting = [fd for fd, row in self.row_of.items() if row.waits]
        spread(waiting, window, self._drain_one, self.effects.sleep, self.effects.clock)

    def _drain_one(self, fd: int) -> None:
        row = self.row_of.get(fd)
        if row is not None and row.waits:  # its number may be another connection's by now
            self.check_soon(fd)

    # For the rows

    def merge(self, row: Streams) -> bool:
        """Have a row become part of the one for all that are alike, where that stands at the same place."""
        other = self.joinable.streams(row) if row.key is None else None
        if other is None:
            return False
        for fd in list(row.fds):
            self.move(fd, row, other)
        other.set_timer()  # which may be due sooner now
        return True

    def move(self, fd: int, row: Row, other: Row) -> None:
        """Have a connection go on in another row, which is told by the same events."""
        row.fds = removed(row.fds, fd)
        self._put(fd, other)

    def decide(self, fd: int, before: Before, *, last_progress: float = math.inf, has_notice: bool = False) -> Next:
        """Return what is to happen to a connection now, see `HandedOff.decide`."""
        now = self.effects.clock()
        return self.handed_off.decide(
            fd, now, before, draining=self.draining, last_progress=last_progress, has_notice=has_notice
        )

    def set_end(self, fd: int, moment: float) -> None:
        """Have it dismissed then."""
        self.slots[fd] = self.effects.timer(fd, moment, 0)

    def check_soon(self, fd: int) -> None:
        """Have it dismissed in the next round."""
        if fd in self.row_of:
            self.slots[fd] = 0
            self.agenda.check_soon(fd)

    def after_answer(self, fd: int) -> None:
        """Have an answered poll's connection wait for its next request, or serve the request that has come already."""
        if fd in self.early:
            self.give_back(fd)
        else:
            self._move_answered(self._parked.kept, fd, self._parked.kept.until)

    def finish(self, fd: int, rest: Unsent) -> None:
        """Send the rest of a poll's answer as the client takes it."""
        self._move_answered(self._sending, fd, self._sending.until)
        self._sending.begin(fd, rest)

    def give_back(self, fd: int) -> None:
        """Let a greenlet go on with the connection."""
        self.effects.finish(self._remove(fd))
        if not self.effects.give_back(fd):
            self.waiting.append(fd)

    def close(self, fd: int) -> None:
        """Close a resting connection, at once: nobody is about to write to it."""
        self._remove(fd)
        self.effects.close(fd)

    def end(self, fd: int) -> None:
        """Close it. Its number becomes free only between rounds: else another client could get its bytes."""
        if fd in self.row_of:
            closing = self._remove(fd)
            self.early.pop(fd, None)
            self.effects.doom(fd, closing)

    # The connections

    def _admit(self, fd: int, row: Row, handed: Handed) -> None:
        if fd >= len(self.slots):
            self.slots.frombytes(bytes(self.slots.itemsize * (fd + 1 - len(self.slots))))
        self._put(fd, row)
        self.set_end(fd, handed.deadline)
        self.handed_off.put(fd, handed)
        if len(self.row_of) + len(self.waiting) > self.room:  # there are files for so many
            self._parked.give_way()
        if handed.permit:
            self._begin(fd, row, handed.permit)
        elif self.draining and row.waits:
            self.check_soon(fd)

    def _put(self, fd: int, row: Row) -> None:
        row.fds = added(row.fds, fd)
        self.row_of[fd] = row

    def _begin(self, fd: int, row: Row, permit: Permit) -> None:
        decided = row.decide(fd)
        self.set_end(fd, decided.until)
        permit.begin(partial(self.check_soon, fd))  # which may make it due at once
        if decided.ends or decided.tells:
            self.check_soon(fd)

    def _remove(self, fd: int) -> Calls:
        closing = self._take_out(fd)
        self.effects.unwatch(fd)
        return closing

    def _take_out(self, fd: int) -> Calls:
        """Take a connection out of its row. Return what is to be done after its end."""
        closing = self.handed_off.take(fd)
        row = self.row_of.pop(fd)
        row.fds = removed(row.fds, fd)
        if not row.fds:
            self.joinable.forget(row)
        row.on_removed(fd)
        return closing

    def _move_answered(self, row: Row, fd: int, end: float) -> None:
        """Have a connection whose poll is answered go on in another row."""
        closing = self._take_out(fd)
        self._put(fd, row)
        self.set_end(fd, end)
        self.effects.change(fd, row.interest)
        self.effects.finish(closing)

    def _keep_early(self, fd: int, early: bytes) -> None:
        self.early.pop(fd, None)
        if early:
            self.early[fd] = early
