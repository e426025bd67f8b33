"""A small reader of Dockerfiles, which follows their steps in a sandbox of bubblewrap where no docker daemon runs.

It follows FROM with stages, ARG, ENV, WORKDIR, USER, RUN, COPY, EXPOSE, HEALTHCHECK and CMD in its JSON form, and
refuses all else. The base image is stood in for by `Base`: with this machine's /usr and Python, read-only, or with a
Debian of its own. So it shows that the steps work, as which user and from which files, and not the base image itself.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers import Server, children, client, free_port

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# How pip and others reach the network from this machine, as a docker build has it from its daemon.
NETWORK = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_CERT", "PIP_DEFAULT_TIMEOUT")
PROXY = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class Step:
    """One instruction: `RUN pip install x` has the word RUN and the rest. `flags` are its --name=value."""

    word: str
    rest: str
    flags: Mapping[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """Return the arguments, from the JSON form or from the shell's."""
        if self.rest.startswith("["):
            return [str(word) for word in json.loads(self.rest)]
        return shlex.split(self.rest)


def read_steps(text: str) -> list[Step]:
    """Return the instructions of a Dockerfile. ValueError for one that is not known here."""
    steps = []
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in filter(None, map(str.strip, lines.replace("\\\n", " ").splitlines())):
        word, _, rest = line.partition(" ")
        flags = {}
        while found := re.match(r"--([\w-]+)=(\S+)\s+", rest := rest.strip()):
            flags[found[1]] = found[2]
            rest = rest[found.end() :]
        if word not in {"FROM", "ARG", "ENV", "WORKDIR", "USER", "RUN", "COPY", "EXPOSE", "HEALTHCHECK", "CMD"}:
            raise ValueError(f"{word} is no instruction that is followed here")
        steps.append(Step(word, rest, flags))
    return steps


class Ignored:
    """The paths that a .dockerignore keeps out: the last pattern that matches a path or a parent of it decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        patterns = [line for line in lines if line and not line.startswith("#")]
        self._rules = [(self._expression(line.removeprefix("!")), not line.startswith("!")) for line in patterns]

    @staticmethod
    def _expression(pattern: str) -> re.Pattern[str]:
        parts = re.split(r"(\*\*/|\*)", pattern.strip("/"))
        known = {"**/": "(?:.*/)?", "*": "[^/]*"}
        return re.compile("".join(known.get(part, re.escape(part)) for part in parts))

    def __contains__(self, path: str) -> bool:
        parts = path.split("/")
        parents = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        ignored = False
        for expression, ignores in self._rules:
            if any(expression.fullmatch(parent) for parent in parents):
                ignored = ignores
        return ignored


def context(folder: Path) -> Iterator[str]:
    """Yield the path of each file that a build in `folder` sends to the daemon."""
    listed = folder / ".dockerignore"
    ignored = Ignored(listed.read_text() if listed.exists() else "")
    for directory, folders, files in os.walk(folder):
        inside = Path(directory).relative_to(folder)
        folders[:] = [name for name in folders if name not in {".git", "node_modules", ".venv"}]  # to be quick
        yield from (path for name in files if (path := str(inside / name)) not in ignored)


def link(origin: Path, place: Path) -> None:
    """Copy a folder by hard links, which is quick: the steps of these Dockerfiles replace files, and change none."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-al", f"{origin}/.", str(place)], check=True, timeout=120)


