"""Apps with different logging configurations. POST /say logs the body of the request."""

from __future__ import annotations

import logging
import logging.config
import sys
from typing import Any

from flask import Flask, request
from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from sse import SSE
from sse.log import warn

APP_FORMAT = "APP %(levelname)s of %(name)s: %(message)s"
TO_ROOT: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"own": {"format": APP_FORMAT}},
    "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
    "root": {"handlers": ["own"]},
}
OF_OURS = {"loggers": {"sse": {"level": "WARNING", "handlers": ["own"], "propagate": False}}}


def plain() -> Flask:
    app = Flask("logged")
    SSE(app)

    @app.post("/say")
    def say() -> str:
        warn(request.get_data(as_text=True).replace("%", "%%"))
        return "said"

    return app


def basic() -> Flask:
    logging.basicConfig(format=APP_FORMAT)
    return plain()


def afterwards() -> Flask:
    app = plain()
    logging.config.dictConfig(TO_ROOT)
    return app


def of_ours() -> Flask:
    app = plain()
    logging.config.dictConfig({name: value for name, value in TO_ROOT.items() if name != "root"} | OF_OURS)
    return app


def level_only() -> Flask:
    app = plain()
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": {"sse": {"level": "INFO"}}})
    return app


def at_a_request() -> Flask:
    app = plain()
    app.before_request(lambda: logging.config.dictConfig(TO_ROOT))
    return app


def own_handler() -> Flask:
    app = plain()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(APP_FORMAT))
    app.logger.addHandler(handler)
    app.logger.removeHandler(app.logger.handlers[0])
    return app


class Derived(Logger):  # type: ignore[misc]
    error_fmt = "DERIVED [%(process)d] [%(levelname)s] %(message)s"


class Alike:
    """A logger that has the methods that gunicorn calls, and nothing else."""

    access_log_enabled = False

    def __init__(self, cfg: Any) -> None:
        self.setup(cfg)

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg

    def log(self, level: int, message: str, *args: Any, **_options: Any) -> None:
        sys.stderr.write(f"ALIKE {logging.getLevelName(level)} {message % args if args else message}\n")
        sys.stderr.flush()

    def debug(self, *_: Any, **__: Any) -> None: ...

    def info(self, message: str, *args: Any, **options: Any) -> None:
        self.log(logging.INFO, message, *args, **options)

    warning = error = exception = critical = info

    def access(self, *_: Any) -> None: ...

    def reopen_files(self) -> None: ...

    def close_on_exec(self) -> None: ...
