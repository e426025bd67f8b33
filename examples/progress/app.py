"""A job in another process, with its progress and its log."""

import secrets
import subprocess
import sys

from flask import Flask, Response

from sse import SSE

app = Flask(__name__)
sse = SSE(app)


@app.get("/")
def page() -> Response:
    return app.send_static_file("index.html")


@app.post("/jobs")
def start() -> dict[str, str]:
    job = secrets.token_urlsafe(16)
    command = [sys.executable, "-m", "examples.progress.job", f"job/{job}"]
    subprocess.Popen(command)  # stands for a task of Celery or RQ, which does the same
    return {"job": job}


@app.get("/jobs/<job>")
def follow(job: str) -> Response:
    return sse.subscribe(f"job/{job}")


@app.post("/jobs/<job>/stop")
def stop(job: str) -> dict[str, bool]:
    return {"stopped": sse.stop(f"job/{job}")}
