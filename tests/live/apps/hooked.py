"""An app with hooks. The request's headers X-Hook and X-Before name what they do, before and after the view."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from typing import Any

from flask import (
    Flask,
    Response,
    abort,
    after_this_request,
    make_response,
    request,
    request_finished,
    session,
    stream_with_context,
)
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import ServiceUnavailable, TooManyRequests, Unauthorized

from sse import SSE

application = app = Flask(__name__)
app.secret_key = "of this test alone"


class OwnResponse(Response):
    """A response class of the app, which adds a header to all responses."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.headers["X-Own"] = "1"


sse = SSE(app)
app.add_url_rule("/healthz", "healthz", lambda: "ok")
app.add_url_rule("/seats", "seats", lambda: {"seats": app.extensions["sse"].hub.subscribers})


def by_helper(response: Response) -> None:
    logging.getLogger("hooked").info("%s", response.data)


def set_what_it_read(response: Response) -> None:
    response.set_data(response.get_data().replace(b"sse", b"SSE"))


def put_what_it_read(response: Response) -> None:
    response.response = [b"".join(response.response)]  # type: ignore[arg-type]


def add_etag(response: Response) -> None:
    response.add_etag()
    response.make_conditional(request)


def zip_it(response: Response) -> None:
    response.direct_passthrough = False
    response.data = gzip.compress(response.data)
    response.headers["Content-Encoding"] = "gzip"
    response.headers["Content-Length"] = str(len(response.data))


def set_length(response: Response) -> None:
    response.content_length = response.calculate_content_length()


def wrong_length(response: Response) -> None:
    response.content_length = 12


def wrap(response: Response) -> None:
    response.response = (chunk for chunk in response.response)  # type: ignore[assignment]


def wrap_in_context(response: Response) -> None:
    response.response = stream_with_context(response.iter_encoded())


def wrap_and_read(response: Response) -> None:
    wrap(response)
    response.get_data()


def write(response: Response) -> None:
    response.stream.write(b"more")


def remember(response: Response) -> None:
    session["seen"] = True
    response.set_cookie("seen", "1")


def fail(_: Response) -> None:
    raise RuntimeError("a hook of the app fails")


def set_503(response: Response) -> None:
    response.status_code = 503


def set_403(response: Response) -> None:
    response.status_code = 403
    response.set_data("no")


def late_retry_after(response: Response) -> None:
    response.headers["Retry-After"] = "40"


READING: dict[str, Callable[[Response], object]] = {
    "get_data": lambda response: response.get_data(),
    "data": lambda response: response.data,
    "add_etag": add_etag,
    "freeze": lambda response: response.freeze(),
    "make_sequence": lambda response: response.make_sequence(),
    "iterate": lambda response: list(response.response),  # type: ignore[arg-type]
    "iter_encoded": lambda response: b"".join(response.iter_encoded()),
    "make_conditional": lambda response: response.make_conditional(request),
    "set_length": set_length,
    "by_helper": by_helper,
    "set_what_it_read": set_what_it_read,
    "put_what_it_read": put_what_it_read,
    "wrap_and_read": wrap_and_read,
    "write": write,
    "zip_it": zip_it,
}
HARMLESS: dict[str, Callable[[Response], object]] = {
    "nothing": lambda _: None,
    "wrong_length": wrong_length,
    "wrap": wrap,
    "wrap_in_context": wrap_in_context,
    "is_streamed": lambda response: response.is_streamed or response.get_data(),
    "repr": repr,
    "remember": remember,
    "call_on_close": lambda response: response.call_on_close(lambda: None),
}
TURNING: dict[str, Callable[[Response], object]] = {
    "fail": fail,
    "set_503": set_503,
    "set_403": set_403,
    "late_retry_after": late_retry_after,
}


@app.after_request
def hook(response: Response) -> Response:
    name = request.headers.get("X-Hook", "nothing")
    if request.path == "/healthz":
        return response
    if name == "another_around_it":
        return Response(response.response, headers=response.headers)
    if name in {"after_this_request", "by_signal", "decorated"}:
        return response
    (READING | HARMLESS | TURNING)[name](response)
    return response


def raise_error(error: Exception) -> None:
    raise error


def answer_503() -> Response:
    return Response("closed", 503, {"Retry-After": "30", "Content-Encoding": "identity", "ETag": '"x"'})


BEFORE: dict[str, Callable[[], object]] = {
    "429": lambda: abort(429),
    "429 after 30": lambda: raise_error(TooManyRequests(retry_after=30)),
    "503": lambda: abort(503),
    "503 after 30": lambda: raise_error(ServiceUnavailable(retry_after=30)),
    "503 at a date": lambda: abort(
        503, response=Response("later", 503, {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"})
    ),
    "503 after words": lambda: abort(503, response=Response("later", 503, {"Retry-After": "soon"})),
    "an answer of 503 after 30": answer_503,
    "500": lambda: abort(500),
    "502": lambda: abort(502),
    "an error": lambda: raise_error(RuntimeError("the database is away")),
    "an error that the app answers": lambda: 1 // 0,
    "400": lambda: abort(400),
    "401": lambda: abort(401),
    "401 for a password": lambda: raise_error(
        Unauthorized(www_authenticate=WWWAuthenticate("basic", {"realm": "a b"}))
    ),
    "403": lambda: abort(403),
    "404": lambda: abort(404),
}


@app.before_request
def before() -> object:
    name = request.headers.get("X-Before")
    if request.headers.get("X-Hook") == "after_this_request":
        after_this_request(lambda response: add_etag(response) or response)
    return BEFORE[name]() if name else None


@app.url_value_preprocessor
def preprocess(*_: object) -> None:
    if request.headers.get("X-Preprocess"):
        abort(429)


@app.errorhandler(ZeroDivisionError)
def answer_error(_: Exception) -> tuple[dict[str, str], int]:
    return {"error": "a page of the app"}, 500


@app.teardown_request
def tear_down(_: BaseException | None) -> None:
    logging.getLogger("hooked").info("torn down")


@request_finished.connect_via(app)
def by_signal(_: Flask, response: Response) -> None:
    if request.headers.get("X-Hook") == "by_signal":
        response.get_data()


def decorated(view: Callable[..., Response]) -> Callable[..., Response]:
    def inner(**values: str) -> Response:
        response = view(**values)
        if request.headers.get("X-Hook") == "decorated":
            response.get_data()
        return response

    return inner


for endpoint in ("sse.stream", "sse.poll"):
    app.view_functions[endpoint] = decorated(app.view_functions[endpoint])


@app.get("/own")
def own() -> Response:
    return make_response("own")


def make_own() -> Flask:
    """Return the same app with its own response class."""
    app.response_class = OwnResponse
    return app
