"""The embed script as it is served: its bytes, its headers, its tag, and its place in an installation."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

import sse
from sse.web.script import load, squeeze, strip_comments
from tests.conftest import MakeApp
from tests.servers import ROOT

ORIGIN = "https://a.example"
SOURCE = ROOT / "static" / "sse.js"
VERSIONED = f"/sse/sse.{sse.__version__}.js"
PATHS = pytest.mark.parametrize("path", ["/sse/sse.js", VERSIONED, "/sse/sse.mjs", VERSIONED.replace(".js", ".mjs")])


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app(SSE_ORIGINS=ORIGIN)


def get(app: Flask, path: str, method: str = "GET", **headers: str) -> Any:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return app.test_client().open(path, method=method, headers=sent)


# Its bytes


@pytest.mark.parametrize(
    ("source", "stripped"),
    [
        ("// a\nb;\n", "b;\n"),
        ("a;\n  // b\n\t// c\nd;", "a;\nd;"),
        ("a;\n// b", "a;\n"),
        ("//\n//\n", ""),
        ("/* a\n * b\n */\nc;\n", "c;\n"),
        ("  /** a */  \nb;\n", "b;\n"),
        ("a;\n/* b */", "a;\n"),
        ("a\n/* b\n */ c", "a\n c"),
        ("// a /* b\nc;\n/* d // e */\nf;", "c;\nf;"),
        ("/* a */ /* b */\n", " /* b */\n"),
        ("/* a */\n\n\n// b\nc;\n", "\n\nc;\n"),
        ("a; // b\nc; /* d */\n", "a;\nc; /* d */\n"),
        ("f(function () { // it's b\n});\n", "f(function () {\n});\n"),
        ('a = "; // b";\nc = ["; // d", 1]; // e\n', 'a = "; // b";\nc = ["; // d", 1];\n'),
        ('a = "http://b";\nc = /\\/*x\\/\\//;\nd = 1 / 2;\n', 'a = "http://b";\nc = /\\/*x\\/\\//;\nd = 1 / 2;\n'),
        ("", ""),
    ],
)
def test_comments_are_stripped_and_nothing_else(source: str, stripped: str) -> None:
    assert strip_comments(source) == stripped


@pytest.mark.parametrize(
    ("source", "squeezed"),
    [
        ("  var a = 1, b;\n\n  if (a) { b = -a; }\n", "var a=1,b;if(a){b=-a;}"),
        (r"""f("a , b", "\" - " + "\\" + "'") ;""", r"""f("a , b","\" - "+"\\"+"'");"""),
        ("a = b / 2 + c / 3;\n", "a=b / 2+c / 3;"),
        ('a = /[/ ] , "\\/ =/.test(b) ;\n', 'a=/[/ ] , "\\/ =/.test(b);'),
        ("return typeof a === b ? c : d;\nvar e = a in b;\n", "return typeof a===b?c:d;var e=a in b;"),
    ],
)
def test_spaces_are_taken_out_of_code_and_of_nothing_else(source: str, squeezed: str) -> None:
    assert squeeze(source) == squeezed


SAME = """
import { parse } from "acorn";
import { readFileSync } from "node:fs";
const tree = (file) => JSON.stringify(parse(readFileSync(file, "utf8"), { ecmaVersion: 5 }), (name, value) =>
  name === "start" || name === "end" || name === "raw" ? undefined : value instanceof RegExp ? String(value) : value);
