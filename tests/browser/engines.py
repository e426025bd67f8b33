"""The browsers. Each starts with an empty profile and without a window, and is stopped with all its children.

No WebDriver is used: a page reports by itself what it sees (see origin.py). The browsers accept any certificate.
Requests that a browser makes on its own never leave this machine: all but loopback goes to a proxy that is not there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from tests import servers
from tests.servers import Server, wait_until

NOWHERE = "127.0.0.1:9"


class Engine(Server):
    """A browser that shows `urls`, each in its own tab if the engine has tabs."""

    def __init__(self, directory: Path, *urls: str, arguments: Sequence[str] = ()) -> None:
        super().__init__(directory)
        self.urls, self.arguments = urls, arguments
        self.profile = self.dir / "profile"

    def browse(self) -> Sequence[str]:
        """Return the command line, without the parts that contain the browser."""
        raise NotImplementedError

    def command(self) -> Sequence[str]:
        return ["setsid", *self.browse()]  # a session of its own: what has to go at the end is known by it

    def environment(self) -> dict[str, str]:
        """Return an environment without this user's settings and desktop."""
        home = str(self.profile)
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
        folders = {f"XDG_{kind}_HOME": f"{home}/{kind.lower()}" for kind in ("CACHE", "CONFIG", "DATA", "STATE")}
        return kept | folders | {"HOME": home, "TMPDIR": home}

    def ready(self) -> bool:
        return True  # its page says when

    def start(self, timeout: float = 30) -> Self:
        shutil.rmtree(self.profile, ignore_errors=True)
        self.profile.mkdir(parents=True)
        return super().start(timeout)

    def stop(self, timeout: float = 10, by: signal.Signals = signal.SIGKILL) -> None:
        """End the browser and all its children, without waiting for it to save its profile."""
        if self.process is None:
            return
        leader = self.pid

        def gone() -> bool:
            left = servers.session(leader)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, by)
            return not left

        self.process.kill()
        self.process.wait(timeout)
        wait_until(gone, timeout, what=f"{self.name}'s children are gone")
        self.process = None

    def kill(self) -> None:
        self.stop()


class Chromium(Engine):
    name = "chromium"

    def browse(self) -> Sequence[str]:
        return [
            "chromium",
            "--headless=new",
            f"--user-data-dir={self.profile}",
            f"--proxy-server=http://{NOWHERE}",  # loopback never goes through one
            *(
                "--no-sandbox --disable-gpu --disable-dev-shm-usage --ignore-certificate-errors --no-first-run "
                "--no-default-browser-check --disable-background-networking --disable-component-update "
                "--disable-default-apps --disable-extensions --disable-sync --disable-breakpad --password-store=basic "
                "--enable-logging=stderr --log-level=0"
            ).split(),
            *self.arguments,
            *self.urls,
        ]


class Firefox(Engine):
    """Firefox, driven by its Marionette socket, since only that makes it accept any certificate."""

    name = "firefox"
    PREFERENCES: ClassVar[dict[str, Any]] = {
        "app.normandy.enabled": False,
        "app.update.disabledForTesting": True,
        "browser.aboutwelcome.enabled": False,
        "browser.newtabpage.enabled": False,
        "browser.region.update.enabled": False,
        "browser.safebrowsing.downloads.remote.enabled": False,
        "browser.search.update": False,
        "browser.shell.checkDefaultBrowser": False,
        "browser.startup.page": 0,
        "datareporting.policy.dataSubmissionEnabled": False,
        "dom.push.connection.enabled": False,
        "extensions.update.enabled": False,
        "media.gmp-manager.updateEnabled": False,
        "network.captive-portal-service.enabled": False,
        "network.connectivity-service.enabled": False,
        "network.http.speculative-parallel-limit": 0,
        "network.proxy.http": NOWHERE.partition(":")[0],
        "network.proxy.http_port": int(NOWHERE.partition(":")[2]),
        "network.proxy.ssl": NOWHERE.partition(":")[0],
        "network.proxy.ssl_port": int(NOWHERE.partition(":")[2]),
        "network.proxy.type": 1,
        "services.settings.server": "",
        "termsofuse.bypassNotification": True,
        "toolkit.telemetry.enabled": False,
        "toolkit.telemetry.server": "",
    }

    def __init__(self, directory: Path, *urls: str, arguments: Sequence[str] = ()) -> None:
        super().__init__(directory, *urls, arguments=arguments)
        self.port = servers.free_port()
        self._socket: socket.socket | None = None
        self._commands = 0

    def browse(self) -> Sequence[str]:
        preferences = self.PREFERENCES | {"marionette.port": self.port}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in preferences.items()]
        (self.profile / "user.js").write_text("".join(lines))
        fixed = ["--headless", "--no-remote", "--marionette", "--profile", str(self.profile)]
        return ["firefox-esr", *fixed, *self.arguments]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"MOZ_CRASHREPORTER_DISABLE": "1", "MOZ_REMOTE_SETTINGS_DEVTOOLS": "0"}

    def ready(self) -> bool:
        try:
            self._socket = socket.create_connection(("127.0.0.1", self.port), 1)
        except OSError:
            return False
        self._socket.settimeout(30)
        return True

    def start(self, timeout: float = 60) -> Self:
        super().start(timeout)
        try:
            self._read()  # who it is
            self.ask("WebDriver:NewSession", acceptInsecureCerts=True, pageLoadStrategy="none")
            for place, url in enumerate(self.urls):
                if place:
                    tab = self.ask("WebDriver:NewWindow", type="tab", focus=True)
                    self.ask("WebDriver:SwitchToWindow", handle=tab["handle"])
                self.ask("WebDriver:Navigate", url=url)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout: float = 10, by: signal.Signals = signal.SIGKILL) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        super().stop(timeout, by)

    def ask(self, command: str, **parameters: Any) -> Any:
        """Return the result of a Marionette command."""
        assert self._socket is not None, "firefox is not running"
        self._commands += 1
        message = json.dumps([0, self._commands, command, parameters]).encode()
        self._socket.sendall(b"%d:%b" % (len(message), message))
        _, number, error, result = self._read()
        assert number == self._commands
        assert error is None, f"{command}: {error}"
        return result

    def _read(self) -> Any:
        assert self._socket is not None
        length = b""
        while not length.endswith(b":"):
            length += self._receive(1)
        body = b""
        while len(body) < int(length[:-1]):
            body += self._receive(int(length[:-1]) - len(body))
        return json.loads(body)

    def _receive(self, most: int) -> bytes:
        assert self._socket is not None
        data = self._socket.recv(most)
        assert data, "firefox has closed its Marionette socket"
        return data


