"""The app's own service, in this process, over a store that the serving processes share."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final

from sse.event import Event, LastEventId
from sse.hub.subscriber import starting_points
from sse.service import Service
from sse.stores import Publication
from sse.transports.stream import Stream

_SOON: Final = 100  # milliseconds before a stream in this process is taken up again


class Local:
    """Publishes and follows as `Remote` does, without HTTP."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def publish(self, channel: str, events: Sequence[Event], once: str | None) -> list[str]:
        """Publish events on a channel and return their ids; nothing is stored twice under the same key `once`.

        :raises InvalidEvent: if an event can never be published.
        :raises StoreUnavailable: if the events may not have been stored.
        """
        publications = [
            Publication(channel, self._service.check(event), once and f"cli:{place}:{once}")
            for place, event in enumerate(events)
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
            self._service.hub, starts, heartbeat=config.heartbeat, lifetime=config.stream_lifetime, retry=_SOON
        )
