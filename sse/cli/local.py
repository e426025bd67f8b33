"""Publishes and follows in this process, over the store that the serving processes share."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final

from sse.event import Event, LastEventId
from sse.hub.subscriber import starting_points
from sse.service import Service
from sse.stores import Publication
from sse.transports.stream import Stream

_RETRY: Final = 100  # milliseconds until the command opens a new stream in this process


class Local:
    """The app's own service, with the methods of `Remote`, but without HTTP."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def publish(self, channel: str, events: Sequence[Event], key: str | None) -> list[str]:
        """Publish events on a channel and return their ids.

        :param key: an idempotency key, or None. Another call with the same events and key stores nothing again.

        :raises InvalidEvent: if an event can never be published.
        :raises Ended: if the channel has ended; its `ids` tell which events are stored nevertheless.
        :raises StoreUnavailable: if the events may not have been stored.
        """
        publications = [
            Publication(channel, self._service.check(event), key and f"cli:{index}:{key}")
            for index, event in enumerate(events)
        ]
        return [f"{channel}={position}" for position in self._service.publish(publications)]

    def stream(self, channels: Sequence[str], given: str, replay: int, last: str) -> Generator[bytes]:
        """Yield the chunks of one stream on these channels, until it ends.

        :param given: the last event id that the command was given, or an empty string.
        :param replay: how many of the newest events come first where there is no last event id.
        :param last: the last event id of the stream before this one, or an empty string.
        """
        position = LastEventId.parse(last or given) if last or given else None
        starts = starting_points(channels, position, from_header=bool(last), replay=replay)
        config = self._service.config
        yield from Stream(
            self._service.hub, starts, heartbeat=config.heartbeat, lifetime=config.stream_lifetime, retry=_RETRY
        )