const [source, served] = process.argv.slice(1).map(tree);
console.log(source === served, source.length);
"""


def test_the_script_is_served_as_the_same_program(tmp_path: Path) -> None:
    served = tmp_path / "sse.js"
    served.write_bytes(load().plain.body)
    command = ["node", "--input-type=module", "--eval", SAME, str(SOURCE), str(served)]
    clients = ROOT / "tests" / "clients"
    done = subprocess.run(command, cwd=clients, capture_output=True, text=True, timeout=60, check=True)
    same, length = done.stdout.split()
    assert same == "true"
    assert int(length) > 100_000
    first, code = served.read_text().split("\n", 1)
    assert first == f"/* Throughline {sse.__version__}, MIT licence */"
    assert "\n" not in code
    assert "  " not in code


def test_it_is_small_and_the_same_in_every_process() -> None:
    script = load()
    assert gzip.decompress(script.gzipped.body) == script.plain.body
    assert script.gzipped.body[4:8] == bytes(4), "the time of compression is in it"
    assert len(script.gzipped.body) <= 14_000
    assert script.gzipped.etag != script.plain.etag


def test_its_version_is_the_package_s() -> None:
    assert re.findall(r'\bVERSION = "([^"]*)"', SOURCE.read_text()) == [sse.__version__]


def test_it_is_not_read_before_it_is_asked_for() -> None:
    code = "import app, sse.web.script; app.create_app(); assert sse.web.script.load.cache_info().currsize == 0"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


# Its addresses


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("origins", [(), ORIGIN, f"{ORIGIN} https://b.example", "*"])
@PATHS
def test_its_headers_are_exactly_these_whatever_the_origins(
    make_app: MakeApp, path: str, origins: Any, encoding: str
) -> None:
    app = make_app(SSE_ORIGINS=origins)
    cache = "public, max-age=31536000, immutable" if sse.__version__ in path else "public, max-age=300"
    script = load(module=path.endswith(".mjs"))
    body, etag = script.gzipped if encoding == "gzip" else script.plain
    wanted = [
        ("Access-Control-Allow-Origin", "*"),
        ("Cache-Control", cache),
        *([("Content-Encoding", "gzip")] if encoding == "gzip" else []),
        ("Content-Length", str(len(body))),
        ("Content-Type", "text/javascript; charset=utf-8"),
        ("Cross-Origin-Resource-Policy", "cross-origin"),
        ("ETag", f'"{etag}"'),
        ("Vary", "Accept-Encoding"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    for headers in ({}, {"Origin": ORIGIN}, {"Origin": "null"}):
        answer = get(app, path, Accept_Encoding=encoding, **headers)
        assert (answer.status_code, answer.data) == (200, body)
        assert sorted(answer.headers) == wanted
        answer = get(app, path, "HEAD", Accept_Encoding=encoding, **headers)
        assert (answer.status_code, answer.data, sorted(answer.headers)) == (200, b"", wanted)


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [
        *(("gzip", True), ("br, gzip;q=0.5", True), ("GZIP", True), ("*", True), ("deflate, *;q=0.1", True)),
        *((None, False), ("", False), ("br", False), ("gzip;q=0", False), ("*, gzip;q=0", False), ("*;q=0", False)),
    ],
)
def test_it_is_gzipped_for_whoever_takes_that(app: Flask, accepted: str | None, zipped: bool) -> None:
    answer = get(app, VERSIONED, **({} if accepted is None else {"Accept_Encoding": accepted}))
    assert answer.headers.get("Content-Encoding") == ("gzip" if zipped else None)
    assert answer.data == (load().gzipped if zipped else load().plain).body


@PATHS
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_whoever_has_it_is_told_that_it_is_unchanged(app: Flask, path: str, method: str) -> None:
    script = load(module=path.endswith(".mjs"))
    plain, zipped = script.plain.etag, script.gzipped.etag
    for accepted, own, other in (("identity", plain, zipped), ("gzip", zipped, plain)):
        for known in (f'"{own}"', f'W/"{own}"', f'"x", "{own}"', "*"):
            answer = get(app, path, method, Accept_Encoding=accepted, If_None_Match=known, Origin=ORIGIN)
            assert (answer.status_code, answer.data) == (304, b"")
            assert answer.headers["ETag"] == f'"{own}"'
            assert "max-age" in answer.headers["Cache-Control"]
            assert answer.headers["Vary"] == "Accept-Encoding"
            assert answer.headers.getlist("Access-Control-Allow-Origin") == ["*"]
            assert not {"Content-Type", "Content-Encoding", "Content-Length"} & set(answer.headers.keys())
        for known in (f'"{other}"', '"x"', ""):
            assert get(app, path, method, Accept_Encoding=accepted, If_None_Match=known).status_code == 200


@pytest.mark.parametrize(
    "version",
    ["0.0.0", f"{sse.__version__}.1", f"v{sse.__version__}", "", "%0A", f"{sse.__version__}%0A", sse.__version__[:-2]],
)
def test_another_version_is_404_and_names_the_right_address(app: Flask, version: str) -> None:
    for method in ("GET", "HEAD"):
        answer = get(app, f"/sse/sse.{version}.js", method, Origin=ORIGIN)
        assert (answer.status_code, answer.content_type) == (404, "application/json")
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert answer.headers.getlist("Access-Control-Allow-Origin") == [ORIGIN]
    if version:
        for suffix in ("js", "mjs"):
            hint = get(app, f"/sse/sse.{version}.{suffix}").get_json()["error"]["hint"]
            assert hint.endswith(f"/sse/sse.{sse.__version__}.{suffix}")


def test_it_stands_under_the_prefix(make_app: MakeApp) -> None:
    app = make_app(SSE_PREFIX="/push/v1.0")
    for path in ("/push/v1.0/sse.js", f"/push/v1.0/sse.{sse.__version__}.js"):
        assert get(app, path).data == load().plain.body
    assert "/push/v1.0/sse." in get(app, "/push/v1.0/sse.9.js").get_json()["error"]["hint"]
    assert get(app, "/sse/sse.js").status_code == 404


# An installation


def test_the_wheel_has_the_script_and_serves_it(tmp_path: Path) -> None:
    checkout, installed = tmp_path / "checkout", tmp_path / "installed"
    for name in ("sse", "static"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, checkout]
    built = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        served = {f"sse/static/{name}" for name in ("sse.js", "doctor.html", "doctor.css", "doctor.js")}
        assert {name for name in archive.namelist() if "static" in name} == served
        archive.extractall(installed)
    (tmp_path / "served.py").write_text(
        "import sys, flask, sse\n"
        "app = flask.Flask('served')\n"
        "sse.SSE(app)\n"
        "assert sse.__file__.startswith(sys.argv[1]), sse.__file__\n"
        f"sys.stdout.buffer.write(app.test_client().get('{VERSIONED}').data)\n"
    )
    served = subprocess.run(
        [sys.executable, tmp_path / "served.py", installed],
        check=True, stdout=subprocess.PIPE, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)}, timeout=60,
    )  # fmt: skip
    assert served.stdout == load().plain.body


def test_its_integrity_is_the_hash_of_what_is_served(app: Flask) -> None:
    digest = hashlib.sha384(get(app, VERSIONED).data).digest()
    assert load().integrity == f"sha384-{base64.b64encode(digest).decode()}"
