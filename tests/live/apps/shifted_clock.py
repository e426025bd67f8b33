"""The service of `wsgi` with a clock that is SHIFT seconds ahead, so that Redis, whose clock is right, seems behind."""

from __future__ import annotations

import datetime
import os
import time

import jwt.api_jwt

__all__ = ["application"]

ahead, real = float(os.environ["SHIFT"]), time.time
time.time = lambda: real() + ahead


class Shifted(datetime.datetime):
    """The datetime class that PyJWT asks for the time."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Shifted:
        return cls.fromtimestamp(time.time(), tz)


jwt.api_jwt.datetime = Shifted

from wsgi import application  # noqa: E402 - what it imports keeps the clock that it finds