class Base:
    """The stand-in for a base image python:…-slim: what its root has, and how a sandbox is made of it."""

    def __init__(self, debian: Path | None = None) -> None:
        self.debian = debian  # a root file system by debootstrap; without one, this machine's /usr is used

    def make(self, root: Path) -> None:
        """Fill `root`, which does not exist yet."""
        if self.debian:
            subprocess.run(["cp", "-a", "--reflink=auto", self.debian, root], check=True, timeout=120)
        else:
            for name in ("etc", "opt", "run", "root", "tmp", "var/tmp", "home", "proc", "dev", "usr"):
                (root / name).mkdir(parents=True)
            for name in ("bin", "sbin", "lib", "lib64"):
                if Path("/", name).is_symlink():
                    (root / name).symlink_to(f"usr/{name}")
            for name in ("passwd", "group"):
                shutil.copy(f"/usr/share/base-passwd/{name}.master", root / "etc" / name)
            shutil.copytree("/etc/ld.so.conf.d", root / "etc/ld.so.conf.d")
            for name in ("login.defs", "nsswitch.conf", "ld.so.conf", "hosts"):
                if Path("/etc", name).exists():
                    shutil.copy(Path("/etc", name), root / "etc" / name)
        for name in ("etc/ssl", "etc/alternatives"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "etc/resolv.conf").unlink(missing_ok=True)
        (root / "etc/resolv.conf").write_text(Path("/etc/resolv.conf").read_text())
        Image(root, self).run(["ldconfig"], read_only=False).check_returncode()  # for Python's own library

    def mounts(self, root: Path) -> list[str]:
        """Return bubblewrap's options that add to a `root` what it shares with this machine."""
        shared = ["--ro-bind", "/etc/ssl", "/etc/ssl"]
        if not self.debian:
            shared += ["--ro-bind", "/usr", "/usr", "--ro-bind", "/etc/alternatives", "/etc/alternatives"]
        if sys.base_prefix != "/usr":  # in the image, too, Python is in /usr/local
            shared += ["--ro-bind", sys.base_prefix, "/usr/local"]
        else:
            shared += ["--tmpfs", "/usr/local", "--symlink", "/usr/bin/python3", "/usr/local/bin/python"]
        return shared


@dataclass
class Image:
    """A stage of a Dockerfile, or its result: the files, and what a container of it begins with."""

    root: Path
    base: Base
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    healthcheck_flags: dict[str, str] = field(default_factory=dict)

    def sandbox(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        read_only: bool = False,
    ) -> list[str]:
        """Return a command line that runs `command` in a container of this image."""
        user, _, group = self.user.partition(":")
        to_user = ["setpriv", f"--reuid={user}", f"--regid={group or user}", "--clear-groups"]
        if user != "0":
            to_user += ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
        variables = [word for name, value in {**self.env, **(env or {})}.items() for word in ("--setenv", name, value)]
        return [
            *("bwrap", "--ro-bind" if read_only else "--bind", str(self.root), "/"),
            *self.base.mounts(self.root),
            *("--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/tmp"),
            *("--perms", "1777", "--tmpfs", "/dev/shm", "--die-with-parent"),
            *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--clearenv", *variables, "--chdir", self.folder),
            *options,
            *("--", *to_user, "--", *command),
        ]

    def run(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 240, read_only: bool = True
    ) -> subprocess.CompletedProcess[str]:
        line = self.sandbox(command, env, read_only=read_only)
        return subprocess.run(line, check=False, capture_output=True, text=True, timeout=timeout)


