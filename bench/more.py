"""Peers in Go, built from the module proxy; `make bench-more` measures them too."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

from bench.load import BUILD
from bench.peers import JSON, ORIGIN, RING, CannotRun, Own, Peer, Process, Target, get, post, start
from tests.servers import free_port

SECRET = "a-secret-of-the-benchmark-of-32-bytes-or-more"


def built(name: str, module: str, version: str, package: str) -> str:
    """The path of a program that Go builds at its first use, which takes minutes."""
    program = BUILD / name
    if program.exists():
        return str(program)
    if not (go := shutil.which("go")):
        raise CannotRun("go is not installed")
    folder = BUILD / f"{name}-module"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go.mod").write_text(f"module bench\n\ngo 1.22\n\nrequire {module} {version}\n")
    # Not `go install`, which asks the proxy for more than the one version.
    words = [go, "build", "-mod=mod", "-o", str(program), package]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        print(done.stderr)
        raise CannotRun(f"Go cannot build {name} {version}")
    return str(program)


def centrifugo(stack: ExitStack, folder: Path) -> Target:
    path = "github.com/centrifugal/centrifugo/v5"
    program = built("centrifugo", path, "v5.4.9", path)
    port = free_port()
    config = folder / "centrifugo.json"
    settings = {
        "address": "127.0.0.1",
        "port": str(port),
        "api_key": SECRET,
        "allowed_origins": [ORIGIN],
        "uni_sse": True,
        "allow_anonymous_connect_without_token": True,
        "allow_subscribe_for_client": True,
        "allow_subscribe_for_anonymous": True,
        "health": True,
        "history_size": RING,
        "history_ttl": "1h",
        "force_recovery": True,
        "log_level": "error",
    }
    config.write_text(json.dumps(settings))
    server = Process(folder, "centrifugo", port, program, "-c", config, knock="/health")
    start(stack, server)
    connect = quote('{"subs":{"CHANNEL":{}}}')
    stream = get(f"/connection/uni_sse?cf_connect={connect}")
    publish = post("/api/batch", f"X-API-Key: {SECRET}", *JSON)
    item = '{"publish":{"channel":"CHANNEL","data":"%D"}}'
    return Target(
        port,
        [server],
        stream.replace("CHANNEL", "bench"),
        publish,
        item.replace("CHANNEL", "bench"),
        ('{"commands":[', ",", "]}"),
        health=get("/health"),
        own=Own(
            stream.replace("%", "%%").replace("CHANNEL", "user%C"),
            publish,
            item.replace("CHANNEL", "user%C"),
        ),
        checks={"stream": '"connect":{"client":', "publish": '"publish":{"offset":'},
    )


def mercure(stack: ExitStack, folder: Path) -> Target:
    module = "github.com/dunglas/mercure/caddy"
    program = built("mercure", module, "v0.16.3", f"{module}/mercure")
    port = free_port()
    config = folder / "Caddyfile"
    config.write_text(f"""
        {{
            auto_https off
            admin off
            persist_config off
        }}
        http://localhost:{port} {{
            bind 127.0.0.1
            route {{
                respond /healthz "ok"
                mercure {{
                    transport_url bolt://{folder}/mercure.db?size={RING}
                    publisher_jwt {SECRET}
                    anonymous
                    cors_origins {ORIGIN}
                }}
            }}
        }}
        """)
    home = {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "HOME": os.environ.get("HOME", str(folder))}
    words = [program, "run", "--adapter", "caddyfile", "--config", config]
    server = Process(folder, "mercure", port, *words, knock="/healthz", env=home)
    start(stack, server)
    form = "Content-Type: application/x-www-form-urlencoded"
    return Target(
        port,
        [server],
        get("/.well-known/mercure?topic=bench"),
        post("/.well-known/mercure", f"Authorization: Bearer {token()}", form),
        "topic=bench&data=%D",
        each=True,
        health=get("/healthz"),
        own=Own(
            get("/.well-known/mercure?topic=user%C"),
            post("/.well-known/mercure", f"Authorization: Bearer {token()}", form),
            "topic=user%C&data=%D",
        ),
        checks={"stream": ":\n", "publish": "urn:uuid:"},
    )


def token() -> str:
    """A JSON Web Token (RFC 7519) with the right to publish."""

    def encode(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head, claims = {"alg": "HS256", "typ": "JWT"}, {"mercure": {"publish": ["*"]}}
    signed = ".".join(encode(json.dumps(part).encode()) for part in (head, claims))
    return f"{signed}.{encode(hmac.digest(SECRET.encode(), signed.encode(), hashlib.sha256))}"


SCENARIOS = ("requests", "streams", "busy", "own")
MORE = [
    Peer("centrifugo", "Centrifugo", centrifugo, SCENARIOS, ("own",)),
    Peer("mercure", "Mercure", mercure, SCENARIOS, ("requests",)),
]