class Display(Server):
    """An X server without a screen."""

    name = "display"

    def command(self) -> Sequence[str]:
        # It takes the first number that is free, and tells which.
        return ["sh", "-c", f"exec Xvfb -displayfd 3 -screen 0 1280x1024x24 3>{self._told}"]

    @property
    def _told(self) -> Path:
        return self.log.with_suffix(".number")

    @property
    def number(self) -> str:
        return f":{self._told.read_text().strip()}"

    def ready(self) -> bool:
        return self._told.exists() and self._told.read_text().endswith("\n")


class WebKit(Engine):
    """WebKitGTK's own small browser."""

    name = "webkit"

    def __init__(self, directory: Path, *urls: str, arguments: Sequence[str] = ()) -> None:
        super().__init__(directory, *urls, arguments=arguments)
        self._display = Display(self.dir)

    def browse(self) -> Sequence[str]:
        found = sorted(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"))
        assert found, "MiniBrowser is not installed"
        return [str(found[-1]), "--ignore-tls-errors", *self.arguments, *self.urls]

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "DISPLAY": self._display.number,
            "GDK_BACKEND": "x11",
            "GIO_USE_VFS": "local",
            "GSETTINGS_BACKEND": "memory",
            "NO_AT_BRIDGE": "1",
            "WEBKIT_DISABLE_COMPOSITING_MODE": "1",
            "WEBKIT_DISABLE_DMABUF_RENDERER": "1",
            "http_proxy": f"http://{NOWHERE}",
            "https_proxy": f"http://{NOWHERE}",
            "no_proxy": "127.0.0.1,localhost",
        }

    def start(self, timeout: float = 30) -> Self:
        self._display.start()
        try:
            return super().start(timeout)
        except BaseException:
            self._display.stop()
            raise

    def stop(self, timeout: float = 10, by: signal.Signals = signal.SIGKILL) -> None:
        super().stop(timeout, by)
        self._display.stop()


class PhantomJS(Engine):
    """A WebKit of 2013: ES5, no Promise, no fetch, no Function.prototype.bind. It shows one page."""

    name = "phantomjs"
    HOST: ClassVar[str] = """\
var page = require("webpage").create();
page.onConsoleMessage = function (text) { console.log(text); };
page.onError = function (text, trace) {
  console.log("ERROR " + text);
  trace.forEach(function (at) { console.log("  " + at.file + ":" + at.line + " " + at.function); });
};
page.open(require("system").args[1]);
"""

    def browse(self) -> Sequence[str]:
        import phantomjs_bin

        packed = Path(phantomjs_bin.__file__).parent / "bin/linux/phantomjs"
        program, host = self.dir / "phantomjs", self.dir / "host.js"
        shutil.copyfile(packed, program)  # the package forgets the right to run it
        program.chmod(0o700)
        host.write_text(self.HOST)
        return [
            str(program),
            "--ignore-ssl-errors=true",
            "--ssl-protocol=any",
            f"--local-storage-path={self.profile}",
            f"--offline-storage-path={self.profile}",
            *self.arguments,
            str(host),
            *self.urls,
        ]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"OPENSSL_CONF": "/dev/null"}
