"""The judge of the doctor: from measurements to findings. Both clients, the command and the page, share it.

Each check looks at one kind of fault. It says nothing if its measurement is missing, or if another fault hides it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from sse.doctor.arrivals import Held, held, longest_pause
from sse.doctor.findings import CODES, Finding, Level
from sse.doctor.proxies import PLATFORM_TIMEOUTS, name_of, on_the_way
from sse.doctor.remedies import remedy_for
from sse.doctor.shape import BadMeasure as BadMeasure
from sse.doctor.shape import checked

Measured = Mapping[str, Any]

_SAME_AGE: Final = 1.5  # seconds by which two streams that a timeout cuts may differ in age
_SAME_MOMENT: Final = 0.7  # seconds between two cuts that have one cause, such as a restart
_MARGIN: Final = 0.3  # seconds before the time that was asked for, from which on an end counts as regular
_SOON: Final = 2.0  # seconds in which no time limit strikes
_SKEW: Final = 5.0  # seconds; a token's iat may lie as far in the future
_BLOCKED: Final = 2.0  # seconds that a busy process may stand still
_HEARTBEAT_MISSED: Final = 5.0  # seconds of standing still that clients notice
_FROZEN: Final = 0.5  # of the quiet time
_RETRY_STATUSES: Final = ("429", "503")


def judge(measured: object) -> list[Finding]:
    """Return what is wrong by these measurements, worst first.

    :raises BadMeasure: if they do not have the shape that `sse.doctor.shape` describes.
    """
    known = checked(measured)
    for check in _FATAL:
        if findings := [*check(known)]:
            return findings
    findings = [finding for check in _CHECKS for finding in check(known)]
    return sorted(findings, key=lambda finding: finding.rank)


def _found(measured: Measured, code: str, level: Level, evidence: str, summary: str = "", **facts: Any) -> Finding:
    proxies = on_the_way(measured)
    settings = measured.get("echo", {}).get("settings", {})
    text, paste = remedy_for(
        code, proxies, {"url": measured.get("url", ""), "client": measured.get("client"), **settings, **facts}
    )
    return Finding(code, level, summary or CODES[code], evidence, text, paste)


# ---- findings that leave nothing else to judge


def _unreachable(measured: Measured) -> Iterator[Finding]:
    if reason := measured.get("unreachable"):
        yield _found(measured, "unreachable", "fault", reason)


def _closed(measured: Measured) -> Iterator[Finding]:
    if closed := measured.get("closed"):
        code = closed.get("code", "")
        if code.startswith("pass"):
            evidence = "The probes want a pass, and got none." if code == "pass_missing" else "The pass is not valid."
        else:
            evidence = "The service answers here, but knows no PREFIX/doctor."
        yield _found(measured, "doctor_closed", "fault", evidence, closed=code)


def _not_ours(measured: Measured) -> Iterator[Finding]:
    if (other := measured.get("not_ours")) is None:
        return
    status, location = other.get("status"), other.get("location", "")
    evidence = f"PREFIX/doctor/echo was answered with {status}" if status else "The answer is not the service's"
    if location:
        evidence += f" and points to {location[:300]}"
    if type := other.get("type"):
        evidence += f", as {type[:80]}"
    if title := other.get("title"):
        evidence += f', titled "{title[:120]}"'
    yield _found(measured, "not_ours", "fault", f"{evidence}.", case="moved" if location else "")


_FATAL: Final[Sequence[Callable[[Measured], Iterator[Finding]]]] = (_unreachable, _closed, _not_ours)


# ---- answers


def _cached(measured: Measured) -> Iterator[Finding]:
    if measured.get("same_nonce"):
        headers = measured.get("echo_headers", {})
        marks = [f"{name}: {', '.join(headers[name])[:100]}" for name in ("age", "x-cache", "cf-cache-status")
                 if name in headers]  # fmt: skip
        evidence = "Two requests, one after the other, got the same answer, which has a random number in it"
        yield _found(measured, "cached", "fault", f"{evidence} ({'; '.join(marks)})." if marks else f"{evidence}.")


def _shared(measured: Measured) -> Iterator[Finding]:
    if measured.get("shared"):
        evidence = "Two streams that were open at the same time began with the same random number."
        yield _found(measured, "shared", "fault", evidence)


def _statuses(measured: Measured) -> Iterator[Finding]:
    statuses = measured.get("statuses", {})
    changed = [
        f"{sent} became {got or 'an answer that the browser may not show'}"
        for sent, got in statuses.items()
        if str(got) != sent
    ]
    if changed:
        yield _found(measured, "status_rewritten", "fault", f"{_sentence(changed)}.")
        return
    if replaced := measured.get("replaced"):
        summary = "the bodies of errors are replaced on the way"
        evidence = f"The status arrives, but without the service's JSON: {_sentence(replaced)}."
        yield _found(measured, "status_rewritten", "warning", evidence, summary)
        return
    lost = [status for status, is_there in measured.get("retry_after", {}).items() if is_there is False]
    if lost := [status for status in lost if status in _RETRY_STATUSES]:
        summary, evidence = "Retry-After is lost on the way", f"The header is missing from {_sentence(lost)}."
        yield _found(measured, "status_rewritten", "warning", evidence, summary)


def _last_event_id(measured: Measured) -> Iterator[Finding]:
    sent = measured.get("sent", {}).get("last_event_id")
    if sent is None or "headers" not in measured.get("echo", {}):
        return
    for headers in (measured.get("stream_headers"), measured["echo"]["headers"]):
        if headers is not None and (got := headers.get("last-event-id")) != sent:
            came = "none arrived at the service" if got is None else f"{got[:80]!r} arrived at the service"
            yield _found(measured, "last_event_id_stripped", "fault", f"Last-Event-ID: {sent} was sent, and {came}.")
            return


def _forwarded(measured: Measured) -> Iterator[Finding]:
    echo = measured.get("echo", {})
    forwarded = echo.get("headers", {}).get("x-forwarded-for")
    if forwarded and echo.get("settings", {}).get("proxies") == 0:
        evidence = f"X-Forwarded-For: {forwarded[:100]} arrives, and SSE_PROXIES is 0."
        yield _found(measured, "forwarded_untrusted", "note", evidence, count=forwarded.count(",") + 1)


def _clock(measured: Measured) -> Iterator[Finding]:
    if measured.get("same_nonce"):
        return
    skew = measured.get("skew", 0.0)
    if abs(skew) - measured.get("rtt", 0.0) / 2 > _SKEW:
        evidence = f"The service's clock is {_seconds(abs(skew))} {'ahead of' if skew > 0 else 'behind'} this one's."
        yield _found(measured, "clock_skew", "warning", evidence)


def _http1(measured: Measured) -> Iterator[Finding]:
    if measured.get("http") != "1.1":
        return
    if measured.get("tls"):
        yield _found(measured, "http1", "warning", "The server offers HTTP/1.1 only, and no HTTP/2.")
    elif measured.get("tls") is False:
        yield _found(measured, "http1", "note", "The address begins with http://, where browsers speak HTTP/1.1 only.")


# ---- CORS


def _cors(measured: Measured) -> Iterator[Finding]:
    origin, cors = measured.get("origin"), measured.get("cors")
    if not origin or cors is None:
        return
    written = measured.get("echo", {}).get("cors", {})
    ours = [value for name, values in written.items() if name.lower() == "access-control-allow-origin"
            for value in values]  # fmt: skip
    got = _values(cors.get("allow_origin", ()))
    credentials = _values(cors.get("allow_credentials", ()))
    if len(got) > 1 or len(credentials) > 1:
        evidence = f"Access-Control-Allow-Origin arrives as {_sentence(got)}; browsers want it once."
        yield _found(measured, "cors_doubled", "fault", evidence, origin=origin)
    elif cors.get("blocked"):
        evidence = f"The browser got an answer, and may not show it to a page of {origin}."
        summary = "the browser may not show the answers to this page (CORS)"
        yield _found(measured, "cors_missing", "fault", evidence, summary, origin=origin, case="blocked")
    elif not got and not ours and "cors" in measured.get("echo", {}):
        evidence = f"The service allows no page of {origin} to read it."
        yield _found(measured, "cors_not_allowed", "fault", evidence, origin=origin)
    elif not got:
        evidence = f"The service sends Access-Control-Allow-Origin: {origin}, and it does not arrive."
        yield _found(measured, "cors_missing", "fault", evidence, origin=origin)
    elif got[0] not in (origin, "*"):
        evidence = f"Access-Control-Allow-Origin is {got[0][:100]}, which is another origin than {origin}."
        yield _found(measured, "cors_missing", "fault", evidence, origin=origin)
    elif got[0] == "*" and ours and ours[0] != "*":
        evidence = f"The service sends {ours[0][:100]}, and * arrives, with which browsers send no cookies."
        yield _found(measured, "cors_missing", "fault", evidence, origin=origin)
    else:
        is_foreign = not ours and "cors" in measured.get("echo", {})
        yield from _preflight(measured, origin, cors, is_foreign=is_foreign)


def _preflight(measured: Measured, origin: str, cors: Mapping[str, Any], *, is_foreign: bool) -> Iterator[Finding]:
    status = cors.get("preflight_status")
    allowed = {name.lower() for name in _values(cors.get("preflight_allow_headers", ()))}
    if status is None:
        return
    if not 200 <= status <= 299:
        how = f"was answered with {status}" if status else "failed"
        evidence = f"OPTIONS, which browsers ask before they send a Last-Event-ID, {how}."
    elif not allowed & {"last-event-id", "*"}:
        evidence = "The answer to OPTIONS does not allow the header Last-Event-ID."
    else:
        return
    if is_foreign:  # the service allows no page of this origin, and a proxy does
        evidence += f" The service allows no page of {origin}; the Access-Control-Allow-Origin comes from a proxy."
        yield _found(measured, "cors_not_allowed", "fault", evidence, origin=origin, case="foreign")
        return
    yield _found(measured, "cors_missing", "fault", evidence, "CORS preflights fail", origin=origin)


def _values(values: Sequence[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


# ---- streams


def _few_streams(measured: Measured) -> Iterator[Finding]:
    holds = measured.get("echo", {}).get("holds")
    if _is_one_at_a_time(measured):
        after = measured["while_streaming"].get("after")
        waited = f" within {_seconds(after)}" if after else ""
        evidence = f"While streams were open, another request was not answered{waited}; before, it was."
        yield _found(measured, "few_streams", "fault", evidence)
    elif holds == "one":
        evidence = "The server that runs the app answers one request at a time in each process."
        yield _found(measured, "few_streams", "fault", evidence)
    elif holds == "threads":
        evidence = "The server that runs the app has a fixed number of threads, and each open stream holds one."
        yield _found(measured, "few_streams", "warning", evidence)


def _is_one_at_a_time(measured: Measured) -> bool:
    return measured.get("while_streaming", {}).get("answered") is False


def _buffered(measured: Measured) -> Iterator[Finding]:
    if evidence := _evidence_of_buffering(measured):
        yield _found(measured, "buffered", "fault", evidence)


def _evidence_of_buffering(measured: Measured) -> str:
    """Return how blocks are held back, or an empty string if they are not."""
    if _is_one_at_a_time(measured):
        return ""
    slack = measured.get("client_gap", 0.0)
    for name in ("small", "fast"):
        stream = _stream(measured, name)
        if _is_silent(stream):
            waited = stream.get("ended_at", stream.get("asked", 0.0))
            what = "The headers came, but no event" if stream.get("status") == 200 else "Nothing came"
            return f"{what} within {_seconds(waited)}, while the service sent some every second."
    small = held(_stream(measured, "small").get("blocks", ()), slack)
    fast = held(_stream(measured, "fast").get("blocks", ()), slack)
    found = small or fast
    if found is None:
        return ""
    if found.until_end and (fast is None or fast.until_end):
        blocks = _stream(measured, "small" if small else "fast")["blocks"]
        return (f"{len(blocks)} events, sent over {_seconds(blocks[-1][1] - blocks[0][1])}, came together: they are "
                "held until the response ends.")  # fmt: skip
    return f"Events came in bunches, up to {_seconds(found.seconds)} late: {_held_bytes(small, fast)}."


def _held_bytes(small: Held | None, fast: Held | None) -> str:
    if fast and not fast.until_end:
        return f"about {_bytes(fast.bytes)} are held at a time"
    if small:
        return f"at least {_bytes(small.bytes)} are held at a time"
    return "they are held until the response ends"


def _is_silent(stream: Mapping[str, Any]) -> bool:
    """Return True if a stream brought no block, though it was neither refused nor answered by an error."""
    is_answered = stream.get("status") in (None, 200) and "refused" not in stream
    return bool(stream) and is_answered and "blocks" in stream and not stream["blocks"] and "asked" in stream


def _answered_by_others(measured: Measured) -> Iterator[Finding]:
    """Judge statuses that neither the service has sent nor a time limit has caused."""
    poll = measured.get("poll", {})
    statuses = {"stream": _strange_status(_stream(measured, "small"))}
    if _is_early(poll):
        statuses["poll"] = _strange_status(poll)
    told = [f"PREFIX/{name} was answered with {status}" for name, status in statuses.items() if status]
    if told:
        evidence = f"{' and '.join(told)} by something else, while PREFIX/doctor/echo came through."
        yield _found(measured, "not_ours", "fault", evidence)


def _strange_status(answer: Mapping[str, Any]) -> int:
    """Return the status of an answer that is not the service's, or 0 if it is."""
    status: int = answer.get("status", 200)
    return 0 if status == 200 or "refused" in answer else status


