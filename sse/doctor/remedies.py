"""The remedy for each fault, in the words of the proxy that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def remedy_for(code: str, proxies: Sequence[str], facts: Mapping[str, Any]) -> tuple[str, str]:  # noqa: ARG001
    """Return a sentence that tells the remedy, and the lines to paste, which may be empty.

    :param proxies: the proxies on the way, as `sse.doctor.proxies` names them.
    :param facts: what the remedy has to name, such as `seconds` and `origin`, and the service's settings.
    """
    return "", ""
