"""The drills of docs/rotating.md work as printed: old and new secrets count together, and then the new one alone."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests import client
from tests.docs import code_blocks, section
from tests.servers import ROOT, Gunicorn, RedisServer, wait_until
from tests.tokens import claims, signed

GUIDE = (ROOT / "docs/rotating.md").read_text()
KEY, SECRET, PASSWORD = "the-publishing-key-of-the-drill", "the-secret-of-the-drill-of-32-bytes", "hush-of-the-drill"


class Machine:
    """A machine with the service, its file of settings, its file of keys and Redis."""

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.dir, self.redis = directory, server
        self.env, self.keys = directory / "throughline.env", directory / "throughline.keys"
        self.env.write_text(
            f"SSE_REDIS_URL=redis://:{PASSWORD}@127.0.0.1:{server.port}/0\nSSE_PUBLISH_KEYS={KEY}\n"
            f"SSE_SECRET={SECRET}\nSSE_PUBLISH_KEYS_FILE={self.keys}\n"
        )
        self.keys.write_text("# names\nbilling the-first-key-of-billing invoices/*\nother the-key-of-another-one *\n")
        self.server = Gunicorn(directory, env=self.settings())

    def settings(self) -> dict[str, str]:
        pairs = (line.partition("=") for line in self.env.read_text().splitlines())
        return {name: value for name, _, value in pairs}

    def run(self, heading: str, number: int) -> bool:
        """Run a block of a section. Return whether it asks for a restart."""
        block = code_blocks(section(GUIDE, heading))[number][1]
        for old, new in (("/etc/throughline", f"{self.dir}/throughline"), ("/root/", f"{self.dir}/")):
            block = block.replace(old, new)
        words = (
            'systemctl() { echo "$*"; }\nthroughline() { :; }\n'
            f'redis-cli() {{ command redis-cli -p {self.redis.port} "$@" >&2; }}\n'
        )
        command = ["bash", "-euc", words + block]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout == "restart throughline\n"

    def restart(self) -> None:
        self.server.stop()
        self.server.env = self.settings()
        self.server.start()

    def publish(self, key: str, channel: str = "a") -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return client.request(self.server.url, "POST", f"/sse/publish/{channel}", body=b"1", headers=headers).status

    def read(self, secret: str) -> int:
        headers = {"Authorization": f"Bearer {signed(claims(), secret)}"}
        return client.request(self.server.url, "GET", "/sse/poll?channel=a&timeout=0", headers=headers).status


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setenv("REDISCLI_AUTH", PASSWORD)
    with RedisServer(tmp_path, requirepass=PASSWORD) as server:
        machine = Machine(tmp_path, server)
        with machine.server:
            yield machine


def test_a_drill_of_all_settings_refuses_nobody_in_between(machine: Machine) -> None:
    mode = machine.env.stat().st_mode
    steps = [("Publishing keys", 0), ("The secret of tokens and tickets", 0), ("Redis's password", 0)]
    assert [machine.run(*step) for step in steps] == [True] * 3
    keys, secrets = (machine.settings()[name].split(",") for name in ("SSE_PUBLISH_KEYS", "SSE_SECRET"))
    assert (len(keys), keys[1], len(secrets), secrets[0]) == (2, KEY, 2, SECRET)
    assert PASSWORD not in machine.env.read_text()
    machine.restart()
    assert {machine.publish(key) for key in keys} == {201}
    assert {machine.read(secret) for secret in secrets} == {200}

    assert machine.run("The secret of tokens and tickets", 1)
    assert machine.settings()["SSE_SECRET"] == f"{secrets[1]},{SECRET}"
    machine.restart()
    assert {machine.read(secret) for secret in secrets} == {200}

    assert machine.run("Publishing keys", 1)
    assert machine.run("The secret of tokens and tickets", 2)
    assert not machine.run("Redis's password", 1)
    machine.restart()
    assert [machine.publish(key) for key in keys] == [201, 401]
    assert [machine.read(secret) for secret in secrets] == [401, 200]
    assert machine.env.stat().st_mode == mode
    with contextlib.closing(machine.redis.client(password=PASSWORD)) as old, pytest.raises(redis.AuthenticationError):
        old.ping()


def test_a_named_key_is_rotated_without_a_restart(machine: Machine) -> None:
    old = "the-first-key-of-billing"
    assert machine.publish(old, "invoices/1") == 201
    machine.run("Named publishing keys", 0)
    new = [line.split()[1] for line in machine.keys.read_text().splitlines() if line.startswith("billing")][1]
    wait_until(lambda: machine.publish(new, "invoices/1") == 201, 5)
    assert machine.publish(old, "invoices/1") == 201
    assert machine.publish(new, "a") == 403
    machine.run("Named publishing keys", 1)
    wait_until(lambda: machine.publish(old, "invoices/1") == 401, 5)
    assert machine.publish(new, "invoices/1") == 201
    assert machine.publish("the-key-of-another-one") == 201