def _is_early(poll: Mapping[str, Any]) -> bool:
    """Return True if a poll was answered before any time limit could have struck."""
    return bool(poll.get("answered_at", _SOON) < min(_SOON, poll.get("asked", 0.0)))


def _compressed(measured: Measured) -> Iterator[Finding]:
    for name in ("fast", "small"):
        headers = _stream(measured, name).get("headers", {})
        encodings = [value for value in _values(headers.get("content-encoding", ())) if value != "identity"]
        if encodings:
            is_buffered = bool(_evidence_of_buffering(measured))
            evidence = f"The stream came with Content-Encoding: {encodings[0][:40]}"
            evidence += ", and its events are held back." if is_buffered else ", though its events came at once."
            yield _found(measured, "compressed", "fault" if is_buffered else "warning", evidence)
            return


def _content_length(measured: Measured) -> Iterator[Finding]:
    for name in ("fast", "small", "active", "silent"):
        stream = _stream(measured, name)
        if stream.get("status") == 200 and (length := stream.get("headers", {}).get("content-length")):
            evidence = f"A stream came with Content-Length: {', '.join(length)[:40]}, so all of it was there before."
            yield _found(measured, "content_length", "fault", evidence)
            return


def _ages(measured: Measured) -> Iterator[Finding]:
    """Judge the silent and the active stream together, because each tells whether the other one is sure."""
    if _is_one_at_a_time(measured):
        return
    if _outage(measured) is not None or _strange_status(_stream(measured, "small")):
        return  # other checks tell it
    silent, active = _cut_at(measured, "silent"), _cut_at(measured, "active")
    if silent is not None and active is not None and silent > active - _SAME_AGE:
        silent = None
    if active is not None:
        yield _request_timeout(measured, active)
    elif finding := _lifetime(measured):
        yield finding
    if silent is not None:
        yield _idle_cutoff(measured, silent)


