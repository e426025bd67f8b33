"""Real Redis servers with one fault each, and the message and remedy for each fault."""

from __future__ import annotations

import contextlib
import datetime
import logging
import random
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sse.errors import StoreUnavailable
from sse.event import Event
from sse.hub.hub import Hub
from sse.stores import Publication, RedisStore, connect
from sse.stores.faults import refusal
from sse.stores.fitness import judge
from tests.servers import RedisServer, free_port, wait_until

MakeStore = Callable[..., RedisStore]


@pytest.fixture
def make_store() -> Iterator[MakeStore]:
    made: list[RedisStore] = []

    def make(url: str, **options: Any) -> RedisStore:
        made.append(RedisStore(url, **({"ring": 5, "ring_ttl": 3600, "timeout": 5.0} | options)))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def told(make_store: MakeStore) -> Callable[[str], str]:
    """Return a function that returns the error of all uses of the Redis at a URL, and checks it for secrets."""

    def tell(url: str) -> str:
        store = make_store(url, timeout=2.0)
        raised: list[StoreUnavailable] = []
        for use in (
            lambda: store.newest(["a"]),
            lambda: store.publish([Publication("a", Event("x"))]),
            lambda: read(store),
        ):
            with pytest.raises(StoreUnavailable) as error:
                use()
            raised.append(error.value)
        assert len({error.hint for error in raised}) == 1
        assert not any("hush" in str(error) for error in raised)
        return str(raised[0])

    return tell


def ask(store: RedisStore, _: float) -> None:
    store.newest(["a"])


def read(store: RedisStore) -> None:
    with contextlib.closing(store.feed()) as feed:
        feed.read(0.1)


def with_user(url: str, user: str) -> str:
    return url.replace("//", f"//{user}@")


# Another kind of server


class ClusterNode(RedisServer):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory, cluster_enabled="yes", cluster_port=free_port())


class Sentinel(RedisServer):
    def command(self) -> Sequence[str]:
        config = self.dir / "sentinel.conf"
        config.write_text(f"bind 127.0.0.1\nport {self.port}\ndir {self.dir}\n")
        return ["redis-server", str(config), "--sentinel"]


@pytest.mark.parametrize("slots", [0, 8000, 16384])
def test_a_cluster_is_refused_by_name_however_many_channels_it_would_take(
    told: Callable[[str], str], tmp_path: Path, slots: int
) -> None:
    with ClusterNode(tmp_path) as server, server.client() as client:
        if slots:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, slots - 1)
        for url in (server.url, server.url.replace("/0", "/3")):  # of another database, the connection fails
            assert "cluster mode" in told(url)
            assert told(url).endswith(": have SSE_REDIS_URL name a Redis that runs without cluster-enabled")


