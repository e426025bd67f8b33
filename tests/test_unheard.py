"""A process that publishes into its own memory but serves no client logs one warning.

A process that serves clients logs none.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import client
from tests.servers import ROOT, free_port, wait_until

APP = """
import os, sys, threading, time
from flask import Flask
from sse import SSE

app = Flask(__name__)
app.config["SSE_PUBLIC"] = "*"
sse = SSE(app)

def publish(count=1):
    with app.app_context():
        for _ in range(count):
            sse.publish("a", "x")
"""
REMEDY = "set SSE_REDIS_URL to the same Redis here"
MANY = f"""{APP}
from sse import unheard

def later():
    unheard._PATIENCE = 0.0  # as if ten seconds had gone by
"""


def run(program: str, *arguments: str, directory: Path | None = None, **env: str) -> str:
    """Run this code, or a module, in Python, and return its output."""
    done = subprocess.run(
        [sys.executable, *(arguments or ("-c", program))],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        cwd=directory or ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "rest",
    {
        "a script": "publish(3)",
        "in a request that nobody sent": "app.test_request_context().push(); sse.publish('a', 'x')",
        "a thread of it": "thread = threading.Thread(target=publish); thread.start(); thread.join()",
        "what it revokes": "app.app_context().push(); sse.revoke(sub='ann')",
        "a fork of it": "pid = os.fork()\nif not pid:\n    publish()\n    sys.exit()\nos.waitpid(pid, 0)",
        "an app in a function": "def main():\n    import gc\n    gc.disable()\n    publish()\nmain()",
    }.items(),
    ids=lambda item: item[0],
)
def test_who_publishes_into_nothing_is_told_at_the_end(rest: tuple[str, str]) -> None:
    said = run(f"{APP}\n{rest[1]}\nprint('the end')")
    assert said.count(REMEDY) == 1
    assert said.index("the end") < said.index(REMEDY)


def test_one_who_goes_on_is_told_later_and_once() -> None:
    said = run(f"{MANY}\npublish(3)\nprint('first')\nlater()\npublish(3)\nprint('the end')")
    assert said.count(REMEDY) == 1
    told = run(f"{MANY}\npublish(3)\nlater()\npublish(1)\nassert unheard.unheard._settled")
    assert told.count(REMEDY) == 1


@pytest.mark.parametrize(
    "rest",
    {
        "a request before": "app.test_client().get('/'); publish(3)",
        "a request afterwards": "publish(3); app.test_client().get('/')",
        "under test": "app.testing = True; publish(3)",
        "nothing published": "app.test_client()",
        "waitress": "import types; sys.modules['waitress'] = types.ModuleType('waitress'); publish(3)",
    }.items(),
    ids=lambda item: item[0],
)
def test_who_serves_or_tests_is_told_nothing(rest: tuple[str, str]) -> None:
    assert run(f"{APP}\n{rest[1]}") == ""


def test_a_script_that_publishes_over_redis_is_told_nothing(redis_url: str) -> None:
    assert run(f"{APP}\npublish(3)", SSE_REDIS_URL=redis_url) == ""


def test_a_command_of_the_app_and_its_shell_are_told(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(f"{APP}\n@app.cli.command()\ndef nightly():\n    publish()\n")
    assert run("", "-m", "flask", "--app", "shop", "nightly", directory=tmp_path).count(REMEDY) == 1
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "shop", "shell"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        input="from shop import sse\nsse.publish('a', 'x')\n",
    )
    assert (done.stdout + done.stderr).count(REMEDY) == 1


SERVERS = {
    "flask run": ["-m", "flask", "--app", "shop", "run", "--port", "PORT"],
    "its reloader": ["-m", "flask", "--app", "shop", "run", "--port", "PORT", "--reload"],
    "app.run": ["shop.py", "PORT"],
    "gunicorn": ["-m", "gunicorn", "-b", "127.0.0.1:PORT", "shop:app", "--no-control-socket"],
    "its preload": ["-m", "gunicorn", "--preload", "-b", "127.0.0.1:PORT", "shop:app", "--no-control-socket"],
}


@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_a_server_whose_app_publishes_before_any_request_is_told_nothing(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "shop.py").write_text(
        f"{MANY}\nlater()\npublish()\n"
        "def keep_on():\n"
        "    time.sleep(1)\n"
        "    for _ in range(20):\n        publish()\n        time.sleep(0.1)\n"
        "threading.Thread(target=keep_on, daemon=True).start()\n"
        "if __name__ == '__main__':\n    app.run(port=int(sys.argv[1]))\n"
    )
    port = str(free_port())
    log = tmp_path / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, *(word.replace("PORT", port) for word in command)],
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        wait_until(lambda: _listens(port), 15)
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(3)
        answer = client.request(f"http://127.0.0.1:{port}", "GET", "/sse/poll?channel=a&replay=9&timeout=0").json()
        # With --preload, no worker has the events that were published before the fork.
        assert answer["events"] or "--preload" in command
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(10)
    assert REMEDY not in log.read_text()


def _listens(port: str) -> bool:
    try:
        client.connect(f"http://127.0.0.1:{port}", 5).close()
    except OSError:
        return False
    return True
