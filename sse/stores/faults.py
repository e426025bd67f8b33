"""Redis's errors in words for an operator.

Each error becomes a StoreUnavailable that says what is wrong, with the remedy that fits. An error reply is
recognized by its first words, an error of the connection by its cause.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from typing import Final

import redis
from redis.exceptions import BusyLoadingError, InvalidResponse

from sse.errors import StoreUnavailable

CLUSTER: Final = (
    "Redis is in cluster mode, where this service would reach only some of the channels",
    "have SSE_REDIS_URL name a Redis that runs without cluster-enabled",
)
"""The fault of a Redis Cluster, and its remedy."""

_MAX_TEXT: Final = 300  # characters of an error's text that are shown
_REMEDIES: Final = (  # by the first words of the error
    ("MISCONF Errors writing to the AOF", "make room on the disk of Redis's append-only file; Redis's log says more"),
    ("MISCONF", "see in Redis's log why it cannot save its snapshot, such as a full disk, and mend that"),
    ("OOM", "raise Redis's maxmemory, or lower SSE_RING or SSE_RING_TTL"),
    ("NOREPLICAS", "see that Redis's replicas run, or lower its min-replicas-to-write"),
    ("READONLY", "have SSE_REDIS_URL name the primary: this Redis is a replica"),
    ("MASTERDOWN", "have SSE_REDIS_URL name the primary: this Redis is a replica that has lost it"),
    ("NOPERM", "grant it with ACL SETUSER; docs/operating.md has the whole list"),
    ("NOAUTH", "put the password into SSE_REDIS_URL: redis://:PASSWORD@HOST or redis://USER:PASSWORD@HOST"),
    ("WRONGPASS", "mend the user or password in SSE_REDIS_URL; ACL GETUSER tells whether the user is on"),
    ("ERR invalid password", "mend the password in SSE_REDIS_URL"),
    ("ERR AUTH <password> called without any", "take the password out of SSE_REDIS_URL, or set Redis's requirepass"),
    (
        "ERR DB index",
        "have SSE_REDIS_URL name a database that Redis has: their number, 16 by default, is its `databases`",
    ),
    ("ERR max number of clients", "raise Redis's maxclients, or have fewer clients"),
    ("DENIED", "set a password for Redis's default user, and put it into SSE_REDIS_URL"),
    ("BUSY", "wait until the script that Redis runs has ended, or end it with SCRIPT KILL"),
    ("ERR unknown command", "have SSE_REDIS_URL name a whole Redis: not a Sentinel, and no proxy that lacks commands"),
)
_BAD_FILE: Final = ("NO_CERTIFICATE", "NO_START_LINE", "PEM", "KEY_VALUES", "BAD_", "EE_KEY", "CA_MD", "WRONG_PUBLIC")
_CLUSTER_ERRORS: Final = ("ERR SELECT is not allowed in cluster mode", "MOVED", "CLUSTERDOWN", "CROSSSLOT")


@contextlib.contextmanager
def translated(scheme: str, *, is_known: bool) -> Iterator[None]:
    """Raise errors of Redis and of the network in this block as StoreUnavailable, see `unreachable`."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise unreachable(error, scheme, is_known=is_known) from error


def refusal(error: object, what: str, otherwise: str = "see the key in redis-cli") -> StoreUnavailable:
    """Return the fault of a Redis that refuses something, with the remedy for its error.

    :param error: the error reply, or its text.
    :param what: that which is refused, to follow "Redis refuses".
    :param otherwise: the remedy if there is none for this error.
    """
    text = _text(error)
    if text.startswith(_CLUSTER_ERRORS):
        return StoreUnavailable(*CLUSTER)
    remedy = next((remedy for start, remedy in _REMEDIES if text.startswith(start)), otherwise)
    return StoreUnavailable(f"Redis refuses {what}: {error_text(error)}", remedy)


def unreachable(error: Exception, scheme: str, *, is_known: bool) -> StoreUnavailable:
    """Return the fault of a Redis that gives no reply, or does not accept this connection.

    :param scheme: the URL's, `redis`, `rediss` or `unix`.
    :param is_known: whether this Redis has been used before, which shows that the URL is right.
    """
    if isinstance(error, BusyLoadingError):
        return StoreUnavailable("Redis is still loading its data", "wait until it has; its log tells how far it is")
    if isinstance(error, InvalidResponse):
        return StoreUnavailable("no Redis answers there", "have SSE_REDIS_URL name the host and port of a Redis")
    if isinstance(error, redis.ResponseError) or getattr(error, "status_code", None):
        return refusal(error, "this connection", "see Redis's log")
    if (cause := _cause(error, ssl.SSLCertVerificationError)) is not None:
        return _untrusted(cause)
    return StoreUnavailable(
        f"Redis does not answer: {error_text(error)}", _connection_remedy(error, scheme, is_known=is_known)
    )


def error_text(error: object) -> str:
    """Return the text of an error, shortened, and without the arguments of a command, which may be a password."""
    return str(error).partition(", with args beginning with")[0][:_MAX_TEXT].rstrip(".")


def _text(error: object) -> str:
    """Return the text as Redis sent it, because redis-py cuts the code off errors that it knows."""
    code = getattr(error, "status_code", None)
    return f"{code} {error}" if code else str(error)


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _untrusted(error: BaseException) -> StoreUnavailable:
    reason = getattr(error, "verify_message", "") or str(error)
    if "expired" in reason or "not yet valid" in reason:
        remedy = "renew it, and see that the clocks here and there are right"
    elif "mismatch" in reason:
        remedy = "have SSE_REDIS_URL name a host that the certificate is for, or have one made for this host"
    else:
        remedy = "name the file of the authority that signed it: rediss://HOST?ssl_ca_certs=FILE"
    return StoreUnavailable(f"Redis's certificate is not accepted: {reason}", remedy)


def _connection_remedy(error: Exception, scheme: str, *, is_known: bool) -> str:
    """Return the remedy for a fault of the network or of TLS."""
    if scheme == "unix":
        return "see that it runs, and that this process may use its socket"
    if scheme == "redis" and is_known:
        return "see that it runs and is reachable"
    if scheme == "redis":
        is_cut = _cause(error, ConnectionResetError) is not None or "closed by server" in str(error)
        return "see that it runs and is reachable" + (", and write rediss:// if that port is for TLS" if is_cut else "")
    if _cause(error, FileNotFoundError) is not None or _cause(error, PermissionError) is not None:
        return "see that ssl_ca_certs, ssl_certfile and ssl_keyfile in SSE_REDIS_URL are files that can be read"
    if isinstance(cause := _cause(error, ssl.SSLError), ssl.SSLError) and (cause.reason or "").startswith(_BAD_FILE):
        return "see that ssl_ca_certs, ssl_certfile and ssl_keyfile in SSE_REDIS_URL are certificates and their key"
    if is_known or _cause(error, ConnectionRefusedError) is not None:
        return "see that it runs and is reachable"
    return (
        "see that it runs, that this port is for TLS (else write redis://), and whether it asks its clients for a "
        "certificate (ssl_certfile, ssl_keyfile)"
    )
