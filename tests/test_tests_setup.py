"""tests/conftest.py sets up signals and file limits, however a shell has started pytest."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

from tests.conftest import FILES
from tests.servers import ROOT

NEEDED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)
HEEDED = "test_what_the_tests_start_heeds_signals_and_has_files"
ODDLY = """
import os, resource, signal, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
if sys.argv[1] == "ignored":
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
else:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def test_what_the_tests_start_heeds_signals_and_has_files() -> None:
    status = subprocess.run(["cat", "/proc/self/status"], check=True, capture_output=True, text=True).stdout
    masks = {name: int(value, 16) for name, _, value in (line.partition(":\t") for line in status.splitlines())
             if name in ("SigIgn", "SigBlk")}  # fmt: skip
    assert [number.name for number in NEEDED if masks["SigIgn"] >> (number - 1) & 1] == []
    assert masks["SigBlk"] == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= min(FILES, hard)
    if os.environ.get("STARTED") == "ignored":
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does to what another shell's background has in its group


def test_what_the_tests_start_heeds_signals_where_a_shell_has_them_ignored_or_blocked() -> None:
    for way in ("ignored", "blocked"):
        tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/test_tests_setup.py::{HEEDED}"]
        done = subprocess.run(
            [sys.executable, "-c", ODDLY, way, *tests],
            cwd=ROOT,
            env={**os.environ, "STARTED": way},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout + done.stderr
