"""A proxy may tell the app that a request came by TLS. No other header of a proxy is believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import client
from tests.live.load import ENV, GREENLETS, KEY
from tests.servers import Gunicorn

APP = "tests.live.apps.request_environ:application"
TOLD = ("SCRIPT_NAME", "PATH_INFO", "REMOTE_USER", "script_name", "Script_Name", "REMOTE_ADDR", "AUTH_TYPE")


@pytest.fixture(scope="module", params=["handed off", "greenlets", "unix socket", "all trusted"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """A server that trusts every client here as a proxy."""
    directory = tmp_path_factory.mktemp("server")
    arguments: Sequence[str] = GREENLETS if request.param == "greenlets" else ()
    env = ENV | ({"FORWARDED_ALLOW_IPS": "*"} if request.param == "all trusted" else {})
    bind = f"unix:{directory}/socket" if request.param == "unix socket" else None
    with Gunicorn(directory, APP, env, arguments=arguments, bind=bind) as server:
        yield server


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("value", ["/told", "/", "/other", "", "ann", "/told/../sse"])
def test_no_header_stands_for_a_part_of_the_request(server: Gunicorn, name: str, value: str) -> None:
    usual = client.request(server.url, "GET", "/told/x").json()
    answer = client.request(server.url, "GET", "/told/x", headers={name: value})
    assert answer.status == 200
    told = answer.json()
    for kept in ("SCRIPT_NAME", "PATH_INFO", "REMOTE_ADDR", "REMOTE_USER", "AUTH_TYPE", f"HTTP_{name.upper()}"):
        assert told.get(kept) == usual.get(kept)
    assert (told["SCRIPT_NAME"], told["PATH_INFO"]) == ("", "/told/x")


def test_no_route_is_reached_by_another_path(server: Gunicorn) -> None:
    for path in ("/sse/publish/a", "/x/sse/publish/a"):
        headers = {"SCRIPT_NAME": "/x", "Authorization": f"Bearer {KEY}", "Content-Type": "text/plain"}
        status = client.request(server.url, "POST", path, headers=headers, body=b"x").status
        assert status == (201 if path.startswith("/sse") else 404)
    for path, status in (("/healthz", 200), ("/x/healthz", 404), ("/x/sse/poll?channel=a", 404)):
        assert client.request(server.url, "GET", path, headers={"SCRIPT_NAME": "/x"}).status == status
    assert "Traceback" not in server.log.read_text()


def test_a_trusted_proxy_tells_of_tls(server: Gunicorn) -> None:
    for proto in ("https", "http"):
        told = client.request(server.url, "GET", "/told", headers={"X-Forwarded-Proto": proto}).json()
        assert told["wsgi.url_scheme"] == proto
    assert client.request(server.url, "GET", "/told").json()["wsgi.url_scheme"] == "http"


def test_another_client_tells_nothing(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV | {"FORWARDED_ALLOW_IPS": "192.0.2.1"}) as server:
        headers = {"X-Forwarded-Proto": "https", "SCRIPT_NAME": "/told"}
        told = client.request(server.url, "GET", "/told", headers=headers).json()
        assert (told["wsgi.url_scheme"], told["SCRIPT_NAME"], told["PATH_INFO"]) == ("http", "", "/told")
