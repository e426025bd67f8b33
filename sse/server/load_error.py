"""The page that a worker serves under --reload while the app cannot be loaded."""

from __future__ import annotations

import traceback
from typing import Any

from gunicorn.util import make_fail_app  # type: ignore[import-untyped]


def until_mended(error: BaseException, log: Any, reloader: Any) -> Any:
    """Return an app whose page has the error of the real one, and reload when a file of the traceback changes.

    gunicorn does this only for a SyntaxError, and watches only the file that has it.
    """
    log.error("The app cannot be loaded; that is tried again when a file of this traceback changes", exc_info=error)
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        files.append(error.filename)
    for file in files:
        if not file.startswith("<"):  # Python gives such names to its own import code
            reloader.add_extra_file(file)
    if isinstance(error, SyntaxError):
        return make_fail_app("".join(traceback.format_exception(error)))
    # The message of another error may have secrets in it, and everybody can see the page.
    return make_fail_app(f"The app cannot be loaded: {type(error).__name__}. The log has the whole error.\n")
