"""Publishes and follows over HTTP, from a running service."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
from collections.abc import Generator, Iterator, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from sse.errors import Ended, InvalidEvent, SSEError, TooLarge, Unavailable
from sse.event import Event

_READ: Final = 65_536  # bytes
_HEARTBEAT: Final = 5  # seconds
_QUIET: Final = 15.0  # seconds without a byte, three heartbeats, after which a stream is given up
_ANSWER: Final = 30.0  # seconds that a publish waits for each part of its answer
_TEMPORARY: Final = (408, 425, 429)  # statuses, besides 5xx, after which the same request may succeed later
_HINT: Final = "give the service's prefix, such as https://push.example/sse"


def check_url(url: str) -> str:
    """Return the address of a service without a slash at its end.

    :raises ValueError: if it is not an http or https address, or if it has a user, a query or a fragment.
    """
    parts = urlsplit(url)
    extra = parts.query or parts.fragment or parts.username
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or extra:
        raise ValueError(_HINT)
    return url.rstrip("/")


def check_origin(origin: str) -> str:
    """Return an origin: scheme, host and port of the pages that read the service.

    :raises ValueError: if it is anything else.
    """
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}" or not parts.hostname:
        raise ValueError("give scheme://host[:port], such as https://www.example")
    return origin


class Remote:
    """The service at a URL. Redirections are not followed, because the key is for this address alone."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        self._parts = urlsplit(url)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._tls = ssl.create_default_context() if self._parts.scheme == "https" else None

    def publish(self, channel: str, events: Sequence[Event], key: str | None) -> list[str]:
        """Publish events on a channel and return their ids.

        :param key: an idempotency key, or None. Another call with the same events and key stores nothing again.

        :raises InvalidEvent: if an event can never be published.
        :raises Ended: if the channel has ended; its `ids` tell which events are stored nevertheless.
        :raises Unavailable: if the events may not have been stored.
        :raises SSEError: if the service refuses the request, or does not answer as this service does.
        """
        items = [{"channel": channel, "type": event.type, "data": event.data} for event in events]
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        body = json.dumps(items, ensure_ascii=False).encode()
        with self._ask("POST", "/publish", headers, body, timeout=_ANSWER) as response:
            answer = response.read()
        with contextlib.suppress(ValueError, KeyError, TypeError):
            ids = json.loads(answer)["ids"]
            if len(ids) == len(events):
                return [str(id) for id in ids]
        raise self._not_a_service()

    def stream(self, channels: Sequence[str], given: str, replay: int, last: str) -> Generator[bytes]:
        """Yield the chunks of one stream on these channels, until it ends.

        :param given: the last event id that the command was given, or an empty string.
        :param replay: how many of the newest events come first where there is no last event id.
        :param last: the last event id of the stream before this one, or an empty string.
        :raises Unavailable: if the connection fails, or if the service answers that the request may succeed later.
        :raises Ended: if all channels have ended, and the last event id is at their ends.
        :raises SSEError: if the service refuses the request, or does not answer as this service does.
        """
        query = [*(("channel", channel) for channel in channels), ("heartbeat", str(_HEARTBEAT))]
        query += [("last_event_id", given)] if given else [("replay", str(replay))] if replay else []
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last.encode()} if last else {})}
        with self._ask("GET", f"/stream?{urlencode(query)}", headers, timeout=_QUIET) as response:
            if response.status == 204:
                raise Ended("the channels have ended")
            if response.headers.get_content_type() != "text/event-stream":
                raise self._not_a_service()
            while chunk := response.read1(_READ):
                yield chunk

    @contextlib.contextmanager
    def _ask(
        self, method: str, path: str, headers: dict[str, Any], body: bytes | None = None, *, timeout: float
    ) -> Iterator[HTTPResponse]:
        """Send a request and yield its answer, whose status is 200, 201 or 204 and whose body is not yet read."""
        hint = "try again"
        try:
            with contextlib.closing(self._connection(timeout)) as connection:
                connection.connect()
                if method == "POST":
                    hint = "it may have been published, so repeat it only with the same idempotency key"
                connection.request(method, f"{self._parts.path}{path}", body, {**self._headers, **headers})
                with connection.getresponse() as response:
                    if response.status not in (200, 201, 204):
                        raise self._fault(response)
                    yield response
        except ssl.SSLCertVerificationError as error:
            raise SSEError(
                f"{self.url}: {error.verify_message}", "set SSL_CERT_FILE to the file of the authorities that you trust"
            ) from None
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{self.url} cannot be reached: {reason}", hint, retry_after=0) from None

    def _connection(self, timeout: float) -> HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._tls:
            return HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        return HTTPConnection(host, port, timeout=timeout)

    def _fault(self, response: HTTPResponse) -> SSEError:
        message, hint = f"{self.url} answered {response.status} {response.reason}", _HINT
        code: str | None = None
        ids: Sequence[str | None] = ()
        if location := response.headers.get("Location"):
            hint = f"it points to {location}; give that service's prefix, if you trust it"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            error = json.loads(response.read(_READ))["error"]
            message, hint, code = str(error["message"]), str(error["hint"]), str(error["code"])
            ids = [*error.get("ids", ())]
        if response.status >= 500 or response.status in _TEMPORARY:
            after = response.headers.get("Retry-After", "")
            return Unavailable(message, hint, retry_after=int(after) if re.fullmatch("[0-9]{1,3}", after) else 0)
        if response.status == 409:
            return Ended(message, hint, ids=ids)
        return {413: TooLarge, 422: InvalidEvent}.get(response.status, SSEError)(message, hint, code=code)

    def _not_a_service(self) -> SSEError:
        return SSEError(f"{self.url} does not answer as this service does", _HINT)
