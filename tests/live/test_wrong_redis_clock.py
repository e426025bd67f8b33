"""Revocations work when Redis's clock is wrong.

The clock of the service and of the command is moved instead, so that Redis seems behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import client
from tests.servers import ROOT, Gunicorn, wait_until
from tests.tokens import SECRET, claims, signed

APP = "tests.live.apps.shifted_clock:application"


@pytest.mark.parametrize("shift", [60, -3600], ids=["redis-behind", "redis-ahead"])
def test_a_command_revokes_what_was_issued_before_and_nothing_that_is_issued_later(
    redis_url: str, tmp_path: Path, shift: int
) -> None:
    env = {"SSE_REDIS_URL": redis_url, "SSE_SECRET": SECRET, "SSE_PUBLIC": "", "SHIFT": str(shift)}

    def status(ago: float) -> int:
        now = time.time() + shift
        token = signed(claims(iat=int(now - ago), exp=int(now + 600), jti=f"{ago}"))
        headers = {"Authorization": f"Bearer {token}"}
        return client.request(server.url, "GET", "/sse/poll?channel=a&timeout=0", headers=headers).status

    with Gunicorn(tmp_path, APP, env) as server:
        assert status(30) == 200
        command = [sys.executable, "-m", "flask", "--app", APP, "sse", "revoke", "--sub", "ann"]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stdout) == (0, "revoked: sub ann\n")
        assert f"the clock here is {'ahead of' if shift > 0 else 'behind'} Redis's by {abs(shift)} s" in done.stderr
        wait_until(lambda: status(30) == 401, 3)
        wait_until(lambda: status(0) == 200, 15, interval=0.5)  # by a token that is new each time
        assert status(30) == 401
        assert server.logs().count("the clock here is") == 1
    with Gunicorn(tmp_path, APP, env) as server:  # workers that begin later
        assert (status(30), status(0)) == (401, 200)
