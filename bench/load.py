"""The programs in C, compiled at their first use, and the load generator as an object."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
SERVER_CORE, LOAD_CORE = 0, 1


class LoadError(Exception):
    """The load generator has ended, or does not answer."""


def program(name: str) -> str:
    """The path of the program that NAME.c makes."""
    BUILD.mkdir(exist_ok=True)
    source, target = HERE / f"{name}.c", BUILD / name
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", target, source], check=True)
    return str(target)


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started within it runs on this core alone."""
    before = os.sched_getaffinity(0)
    if core in before:  # else there is but one
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Load:
    """A running load generator: a call is a command, its answer a dictionary; see load.c for them."""

    def __init__(self, host: str, port: int) -> None:
        command = [program("load"), host, str(port)]
        with on_core(LOAD_CORE):
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, *words: object, timeout: float = 150) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        line = " ".join(map(str, words))
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise LoadError(f"the load generator has gone before: {line}") from error
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise LoadError(f"no answer within {timeout} s: {line}")
        if not (answer := self._process.stdout.readline()):
            raise LoadError(f"the load generator ended at: {line}")
        result: dict[str, Any] = json.loads(answer)
        return result

    def set(self, name: str, text: str) -> None:
        """Give it a template."""
        self("set", name, text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