def _request_timeout(measured: Measured, age: float) -> Finding:
    lifetime = measured.get("echo", {}).get("settings", {}).get("stream_lifetime")
    evidence = f"A stream with an event every second was cut at the age of {_seconds(age)}"
    if lifetime is not None and lifetime <= age - _MARGIN:
        evidence += f"; SSE_STREAM_LIFETIME, which is {lifetime:.0f}, ends streams before that."
        return _found(measured, "request_timeout", "note", evidence, seconds=age)
    evidence += "." if lifetime is None else f"; SSE_STREAM_LIFETIME is {lifetime:.0f}."
    return _found(measured, "request_timeout", "fault", evidence, seconds=age)


def _lifetime(measured: Measured) -> Finding | None:
    lifetime = measured.get("echo", {}).get("settings", {}).get("stream_lifetime")
    for proxy in on_the_way(measured):
        limit = PLATFORM_TIMEOUTS.get(proxy)
        if limit and lifetime and lifetime > limit:
            evidence = (f"SSE_STREAM_LIFETIME is {lifetime:.0f}, and {name_of(proxy)} ends a response after {limit} s, "
                        "unless it is told otherwise.")  # fmt: skip
            return _found(measured, "lifetime", "warning", evidence, seconds=limit, platform=proxy)
    return None


