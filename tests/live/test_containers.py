"""The steps of deploy/docker/Dockerfile are followed, and the result runs as compose and platforms run it.

No docker daemon is needed: tests/containers.py follows the steps in a sandbox of bubblewrap. That needs root, and pip
needs its index. Where either is missing, the tests say so and are skipped. By default the base image is stood in for by
this machine's /usr, read-only. `make containers` has a Debian 12 of its own, by debootstrap.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.containers import Base, Build, Container, Image
from tests.docs import code_blocks, section
from tests.publishing import publish
from tests.servers import ROOT, Gunicorn, RedisServer, make_certificate, wait_until
from tests.tokens import KEY

DOCKER = ROOT / "deploy/docker"
ENV = {"SSE_PUBLIC": "news/*", "SSE_PUBLISH_KEYS": KEY}
NO_NETWORK = ("NewConnectionError", "Temporary failure in name resolution", "NameResolutionError", "ConnectTimeout")
LIBRARIES = (  # that python:…-slim has for Python, beside those of a minimal Debian
    "ca-certificates,netbase,tzdata,libssl3,libsqlite3-0,libffi8,libexpat1,libuuid1,libbz2-1.0,liblzma5,zlib1g"
)


def why_not() -> str | None:
    """Return why no sandbox can be made here."""
    if os.getuid():
        return "not run: a sandbox in which files belong to several users needs root"
    if missing := [name for name in ("bwrap", "setpriv") if not shutil.which(name)]:
        return f"not run: {missing[0]} is not installed"
    tried = subprocess.run(
        ["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "true"],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    return f"not run: {tried.stderr.strip()}" if tried.returncode else None


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    if reason := why_not():
        pytest.skip(reason)
    if not os.environ.get("CONTAINERS"):
        return Base()
    root = tmp_path_factory.mktemp("debian") / "root"
    command = ["debootstrap", "--variant=minbase", f"--include={LIBRARIES}", "bookworm", str(root)]
    made = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return Base(root)


@pytest.fixture(scope="module")
def image(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image that the Dockerfile makes."""
    directory = tmp_path_factory.mktemp("image")
    build = Build(directory, ROOT, base)
    try:
        built = build.follow((DOCKER / "Dockerfile").read_text())
    except AssertionError as error:
        if any(word in str(error) for word in NO_NETWORK):
            pytest.skip("not run: pip does not reach its index")
        raise
    assert build.bases == {"python:3.13-slim-bookworm"}
    yield built
    subprocess.run(["rm", "-rf", directory], check=True, timeout=120)


def test_the_image_runs_with_its_own_settings_as_a_user_that_can_write_nothing(image: Image) -> None:
    """In a network of its own, so that it may listen on the port that the image names."""
    script = f"""
        {" ".join(image.command)} & pid=$!
        for _ in $(seq 100); do python healthcheck.py >/dev/null 2>&1 && break; sleep 0.1; done
        {" ".join(image.healthcheck)} && echo healthy
        python healthcheck.py /nowhere; echo "exit $?"
        id -u; touch /app/x /opt/venv/x /etc/x 2>&1 | wc -l; ls; pip --version >/dev/null && echo has pip
        kill -TERM $pid; wait $pid; echo "gunicorn $?"
        python healthcheck.py
    """
    line = image.sandbox(["sh", "-c", script], options=["--unshare-net"], read_only=True)
    result = subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)
    said = result.stdout.split()
    assert said[:4] == ["healthy", "exit", "1", "10001"], result.stdout + result.stderr
    assert said[4:] == ["3", "app.py", "gunicorn.conf.py", "healthcheck.py", "wsgi.py", "has", "pip", "gunicorn", "0"]
    assert "/nowhere answers 404" in result.stderr
    assert "127.0.0.1:8080 does not answer" in result.stderr.splitlines()[-1]
    assert "Listening at: http://0.0.0.0:8080" in result.stderr


def test_a_container_ends_its_streams_at_sigterm_and_exits_with_0(
    image: Image, redis_server: RedisServer, tmp_path: Path
) -> None:
    env = {**ENV, "SSE_REDIS_URL": redis_server.url, "WEB_CONCURRENCY": "2"}
    with Container(tmp_path, image, env) as container, Stream(container.url, {"channel": "news/today"}) as stream:
        assert stream.until("sse.open")
        publish(container, "news/today", "hello")
        assert stream.until("message").data == "hello"
        assert container.process is not None
        os.kill(container.first_pid(), signal.SIGTERM)
        assert '"drain"' in str(stream.until("sse.close").data)
        began = time.monotonic()
        assert container.process.wait(10) == 0
        assert time.monotonic() - began < 5


def test_a_wrong_setting_ends_the_container_with_its_name(image: Image) -> None:
    result = image.run(image.command, env={"SSE_HEARTBEAT": "soon", "BIND": "127.0.0.1:0"}, timeout=30)
    assert result.returncode == 3
    assert "SSE_HEARTBEAT is 'soon'" in result.stderr + result.stdout


def test_the_image_has_nothing_of_tests_docs_or_secrets(image: Image) -> None:
    installed = next((image.root / "opt/venv/lib").glob("python3.*/site-packages/sse"))
    assert (installed / "stores/append.lua").exists()
    assert (installed / "static/sse.js").exists()
    assert not (image.root / "build").exists(), "the first stage's files are no part of the image"
    assert not [path for path in image.root.rglob("test_*.py") if "site-packages" not in path.parts]
    owners = {path.lstat().st_uid for path in (image.root / "app").rglob("*")}
    assert owners == {0}, "the service's user must not be able to change the service"


