"""The publisher, for processes that publish and run without Flask: tasks of Celery and RQ, cron jobs and scripts."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Self

from sse.config import Config, foreign, of_interest
from sse.errors import ConfigError
from sse.event import DEFAULT_TYPE, Event
from sse.log import warn
from sse.service import Service
from sse.work.writer import Writer


class Publisher:
    """Publishes and runs from a process without Flask, over the Redis that the serving processes share.

    The settings are those of the serving processes: SSE_REDIS_URL, SSE_NAMESPACE, SSE_RING, SSE_RING_TTL and the others
    are read from the environment, once. Nothing connects before the first use. One publisher serves all threads of a
    process, and may be made before the process forks, as in a module of Celery tasks. It is a context manager, too.
    Settings that are given as arguments win over the environment, such as `redis_url="redis://…"` for SSE_REDIS_URL.

    :raises ConfigError: if a setting is unknown or has a bad value, or if there is no SSE_REDIS_URL.

    >>> from sse import Publisher, StoreUnavailable
    >>> with Publisher(redis_url="redis://127.0.0.1:1") as publisher:     # no Redis is there
    ...     try:
    ...         publisher.publish("orders", {"number": 42}, idempotency_key="paid-42")
    ...     except StoreUnavailable as error:
    ...         print(f"publish again with the same key in {error.retry_after} s")
    publish again with the same key in 2 s
    """

    def __init__(self, **settings: object) -> None:
        environ = of_interest(os.environ)
        if names := foreign(environ):
            warn("%s in the environment: not settings of Throughline, so they are ignored", ", ".join(names))
        config = Config.load(environ, {f"SSE_{name.upper()}": value for name, value in settings.items()})
        if config.redis_url is None:
            raise ConfigError(
                "SSE_REDIS_URL is not set, so nobody would get what this process publishes",
                "give it the value that the serving processes have, or Publisher(redis_url=…)",
            )
        self._service = Service(config, serves=False)

    def publish(
        self, channel: str, data: object, type: str = DEFAULT_TYPE, *, idempotency_key: str | None = None
    ) -> str:
        """Store an event on a channel, send it to all who listen, and return its id, as `SSE.publish` does.

        :param channel: as for `SSE.publish`.
        :param data: as for `SSE.publish`, but JSON is written by `json.dumps` alone, which refuses a datetime.
        :param type: as for `SSE.publish`.
        :param idempotency_key: as for `SSE.publish`. A task that may be repeated gives the same key each time.
        :raises InvalidEvent: as `SSE.publish` does.
        :raises TooLarge: as `SSE.publish` does.
        :raises IdempotencyConflict: as `SSE.publish` does.
        :raises Ended: if the channel has ended.
        :raises StoreUnavailable: if the event may not have been stored: publish it again with the same key.

        >>> from sse import InvalidEvent
        >>> try:
        ...     Publisher(redis_url="redis://127.0.0.1").publish("not a channel", "hello")
        ... except InvalidEvent as error:
        ...     print(error.code)
        invalid_channel
        """
        return self._service.publish_one(channel, self._make_event(data, type), idempotency_key)

    def writing(self, channel: str, *, restart: bool = False) -> AbstractContextManager[Writer]:
        """Return a context manager that begins a run, gives a writer for it, and ends it, as `SSE.writing` does.

        :param channel: a channel for this run alone.
        :param restart: begin again where a run is or was there. A task that may be delivered again needs that.
        :raises InvalidEvent: if the channel is not valid.
        :raises RunRefused: if a run is or was there, or if the channel has events that were published on it before.
        :raises Stopped: at the end of the block, if the run was stopped or begun anew elsewhere.
        :raises RunFailed: at the end of the block, if the run is over SSE_RUN_BYTES, or if Redis has lost a part of it.
        :raises StoreUnavailable: if the run may not have begun: call this again with `restart=True`.

        >>> try:
        ...     with Publisher(redis_url="redis://127.0.0.1:1").writing("reports/7", restart=True) as out:
        ...         print("Counting", file=out)
        ... except StoreUnavailable as error:
        ...     print(error.code)
        store_unavailable
        """
        return self._service.writing(channel, self._make_event, restart=restart)

    def stop(self, channel: str) -> bool:
        """End the run of a channel, in whatever process it is, as `stopped`; return False if there is none to end.

        :param channel: the channel of the run.
        :raises InvalidEvent: if the channel is not valid.
        :raises StoreUnavailable: if it may not have been stopped: stop it again.

        >>> try:
        ...     Publisher(redis_url="redis://127.0.0.1:1").stop("reports/7")
        ... except StoreUnavailable as error:
        ...     print(error.code)
        store_unavailable
        """
        return self._service.stop(channel)

    def count(self, channel: str) -> int:
        """Return how many streams and polls listen to a channel, in all serving processes, as `SSE.count` does.

        :param channel: a channel that SSE_PRESENCE matches, here as in the serving processes.
        :raises InvalidEvent: if the channel is not valid.
        :raises NotFound: if SSE_PRESENCE does not match the channel.
        :raises StoreUnavailable: if Redis does not answer.

        >>> try:
        ...     Publisher(redis_url="redis://127.0.0.1:1", presence="room/*").count("room/7")
        ... except StoreUnavailable as error:
        ...     print(error.code)
        store_unavailable
        """
        return self._service.count(channel)

    def close(self) -> None:
        """End this publisher's threads and connections, and its runs as `interrupted`. The next use makes new ones.

        >>> publisher = Publisher(redis_url="redis://127.0.0.1")
        >>> publisher.close()
        """
        self._service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_event(self, data: object, type: str) -> Event:
        return self._service.check(Event(data, type))
