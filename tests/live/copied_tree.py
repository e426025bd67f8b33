"""gunicorn in a copy of the repository's files, which a test may edit."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.live.load import ENV
from tests.servers import ROOT, Gunicorn, wait_until


def copy_tree(folder: Path) -> None:
    ignore = shutil.ignore_patterns("*.pyc.*")  # another process is writing it
    for name in ("sse", "static", "demo", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("app.py", "wsgi.py", "gunicorn.conf.py"):
        shutil.copy2(ROOT / name, folder)


class Copy(Gunicorn):
    """gunicorn in a copy of the repository's files."""

    name = "copy"

    def __init__(
        self,
        directory: Path,
        app: str = "wsgi:application",
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, app, ENV | {"SSE_LANE": "auto"} | dict(env or {}), arguments=arguments)
        self.folder = directory / "tree"
        copy_tree(self.folder)

    def environment(self) -> dict[str, str]:
        # Compiled modules come from the repository. Python would take one that is written here for the next edit of its
        # file, if that came within the same second and left the length.
        return super().environment() | {"PYTHONDONTWRITEBYTECODE": "1"}

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def append(self, file: str, text: str) -> None:
        path = self.folder / file
        path.write_text(path.read_text() + text)

    def reload(self) -> None:
        before = set(self.worker_pids())
        os.kill(self.pid, signal.SIGHUP)
        wait_until(lambda: self.worker_pids() and not before & set(self.worker_pids()), 20, what="new workers alone")
        wait_until(self.ready)