def test_a_sentinel_is_refused_by_name(
    told: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Sentinel(tmp_path) as server, caplog.at_level(logging.WARNING, "sse"):
        assert "Redis Sentinel" in told(server.url)
        assert "name the primary" in told(server.url)
        assert "not a Sentinel" in told(server.url.replace("/0", "/3"))
    assert not caplog.messages  # its clock is no matter


class Lacking(RedisServer):
    """A Redis without one command, as some providers offer it."""

    def __init__(self, directory: Path, lacks: str) -> None:
        super().__init__(directory)
        self.lacks = lacks

    def command(self) -> Sequence[str]:
        return [*super().command(), "--rename-command", self.lacks, ""]


@pytest.mark.parametrize("command", ["XADD", "EVALSHA", "PUBLISH", "INFO"])
def test_a_redis_without_a_command_is_refused_with_the_command_s_name(
    told: Callable[[str], str], tmp_path: Path, command: str
) -> None:
    with Lacking(tmp_path, command) as server:
        assert f"unknown command '{command}'" in told(server.url)
        assert "no proxy that lacks commands" in told(server.url)


def test_a_server_that_does_not_know_passwords_does_not_get_one_into_the_log(
    told: Callable[[str], str], tmp_path: Path
) -> None:
    with Lacking(tmp_path, "AUTH") as server:
        assert "unknown command 'AUTH'" in told(with_user(server.url, "ann:hushhush"))


@pytest.mark.parametrize(
    ("info", "fault"),
    [
        ("redis_version:7.0.15\r\nredis_mode:standalone\r\nmaxmemory_policy:noeviction", None),
        ("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.3\r\nserver_mode:standalone", None),
        ("redis_version:10.0.0", None),
        ("redis_version:255.255.255", None),
        ("redis_version:6.2.14", "Redis is 6.2.14: use 7.0 or newer"),
        ("redis_version:6.3.4\r\nredis_mode:standalone", "Redis is 6.3.4"),
        ("redis_version:unstable", "Redis is unstable"),
        ("", "unknown version"),
        ("redis_version:7.2.4\r\nredis_mode:cluster", "cluster mode"),
        ("redis_version:7.2.4\r\ncluster_enabled:1", "cluster mode"),
    ],
)
def test_versions_and_modes_are_told_apart(info: str, fault: str | None) -> None:
    found = judge([info.encode()])
    assert found is None if fault is None else fault in str(found)


def test_a_server_of_another_kind_is_told(told: Callable[[str], str]) -> None:
    with subprocess.Popen(
        ["python3", "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout
            port = server.stdout.readline().split("port ")[1].split()[0]
            assert told(f"redis://127.0.0.1:{port}") == (
                "no Redis answers there: have SSE_REDIS_URL name the host and port of a Redis"
            )
        finally:
            server.kill()


# Credentials and rights


@pytest.mark.parametrize(
    ("user", "fault", "remedy"),
    [
        (":hushwrong", "invalid username-password", "mend the user or password in SSE_REDIS_URL"),
        ("nobody:hushhush", "invalid username-password", "mend the user or password in SSE_REDIS_URL"),
        ("away:hushhush", "user is disabled", "ACL GETUSER tells whether the user is on"),
        ("away", "invalid username-password", "mend the user or password in SSE_REDIS_URL"),
        ("", "Authentication required", "put the password into SSE_REDIS_URL: redis://:PASSWORD@HOST"),
    ],
)
def test_a_login_that_fails_is_told_with_what_to_mend(
    told: Callable[[str], str], tmp_path: Path, user: str, fault: str, remedy: str
) -> None:
    with RedisServer(tmp_path, requirepass="hushhush") as server, server.client(password="hushhush") as client:
        client.execute_command("ACL", "SETUSER", "away", "off", ">hushhush", "~*", "&*", "+@all")
        text = told(with_user(server.url, user) if user else server.url)
        assert text.startswith("Redis refuses this connection: ")
        assert fault in text
        assert remedy in text
        assert "runs and is reachable" not in text


def test_a_password_that_redis_does_not_ask_for_is_told(told: Callable[[str], str], tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        assert "take the password out of SSE_REDIS_URL" in told(with_user(server.url, ":hushhush"))


def test_a_database_that_there_is_not_is_told(told: Callable[[str], str], tmp_path: Path) -> None:
    with RedisServer(tmp_path, databases=4) as server:
        for place in ("/9", "?db=9"):
            assert "have SSE_REDIS_URL name a database that Redis has" in told(server.url.replace("/0", place))


def test_too_many_clients_are_told(told: Callable[[str], str], tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, server.client() as client:
        client.config_set("maxclients", 1)
        assert "raise Redis's maxclients" in told(server.url)
        client.config_set("maxclients", 100)


class LoadingServer(RedisServer):
    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
            return True
        return False


def test_a_redis_that_is_loading_is_told(told: Callable[[str], str], tmp_path: Path) -> None:
    with RedisServer(tmp_path / "before") as server:
        with server.client() as client:
            client.mset({f"key-{number}": random.randbytes(2000) for number in range(1000)})
        server.snapshot()
    slow = LoadingServer(tmp_path / "slow", key_load_delay=20_000, loading_process_events_interval_bytes=1024)
    shutil.copy(server.dump, slow.dump)
    with slow:
        assert told(slow.url) == "Redis is still loading its data: wait until it has; its log tells how far it is"


# The way there


def make_certificate(directory: Path, name: str, *, host: str = "127.0.0.1", days: int = 7) -> tuple[Path, Path]:
    """Make a self-signed certificate for a host, and its key; with `days` below 0, one that has expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - datetime.timedelta(days=30))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True)
    files = directory / f"{name}.crt", directory / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


class TlsServer(RedisServer):
    def __init__(self, directory: Path, certificate: Path, key: Path, **config: Any) -> None:
        self.tls_port = free_port()
        files = {"tls_port": self.tls_port, "tls_cert_file": certificate, "tls_key_file": key}
        super().__init__(directory, **{**files, "tls_auth_clients": "no", **config})
        self.tls_url = f"rediss://localhost:{self.tls_port}/0"


def test_a_certificate_that_is_not_accepted_is_told_with_the_reason(told: Callable[[str], str], tmp_path: Path) -> None:
    good, key = make_certificate(tmp_path, "good", host="localhost")
    for name, host, days, options, reason, remedy in (
        ("stranger", "localhost", 7, "", "self-signed", "rediss://HOST?ssl_ca_certs=FILE"),
        ("other-ca", "localhost", 7, f"?ssl_ca_certs={good}", "", "rediss://HOST?ssl_ca_certs=FILE"),
        ("misnamed", "redis.example", 7, "?ssl_ca_certs=OWN", "mismatch", "name a host that the certificate is for"),
        ("expired", "localhost", -1, "?ssl_ca_certs=OWN", "expired", "renew it"),
    ):
        own, own_key = make_certificate(tmp_path, name, host=host, days=days)
        with TlsServer(tmp_path / name, own, own_key) as server:
            text = told(server.tls_url + options.replace("OWN", str(own)))
            assert text.startswith("Redis's certificate is not accepted: ")
            assert reason in text
            assert remedy in text
    with TlsServer(tmp_path / "fine", good, key) as server:
        connect(f"{server.tls_url}?ssl_ca_certs={good}", ring=1, ring_ttl=60).newest(["a"])


def test_a_certificate_of_the_client_that_is_missing_or_no_such_file_is_told(
    told: Callable[[str], str], tmp_path: Path
) -> None:
    good, key = make_certificate(tmp_path, "good", host="localhost")
    with TlsServer(tmp_path / "redis", good, key, tls_auth_clients="yes", tls_ca_cert_file=good) as server:
        url = f"{server.tls_url}?ssl_ca_certs={good}"
        assert "asks its clients for a certificate (ssl_certfile, ssl_keyfile)" in told(url)
        assert "are files that can be read" in told(f"{server.tls_url}?ssl_ca_certs={tmp_path}/none")
        assert "are certificates and their key" in told(f"{server.tls_url}?ssl_ca_certs={key}")
        assert "are files that can be read" in told(f"{url}&ssl_certfile={tmp_path}/none&ssl_keyfile={key}")
        other = make_certificate(tmp_path, "other")[1]
        assert "are certificates and their key" in told(f"{url}&ssl_certfile={good}&ssl_keyfile={other}")


def test_tls_and_no_tls_that_meet_are_told(told: Callable[[str], str], tmp_path: Path) -> None:
    good, key = make_certificate(tmp_path, "good", host="localhost")
    with TlsServer(tmp_path / "redis", good, key) as server:
        assert "write rediss:// if that port is for TLS" in told(f"redis://127.0.0.1:{server.tls_port}/0")
        assert "this port is for TLS (else write redis://)" in told(f"rediss://localhost:{server.port}/0")


def test_nobody_at_the_address_is_told_as_that_alone(told: Callable[[str], str], tmp_path: Path) -> None:
    assert told(f"redis://127.0.0.1:{free_port()}").endswith(": see that it runs and is reachable")
    assert told(f"rediss://127.0.0.1:{free_port()}").endswith(": see that it runs and is reachable")
    assert told(f"unix://{tmp_path}/none").endswith(": see that it runs, and that this process may use its socket")


def test_a_redis_that_has_been_there_is_away_and_nothing_else(make_store: MakeStore, tmp_path: Path) -> None:
    good, key = make_certificate(tmp_path, "good", host="localhost")
    with TlsServer(tmp_path / "redis", good, key) as server:
        stores = [make_store(server.url), make_store(f"{server.tls_url}?ssl_ca_certs={good}")]
        with contextlib.ExitStack() as stack:
            feeds = [stack.enter_context(contextlib.closing(store.feed())) for store in stores]
            for store, feed in zip(stores, feeds, strict=True):
                assert store.newest(["a"]) == [None]
                feed.read(0.1)
            server.kill()
            for use in [*(feed.read for feed in feeds), *(partial(ask, store) for store in stores)]:
                with pytest.raises(StoreUnavailable) as raised:
                    use(0.1)
                assert raised.value.hint == "see that it runs and is reachable"


# Changes while it runs


@pytest.fixture
def follow(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], RedisStore]]:
    """Start a hub over a URL that often checks its Redis."""
    monkeypatch.setattr("sse.stores.redis._LOOK_EVERY", 0.1)
    monkeypatch.setattr("sse.hub.schedule.CHECK_EVERY", 0.1)
    hubs: list[Hub] = []

    def begin(url: str) -> RedisStore:
        store = make_store(url)
        hubs.append(Hub(store, max_subscribers=10))
        hubs[-1].start()
        return store

    with caplog.at_level(logging.WARNING, "sse"):
        yield begin
    for hub in hubs:
        hub.close()


def looked(client: Any, times: int = 3) -> None:
    """Wait until Redis has been checked so many more times."""
    own = 0

    def asked() -> int:
        nonlocal own
        own += 1
        return int(client.info("commandstats")["cmdstat_info"]["calls"]) - own

    before = asked()
    wait_until(lambda: asked() >= before + times, 10)


def test_a_policy_that_changes_is_told_once_with_the_remedy_and_service_goes_on(
    follow: Callable[[str], RedisStore], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path) as server, server.client() as client:
        store = follow(server.url)
        assert store.newest(["a"]) == [None]
        looked(client)
        assert caplog.messages == []
        client.config_set("maxmemory-policy", "allkeys-lru")
        wait_until(lambda: caplog.messages, 5)
        looked(client)
        assert caplog.messages == [
            "Redis is not fit, but still in use: Redis has maxmemory-policy allkeys-lru, which may "
            "evict rings: set maxmemory-policy noeviction"
        ]
        assert not isinstance(store.publish([Publication("a", Event("x"))])[0], StoreUnavailable)
        client.config_set("maxmemory-policy", "volatile-ttl")
        wait_until(lambda: "volatile-ttl" in caplog.messages[-1], 5)
        client.config_set("maxmemory-policy", "noeviction")
        wait_until(lambda: caplog.messages[-1] == "Redis is fit again", 5)
        assert len(caplog.messages) == 3


def test_a_redis_that_comes_back_otherwise_is_looked_at_at_once(
    make_store: MakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path)
    with server, caplog.at_level(logging.WARNING, "sse"):
        store = make_store(server.url)
        hub = Hub(store, max_subscribers=10)
        hub.start()
        try:
            wait_until(lambda: store._checked, 5)
            server.config["maxmemory-policy"] = "allkeys-lfu"
            server.restart()
            wait_until(lambda: "allkeys-lfu" in caplog.text, 10)  # a look without an occasion would take 60 s
        finally:
            hub.close()


def test_a_redis_that_becomes_a_replica_is_told_and_is_fit_again_as_the_primary(
    follow: Callable[[str], RedisStore], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path / "one") as primary, RedisServer(tmp_path / "two") as server, server.client() as client:
        store = follow(server.url)
        assert store.newest(["a"]) == [None]
        client.replicaof("127.0.0.1", str(primary.port))
        wait_until(lambda: f"Redis is a replica of 127.0.0.1:{primary.port}" in caplog.text, 5)
        assert "have SSE_REDIS_URL name the primary" in caplog.text
        (refused,) = store.publish([Publication("a", Event("x"))])
        assert isinstance(refused, StoreUnavailable)
        assert refused.hint == "have SSE_REDIS_URL name the primary: this Redis is a replica"
        client.replicaof("NO", "ONE")
        wait_until(lambda: "Redis is fit again" in caplog.messages, 5)


@pytest.fixture
def pusher(follow: Callable[[str], RedisStore], tmp_path: Path) -> Iterator[tuple[RedisStore, Any]]:
    """A store whose user is "pusher", and a connection that may change that user's rights."""
    with RedisServer(tmp_path) as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "pusher", "on", ">hushhush", "~sse:*", "&sse:*", "+@all")
        store = follow(with_user(server.url, "pusher:hushhush"))
        assert store.newest(["a"]) == [None]
        yield store, client


def test_rights_that_are_taken_away_are_told_with_the_commands(
    pusher: tuple[RedisStore, Any], caplog: pytest.LogCaptureFixture
) -> None:
    store, client = pusher
    client.execute_command("ACL", "SETUSER", "pusher", "-evalsha", "-set")
    wait_until(lambda: "'evalsha'" in caplog.text and "'set'" in caplog.text, 5)
    assert "grant them with ACL SETUSER" in caplog.text
    refused = store.newest(["a"])[0]
    assert isinstance(refused, StoreUnavailable)
    assert "'evalsha'" in str(refused) and "grant it with ACL SETUSER" in str(refused)
    assert "hush" not in caplog.text


def test_a_password_that_changes_is_told_as_that_when_redis_is_connected_to_again(
    pusher: tuple[RedisStore, Any], caplog: pytest.LogCaptureFixture
) -> None:
    _, client = pusher
    client.execute_command("ACL", "SETUSER", "pusher", "resetpass", ">hushanother")
    client.client_kill_filter(_type="pubsub")
    client.client_kill_filter(user="pusher", skipme=True)
    wait_until(lambda: "mend the user or password in SSE_REDIS_URL" in caplog.text, 5)
    assert "hush" not in caplog.text


# Refusals of what is to be stored


class Confined(RedisServer):
    """A Redis whose files may have 32 KB for now, as on a full disk."""

    def command(self) -> Sequence[str]:
        return ["sh", "-c", 'trap "" XFSZ; ulimit -S -f 64; exec "$@"', "sh", *super().command()]


def fill_append_only_file(client: Any) -> None:
    with pytest.raises(redis.ResponseError, match="MISCONF"):
        for _ in range(100):
            client.set("other", random.randbytes(4000))
            client.info()  # in another turn of its loop, which writes the file


def fail_to_save(client: Any) -> None:
    client.set("other", random.randbytes(100_000))
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 10)


def fill_memory(client: Any) -> None:
    client.config_set("maxmemory", "1mb")


def have_no_replica(client: Any) -> None:
    client.config_set("min-replicas-to-write", 1)


STORAGE_FAULTS = [
    ({"appendonly": "yes"}, fill_append_only_file, "MISCONF Errors writing to the AOF file", "make room on the disk"),
    ({"save": "3600 1"}, fail_to_save, "MISCONF Redis is configured to save RDB", "why it cannot save its snapshot"),
    ({}, fill_memory, "maxmemory", "raise Redis's maxmemory, or lower SSE_RING or SSE_RING_TTL"),
    ({}, have_no_replica, "NOREPLICAS", "see that Redis's replicas run"),
]


@pytest.mark.parametrize(("config", "break_it", "fault", "remedy"), STORAGE_FAULTS)
def test_a_redis_that_cannot_store_is_told_with_the_remedy_and_goes_on_reading(
    follow: Callable[[str], RedisStore],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    config: dict[str, str],
    break_it: Callable[[Any], None],
    fault: str,
    remedy: str,
) -> None:
    with Confined(tmp_path, **config) as server, server.client() as client:
        store = follow(server.url)
        (receipt,) = store.publish([Publication("a", Event("x"))])
        assert not isinstance(receipt, StoreUnavailable)
        break_it(client)
        for refused in (*store.publish([Publication("a", Event("y"))]), *store.ensure(["b"])):
            assert isinstance(refused, StoreUnavailable)
            assert fault in refused.message
            assert remedy in refused.hint
        assert store.newest(["a"]) == [receipt.position]
        wait_until(lambda: remedy in caplog.text, 5)
        looked(client)
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("Redis is not fit, but still in use: Redis refuses to")


def test_a_disk_that_has_room_again_is_told(
    follow: Callable[[str], RedisStore], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Confined(tmp_path, appendonly="yes") as server, server.client() as client:
        store = follow(server.url)
        assert store.newest(["a"]) == [None]
        fill_append_only_file(client)
        wait_until(lambda: "make room" in caplog.text, 5)
        _, most = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (most, most))
        wait_until(lambda: caplog.messages[-1] == "Redis is fit again", 10)
        assert not isinstance(store.publish([Publication("a", Event("x"))])[0], StoreUnavailable)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "see the key in redis-cli"),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "SCRIPT KILL"),
        ("DENIED Redis is running in protected mode", "set a password for Redis's default user"),
        ("CLUSTERDOWN Hash slot not served", "without cluster-enabled"),
    ],
)
def test_a_refusal_has_a_remedy_that_fits(error: str, remedy: str) -> None:
    assert remedy in str(refusal(error, "a command"))
