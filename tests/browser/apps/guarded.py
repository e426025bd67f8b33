"""A service with a rule of its own: `gunicorn … tests.browser.apps.guarded:application`.

`own/NAME` is for whoever has the cookie `user=NAME`; `answer/STATUS` is refused with that status.
"""

from __future__ import annotations

from flask import Flask, abort, request

from sse import SSE

application = Flask(__name__)
sse = SSE(application)


@sse.authorize
def can_read(channel: str) -> bool:
    kind, _, name = channel.partition("/")
    if kind == "answer":
        abort(int(name))
    return kind == "own" and request.cookies.get("user") == name