def _idle_cutoff(measured: Measured, age: float) -> Finding:
    heartbeat = measured.get("echo", {}).get("settings", {}).get("heartbeat")
    evidence = f"A stream without events was cut after {_seconds(age)}"
    if heartbeat is None:
        return _found(measured, "idle_cutoff", "warning", f"{evidence}.", seconds=age)
    evidence += f", and the service's heartbeat comes every {heartbeat:.0f} s"
    if age <= heartbeat * 1.1:
        return _found(measured, "idle_cutoff", "fault", f"{evidence}: too late.", seconds=age)
    if age < heartbeat * 2:
        return _found(measured, "idle_cutoff", "warning", f"{evidence}: one that is late is too late.", seconds=age)
    summary = "quiet streams would be cut, but heartbeats keep them open"
    return _found(measured, "idle_cutoff", "note", f"{evidence}: in time.", summary, seconds=age)


def _outage(measured: Measured) -> float | None:
    """Return the moment at which both long streams ended, though they had different ages; None if they did not."""
    silent, active = _cut_at(measured, "silent"), _cut_at(measured, "active")
    if silent is None or active is None:
        return None
    moment = silent + float(_stream(measured, "silent").get("started_at", 0.0))
    apart = active + float(_stream(measured, "active").get("started_at", 0.0)) - moment
    return moment if abs(apart) < _SAME_MOMENT < abs(active - silent) else None


