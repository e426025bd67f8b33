"""Readers of a run: each follows a channel to its end, through any reconnect, and keeps the text as a page would."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from typing import Any, Literal, Self

from tests import client
from tests.client import Stream

Transport = Literal["stream", "poll"]


class RunReader:
    """Reads a run in a thread. `text` is what a page would show, and `reason` why the channel has ended."""

    def __init__(self, url: str, channel: str, transport: Transport) -> None:
        self.url, self.channel, self.transport = url, channel, transport
        self.text = ""
        self.holes: list[str] = []  # texts that were not the beginning of the whole one
        self.resets: list[str] = []
        self.reason = ""
        self.ended_at = 0.0
        self.faults: list[str] = []
        self.last_event_id = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set() and not self.reason:
            try:
                (self._stream if self.transport == "stream" else self._poll)()
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(repr(error))
            self._stop.wait(0.05)

    def _end(self, reason: str) -> None:
        self.ended_at = time.monotonic()
        self.reason = reason

    def _reset(self, reason: str) -> None:
        self.resets.append(reason)
        self.text = ""

    def _stream(self) -> None:
        with Stream(self.url, {"channel": self.channel}, last_event_id=self.last_event_id) as stream:
            while not self._stop.is_set() and not self.reason:
                with contextlib.suppress(TimeoutError):
                    event = stream.next(0.5)
                    if event is None:
                        break
                    if event.event == "sse.end":
                        self._end(event.json()["reason"])
                    elif event.event == "sse.reset":
                        self._reset(event.json()["reason"])
                    elif event.event == "text":
                        self.text += event.data or ""
                    elif event.event == "sse.open":
                        self._note_end(event.json()["channels"][self.channel].get("ended"))
                self.last_event_id = stream.last_event_id

    def _poll(self) -> None:
        answer = client.poll(self.url, [self.channel], self.last_event_id or None, timeout=2)
        if answer.status != 200:
            self.faults.append(f"{answer.status} {answer.body!r}")
            return
        body: dict[str, Any] = answer.json()
        for reset in body["resets"]:
            self._reset(reset["reason"])
        self.text += "".join(event["data"] for event in body["events"] if event["type"] == "text")
        self.last_event_id = body["last_event_id"]
        self._note_end(body.get("ended", {}).get(self.channel))

    def _note_end(self, reason: str | None) -> None:
        if reason and not self.reason:
            self._end(reason)