class Build:
    """Follow a Dockerfile's steps in `directory`. AssertionError with the output of a step that fails."""

    def __init__(self, directory: Path, context: Path, base: Base, images: Mapping[str, Image] | None = None) -> None:
        self.directory, self.context, self.base = directory, context, base
        self.stages: dict[str, Image] = dict(images or {})
        """The images that FROM may name, and the stages so far."""
        self.bases: set[str] = set()
        """The images that `base` stood in for."""
        self.image: Image | None = None

    def follow(self, dockerfile: str) -> Image:
        arguments: dict[str, str] = {}
        for step in read_steps(dockerfile):
            if step.word == "ARG":
                name, _, default = step.rest.partition("=")
                arguments[name] = default
            elif step.word == "FROM":
                source, _, name = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], step.rest).partition(" AS ")
                self.image = self._begin(source.strip(), name.strip())
            else:
                assert self.image is not None, f"{step.word} comes before FROM"
                getattr(self, f"_{step.word.lower()}")(self.image, step)
        assert self.image is not None, "the Dockerfile has no FROM"
        return self.image

    def _begin(self, source: str, name: str) -> Image:
        number = len(list(self.directory.glob("stage-*")))
        root = self.directory / f"stage-{number}"
        if source in self.stages:
            parent = self.stages[source]
            link(parent.root, root)
            image = Image(root, parent.base, dict(parent.env), parent.folder, parent.user, list(parent.command))
            image.healthcheck, image.healthcheck_flags = list(parent.healthcheck), dict(parent.healthcheck_flags)
        else:
            self.bases.add(source)
            self.base.make(root)
            image = Image(root, self.base)
        if name:
            self.stages[name] = image
        return image

    def _env(self, image: Image, step: Step) -> None:
        for word in step.words():
            name, _, value = word.partition("=")
            image.env[name] = re.sub(r"\$(\w+)", lambda found: image.env.get(found[1], ""), value)

    def _workdir(self, image: Image, step: Step) -> None:
        image.folder = os.path.join(image.folder, step.rest)
        self._inside(image, image.folder).mkdir(parents=True, exist_ok=True)

    def _user(self, image: Image, step: Step) -> None:
        users = self._inside(image, "/etc/passwd").read_text().splitlines()
        names = {line.split(":")[0]: line.split(":")[2:4] for line in users}
        image.user = ":".join(names[step.rest]) if step.rest in names else step.rest
        assert re.fullmatch(r"\d+(:\d+)?", image.user), f"USER {step.rest}: there is no such user"

    def _run(self, image: Image, step: Step) -> None:
        known = {name: os.environ[name] for name in (*NETWORK, *PROXY) if name in os.environ}
        result = image.run(["/bin/sh", "-c", step.rest], env=known, read_only=False)
        assert result.returncode == 0, f"RUN {step.rest}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"

    def _copy(self, image: Image, step: Step) -> None:
        *sources, target = step.words()
        place = self._inside(image, os.path.join(image.folder, target))
        if len(sources) > 1:
            assert target.endswith("/"), "COPY of several files needs a folder that ends in /"
        sent = set() if "from" in step.flags else set(context(self.context))
        for source in sources:
            if "from" in step.flags:
                origin = self._inside(self.stages[step.flags["from"]], source)
                assert origin.is_dir(), f"COPY --from of a single file is not followed here: {source}"
                link(origin, place)
                continue
            inside = [path for path in sent if path == source or path.startswith(f"{source}/")]
            assert inside, f"COPY {source}: the build context has no such file (see .dockerignore)"
            for path in inside:
                is_file = path == source
                name = os.path.basename(path) if is_file else os.path.relpath(path, source)
                goal = place / name if target.endswith("/") or not is_file else place
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.context / path, goal)

    def _expose(self, image: Image, step: Step) -> None:
        assert step.rest == image.env.get("PORT"), "EXPOSE names another port than PORT"

    def _healthcheck(self, image: Image, step: Step) -> None:
        word, _, command = step.rest.partition(" ")
        assert word == "CMD", "HEALTHCHECK without CMD"
        image.healthcheck, image.healthcheck_flags = json.loads(command), dict(step.flags)

    def _cmd(self, image: Image, step: Step) -> None:
        image.command = json.loads(step.rest)  # the shell's form would get the signals in the place of gunicorn

    @staticmethod
    def _inside(image: Image, path: str) -> Path:
        return image.root / path.lstrip("/")


class Container(Server):
    """A container of an image, on this machine's network, with a root that cannot be written. gunicorn is its pid 1."""

    name = "container"

    def __init__(self, directory: Path, image: Image, env: Mapping[str, str], options: Sequence[str] = ()) -> None:
        super().__init__(directory)
        self.image, self.options = image, options
        self.env = {"BIND": f"127.0.0.1:{free_port()}", **env}
        self.url = f"http://{self.env['BIND']}"

    def command(self) -> Sequence[str]:
        return self.image.sandbox(self.image.command, self.env, ["--as-pid-1", *self.options], read_only=True)

    def stop(self, timeout: float = 5, by: signal.Signals = signal.SIGTERM) -> None:
        """Ask pid 1 to end, and kill the container if it does not.

        bwrap's own end is not enough: `--die-with-parent` has no effect on a process that has changed its user.
        """
        if self.process is None:
            return
        for pid in children(self.pid):
            os.kill(pid, by)
        try:
            self.process.wait(timeout)
            self.process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def first_pid(self) -> int:
        """Return the pid that the container's pid 1 has outside of it."""
        [pid] = children(self.pid)
        return pid

    def ready(self) -> bool:
        if self.env["BIND"].startswith("unix:"):
            return True
        try:
            return client.request(self.url, "GET", "/sse/health", timeout=5).status == 200
        except OSError:
            return False