def _cut_at(measured: Measured, name: str) -> float | None:
    """Return the age at which a stream was cut, or None if it was not, or if nobody knows."""
    stream = _stream(measured, name)
    age, asked = stream.get("ended_at"), stream.get("asked")
    if age is None or asked is None or stream.get("finished") or "refused" in stream:
        return None
    return float(age) if age < asked - _MARGIN else None


def _stream(measured: Measured, name: str) -> Mapping[str, Any]:
    stream: Mapping[str, Any] = measured.get("streams", {}).get(name, {})
    return stream


def _poll_cut(measured: Measured) -> Iterator[Finding]:
    poll = measured.get("poll", {})
    if "asked" not in poll or "refused" in poll or _is_one_at_a_time(measured):
        return
    asked, status, age = poll["asked"], poll.get("status"), poll.get("answered_at")
    outage = _outage(measured)
    if _is_early(poll) and _strange_status(poll):
        return  # `_answered_by_others` tells it
    if status == 200 or (age is not None and outage is not None and abs(age - outage) < _SAME_MOMENT):
        return
    how = f"was answered with {status}" if status else "was cut" if age is not None else "was not answered"
    after = "" if age is None else f" after {_seconds(age)}"
    evidence = f"A poll that should have waited for {_seconds(asked)} {how}{after}."
    yield _found(measured, "poll_cut", "fault", evidence, seconds=asked if age is None else age)


def _leaving(measured: Measured) -> Iterator[Finding]:
    left = measured.get("left", {})
    if left.get("noticed") is False and not _is_one_at_a_time(measured):
        after = left.get("after")
        within = f" within {_seconds(after)}" if after else ""
        evidence = f"A client went away, and the service, which kept sending, did not learn of it{within}."
        yield _found(measured, "leaving_unnoticed", "warning", evidence)


# ---- the server's own clock


def _frozen(measured: Measured) -> Iterator[Finding]:
    ticks = measured.get("ticks", {})
    quiet, gap, lost = ticks.get("quiet"), ticks.get("longest_gap", 0.0), ticks.get("lost", 0.0)
    if quiet is None or ticks.get("same_worker") is False or measured.get("same_nonce"):
        return
    stood = max(gap, lost)
    evidence = f"In {_seconds(quiet)} without a request, the process stood still for {_seconds(stood)}"
    if stood >= _FROZEN * quiet:
        yield _found(measured, "frozen", "fault", f"{evidence}.")
    elif gap >= _BLOCKED:
        yield _found(measured, "stalled", "warning", f"{evidence}.", "the server's process stands still at times")


def _stalled(measured: Measured) -> Iterator[Finding]:
    if _is_one_at_a_time(measured):
        return
    for name, every in (("active", 1.0), ("small", 1.0)):
        pause = longest_pause(_stream(measured, name).get("blocks", ())) - every
        if pause >= _BLOCKED:
            evidence = f"By the service's own clock, {_seconds(pause)} passed in which it should have sent an event."
            level: Level = "fault" if pause >= _HEARTBEAT_MISSED else "warning"
            yield _found(measured, "stalled", level, evidence)
            return


# ---- what is not known


def _unsure(measured: Measured) -> Iterator[Finding]:
    reasons = [*measured.get("skipped", ())][:10]
    if (gap := measured.get("client_gap", 0.0)) >= 1:
        reasons.append(f"this machine itself stood still for {_seconds(gap)}")
    if measured.get("ticks", {}).get("same_worker") is False:
        reasons.append("the two looks at a quiet server met different workers")
    if _outage(measured) is not None:
        reasons.append("all streams ended at the same moment, as in a restart or an outage")
    refused = [name for name in ("fast", "small", "silent", "active") if "refused" in _stream(measured, name)]
    if refused or "refused" in measured.get("poll", {}):
        reasons.append("the service refused some probes, as it does when the doctor is asked too often")
    if reasons:
        yield _found(measured, "unsure", "note", f"{'; '.join(reasons)[:1000]}.".capitalize())


_CHECKS: Final[Sequence[Callable[[Measured], Iterator[Finding]]]] = (
    _few_streams, _answered_by_others, _cached, _shared, _buffered, _compressed, _content_length, _cors, _ages,
    _poll_cut, _frozen, _stalled, _last_event_id, _statuses, _leaving, _clock, _http1, _forwarded, _unsure,
)  # fmt: skip


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"


def _bytes(value: int) -> str:
    return f"{value / 1024:.0f} KB" if value >= 1024 else f"{value} bytes"


def _sentence(items: Sequence[str]) -> str:
    return ", ".join(str(item)[:100] for item in items[:8]) or "nothing"
