"""An app with a log handler that waits, as one does that sends lines over the network."""

from __future__ import annotations

import logging
import time

from app import create_app


class Waiting(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes a line after a moment, in which other greenlets run."""

    def emit(self, record: logging.LogRecord) -> None:
        time.sleep(0.05)
        super().emit(record)


log = logging.getLogger("sse")
log.addHandler(Waiting())
log.setLevel(logging.INFO)
application = create_app()
