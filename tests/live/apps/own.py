"""An app with views of its own that answer with channels, or with an iterable for one client alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from flask import Blueprint, Flask, Response, g, request

from sse import SSE, Event

application = app = Flask(__name__)
sse = SSE(app)
pages = Blueprint("pages", __name__, url_prefix="/pages")
ended: list[str] = []
"""What the `finally` of each iterable has noted."""


@app.get("/healthz")
def healthz() -> dict[str, object]:
    """Return what this process holds, and which iterables have ended."""
    running = sum(thread.name == "sse-items" for thread in threading.enumerate())
    return {"seats": app.extensions["sse"].hub.subscribers, "ended": ended, "running": running}


@app.get("/page")
def page() -> str:
    """Return a page that keeps what it hears of a view's channels, and of an iterable."""
    return """<!doctype html><script src="/sse/sse.js"></script><script>
      const heard = [], items = [];
      const feed = SSE({ view: "/pages/channels" });
      feed.on("sse.event", (event) => heard.push(`${event.channel} ${event.data}`));
      const source = new EventSource("/pages/items/ends");
      for (const type of ["text", "facts", "sse.end"]) {
        source.addEventListener(type, (event) => items.push(event.data));
      }
    </script>"""


@pages.route("/channels", methods=["GET", "POST"])
def channels() -> Response:
    request.get_data()
    return sse.subscribe("a", "b", sub="ann")


@app.post("/revoke")
def revoke() -> str:
    sse.revoke(sub="ann")
    return "revoked"


@pages.get("/items/<how>")
def items(how: str) -> Response:
    """Stream an iterable whose way is named: it ends, fails, waits, or gives a value each so many seconds."""
    g.name = request.args.get("name", how)
    return sse.stream(give(how))


def give(how: str) -> Iterator[object]:
    try:
        yield f"{how} "
        if how == "fails":
            raise RuntimeError("the iterable fails, as it is meant to")
        if how == "waits":
            time.sleep(60)
        elif how == "ends":
            yield Event("facts", "facts")
        else:
            for number in range(10_000):
                time.sleep(float(how))
                yield {"n": number}
    finally:
        ended.append(f"{g.name}")


app.register_blueprint(pages)
