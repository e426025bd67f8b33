"""The findings of the doctor, and the code of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final, Literal

Level = Literal["fault", "warning", "note"]

LEVELS: Final[tuple[Level, ...]] = ("fault", "warning", "note")
"""From the worst. A fault: streams or polls do not get through as they should. A warning: they do, and it will hurt."""

CODES: Final = {
    "unreachable": "nothing answers at this address",
    "not_ours": "something else answers in place of the service",
    "doctor_closed": "the service is there, but its probes are closed",
    "few_streams": "the server holds few streams at a time",
    "cached": "one answer is given twice",
    "shared": "one stream is given to two clients",
    "buffered": "events arrive late, all at once",
    "compressed": "a proxy compresses the stream",
    "content_length": "the stream has a Content-Length",
    "cors_not_allowed": "the service does not allow this origin",
    "cors_missing": "CORS headers are lost on the way",
    "cors_doubled": "CORS headers are there twice",
    "request_timeout": "streams are cut at a certain age",
    "lifetime": "streams may live longer than the platform lets them",
    "idle_cutoff": "quiet streams are cut",
    "poll_cut": "long polls are cut",
    "frozen": "the server stands still between requests",
    "stalled": "the server stands still while streams are open",
    "last_event_id_stripped": "the Last-Event-ID is lost on the way",
    "status_rewritten": "statuses are changed on the way",
    "leaving_unnoticed": "the service is not told of clients that leave",
    "clock_skew": "the clocks differ",
    "http1": "browsers open six connections only",
    "forwarded_untrusted": "the addresses of clients are not trusted",
    "unsure": "something could not be measured",
}
"""What each code stands for, in the order in which the findings of one level are told."""

_PAGE: Final = "docs/troubleshooting.md"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is broken between the client and the service, or that is worth knowing.

    `remedy` is a sentence, and `paste` the lines of configuration that belong to it; it may be empty.
    """

    code: str
    level: Level
    summary: str
    evidence: str
    remedy: str
    paste: str = ""

    @property
    def page(self) -> str:
        """The section of the documentation that treats this code."""
        return f"{_PAGE}#{self.code}"

    @property
    def rank(self) -> tuple[int, int]:
        """The place among other findings: worst first."""
        return LEVELS.index(self.level), [*CODES].index(self.code)

    def to_json(self) -> dict[str, str]:
        """Return the finding as an object of seven strings."""
        return {**asdict(self), "page": self.page}