def test_an_app_of_one_s_own_is_an_image_on_this_one(image: Image, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "requirements.txt").write_text("")
    example = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    (context / "example.py").write_text(example)
    [dockerfile] = [
        code
        for language, code in code_blocks(section((DOCKER / "README.md").read_text(), "Your own app"))
        if language == "dockerfile"
    ]
    build = Build(tmp_path / "image", context, image.base, {"throughline": image})
    build.directory.mkdir()
    own = build.follow(dockerfile)
    assert not build.bases
    with Container(tmp_path, own, {"FLASK_SECRET_KEY": "x"}) as container:
        assert client.request(container.url, "POST", "/orders/7/paid").json()["id"].startswith("orders=")
        assert "SSE_HEARTBEAT" in own.run(["flask", "--app", "example", "sse", "config"]).stdout
        asked = own.run(own.healthcheck, env=container.env)
        assert (asked.returncode, asked.stderr) == (0, "")


def test_nginx_of_compose_serves_the_service_over_its_socket_and_outlives_it(image: Image, tmp_path: Path) -> None:
    """In a network of its own, so that nginx may listen on ports 80 and 443. The service is in another one."""
    if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("not run: nginx is not installed")
    run, etc, given = (tmp_path / name for name in ("run", "etc", "given"))
    for folder in (run, etc, given / "tls"):
        folder.mkdir(parents=True)
    tmp_path.chmod(0o755)
    os.chown(run, 10001, 10001)
    shutil.copy("/etc/nginx/mime.types", etc)
    shutil.copy(ROOT / "nginx.conf", given)
    shutil.copy(DOCKER / "nginx.sh", given)
    make_certificate(given / "tls/throughline.crt", given / "tls/throughline.key")
    ask = "curl -sk --max-time 5 --resolve push.test:443:127.0.0.1 https://push.test"
    script = f"""
        sh /throughline/nginx.sh & pid=$!
        for _ in $(seq 100); do {ask}/sse/health | grep -q ok && break; sleep 0.1; done
        {ask}/sse/publish/news/today -H 'Authorization: Bearer {KEY}' -d hello
        {ask}'/sse/stream?channel=news/today&replay=1' | grep -m1 hello
        touch /told/ready; for _ in $(seq 100); do [ -e /told/down ] && break; sleep 0.1; done
        {ask}'/sse/stream?channel=news/today' | grep busy
        touch /told/asked; for _ in $(seq 100); do [ -e /told/up ] && break; sleep 0.1; done
        {ask}/sse/health
        kill -QUIT $pid
    """
    told = tmp_path / "told"
    told.mkdir()
    sandbox = [
        *("bwrap", "--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", "--dev", "/dev", "--proc", "/proc"),
        *(word for name in ("bin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")),
        *("--unshare-pid", "--unshare-net", "--die-with-parent", "--dir", "/run", "--dir", "/var/lib/nginx"),
        *("--bind", str(etc), "/etc/nginx", "--ro-bind", str(given), "/throughline", "--bind", str(told), "/told"),
        *("--bind", str(run), "/run/throughline", "--setenv", "PATH", f"{os.environ['PATH']}:/usr/sbin"),
        *("--setenv", "NAME", "push.test", "sh", "-c", script),
    ]
    env = {**ENV, "BIND": "unix:/run/throughline/throughline.sock", "SSE_PROXIES": "1"}
    options = ["--bind", str(run), "/run/throughline"]
    sock = run / "throughline.sock"
    container = Container(tmp_path, image, env, options)
    with container, subprocess.Popen(sandbox, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as nginx:
        try:
            wait_until(lambda: (told / "ready").exists(), 20, what="nginx serves")
            asked = image.sandbox(image.healthcheck, container.env, options, read_only=True)
            assert subprocess.run(asked, check=False, timeout=20).returncode == 0, "compose waits for this"
            container.stop(10)
            (told / "down").touch()
            wait_until(lambda: (told / "asked").exists(), 20, what="nginx has answered alone")
            container.start()
            wait_until(lambda: sock.exists() and accepts(sock), 20, what="the new container listens")
            (told / "up").touch()
            out, err = nginx.communicate(timeout=30)
        finally:
            nginx.kill()
    assert re.search(r'\{"ids":\["news/today=1-', out), out + err
    assert "data: hello" in out
    assert '"reason":"busy"' in out
    assert out.rstrip().endswith("ok") or '"GET /sse/health HTTP/2.0" 200' in out.splitlines()[-1], out
    assert '"POST /sse/publish/news/today HTTP/2.0" 201' in out, "the access log is on the standard output"


class Dyno(Gunicorn):
    """The line of deploy/heroku/Procfile, as Heroku runs it, but for the address."""

    name = "dyno"

    def command(self) -> list[str]:
        [line] = (ROOT / "deploy/heroku/Procfile").read_text().splitlines()
        return ["bash", "-c", line.removeprefix("web: ")]

    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**super().environment(), "PATH": path, "DYNO": "web.1"}


def test_a_dyno_of_heroku_ends_its_streams_though_every_process_gets_the_signal(tmp_path: Path) -> None:
    dyno = Dyno(tmp_path, env={**ENV, "SSE_DRAIN": "1"})
    with dyno, Stream(dyno.url, {"channel": "news/today"}) as stream:
        assert stream.until("sse.open")
        assert dyno.process is not None
        for pid in [*dyno.worker_pids(), dyno.pid]:
            os.kill(pid, signal.SIGTERM)
        assert '"drain"' in str(stream.until("sse.close").data)
        assert dyno.process.wait(10) == 0


def accepts(sock: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as tried:
        return tried.connect_ex(str(sock)) == 0
