"""The files of deploy/docker, cloudrun, kubernetes and heroku have the right form, and agree with the settings.

tests/live/test_containers.py follows the Dockerfile's steps and starts the result.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from sse.config import Config
from tests.containers import Ignored, context, read_steps
from tests.docs import code_blocks, section
from tests.servers import ROOT

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker/Dockerfile"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
CLOUD_RUN_TEXT = (DEPLOY / "cloudrun/service.yaml").read_text()
CLOUD_RUN: dict[str, Any] = yaml.safe_load(CLOUD_RUN_TEXT.replace("PROJECT", "my-project"))
CLOUD_RUN_PAGE = (DEPLOY / "cloudrun/README.md").read_text()
PROGRAMS = Path(sys.executable).parent
REST = 2  # seconds that gunicorn.conf.py adds to the longer of SSE_DRAIN and SSE_RUN_GRACE


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def of_kind(kind: str, name: str = "throughline.yaml") -> dict[str, Any]:
    [found] = [manifest for manifest in manifests(name) if manifest["kind"] == kind]
    return found


def pod(kind: str = "Deployment", name: str = "throughline.yaml") -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(kind, name)["spec"]["template"]["spec"]
    return spec


def cloud_run() -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Return the revision's annotations, its spec, and its container's environment without the secrets."""
    template = CLOUD_RUN["spec"]["template"]
    [container] = template["spec"]["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    return template["metadata"]["annotations"], template["spec"], env


def environments() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where the service's settings stand, and the settings there."""
    yield "compose", COMPOSE["services"]["throughline"]["environment"]
    yield "kubernetes", of_kind("ConfigMap")["data"]
    yield "cloudrun", cloud_run()[2]
    heroku = (DEPLOY / "heroku/README.md").read_text()
    yield "heroku", dict(re.findall(r"(SSE_\w+)=([^\s$'\"]+)", heroku.partition("config:set")[2].partition("```")[0]))


def seconds(value: str) -> float:
    """Return a duration as compose and Docker write it, such as 1m30s, in seconds."""
    parts = re.findall(r"([\d.]+)([hms])", value)
    assert "".join(map("".join, parts)) == value, value
    return sum(float(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


def longest_end(env: Mapping[str, str]) -> int:
    """Return the seconds that gunicorn takes to end, at most."""
    fields = Config.__dataclass_fields__
    values = [int(env.get(f"SSE_{name.upper()}", str(fields[name].default))) for name in ("drain", "run_grace")]
    return int(env.get("SSE_DRAIN_DELAY", "0")) + max(values) + REST


# Settings


@pytest.mark.parametrize(("place", "env"), [*environments()], ids=[place for place, _ in environments()])
def test_the_service_takes_the_settings_of_each_platform(place: str, env: dict[str, str]) -> None:
    given = {name: value for name, value in env.items() if name.startswith("SSE_")}
    assert given, place
    assert all(isinstance(value, str) for value in given.values()), "an environment has text: quote the numbers"
    config = Config.load(given)
    assert config.proxies == 1  # the platform's own front, whose X-Forwarded-For counts for the limits


# Docker


def test_hadolint_finds_no_fault_in_the_dockerfile() -> None:
    result = subprocess.run(
        [PROGRAMS / "hadolint", DOCKERFILE], check=False, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_hadolint_finds_a_fault_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace("WORKDIR /build", "WORKDIR build"))
    command = [PROGRAMS / "hadolint", tmp_path / "Dockerfile"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "DL3000" in result.stdout


def test_the_image_ends_as_a_user_without_a_name_that_is_looked_up_and_with_a_check_of_its_health() -> None:
    steps = read_steps(DOCKERFILE.read_text())
    words = [step.word for step in steps]
    assert words[-4:] == ["USER", "EXPOSE", "HEALTHCHECK", "CMD"]
    assert steps[-4].rest == "10001:10001"  # Kubernetes refuses runAsNonRoot for a user by name
    assert steps[-1].rest.startswith("["), "the shell's form would keep SIGTERM from gunicorn"
    assert words.count("FROM") == 2


def test_the_build_context_has_what_is_copied_and_nothing_else() -> None:
    files = set(context(ROOT))
    copied = [step for step in read_steps(DOCKERFILE.read_text()) if step.word == "COPY" and not step.flags]
    sources = {source for step in copied for source in step.words()[:-1]}
    assert {name.split("/")[0] if name.split("/")[0] in sources else name for name in files} == sources
    assert {"sse/__init__.py", "sse/stores/append.lua", "static/sse.js"} <= files
    assert not [name for name in files if name.endswith(".pyc") or "__pycache__" in name]


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("app.py", False),
        ("sse/web/views.py", False),
        ("sse/web/__pycache__/views.cpython-311.pyc", True),
        ("tests/test_config.py", True),
        ("deploy/docker/tls/throughline.key", True),
        ("deploy/docker/throughline.env", True),
        (".git/config", True),
        (".env", True),
    ],
)
def test_no_secret_and_no_test_gets_into_the_build_context(path: str, ignored: bool) -> None:
    assert (path in Ignored((ROOT / ".dockerignore").read_text())) is ignored


def test_an_instruction_that_is_not_followed_here_is_refused() -> None:
    with pytest.raises(ValueError, match="ADD is no instruction"):
        read_steps("FROM a\nADD https://git.example/x /x\n")


# compose


def test_compose_builds_from_the_root_with_the_dockerfile_here() -> None:
    build = COMPOSE["services"]["throughline"]["build"]
    assert (DEPLOY / "docker" / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == DOCKERFILE
    [step] = yaml.safe_load((DEPLOY / "cloudrun/cloudbuild.yaml").read_text())["steps"]
    assert step["args"][:3] == ["build", "--file", build["dockerfile"]]
    assert step["args"][-1] == "."


def test_every_volume_of_compose_is_a_file_of_the_checkout_or_is_declared() -> None:
    made_by_the_reader = {"tls"}
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if not source.startswith("."):
                assert source in COMPOSE["volumes"], source
            elif Path(source).name not in made_by_the_reader:
                assert (DEPLOY / "docker" / source).exists(), source


def test_compose_waits_for_streams_and_runs_to_end_before_it_kills() -> None:
    service = COMPOSE["services"]["throughline"]
    assert seconds(service["stop_grace_period"]) > longest_end(service["environment"])


def test_compose_starts_nothing_before_what_it_needs_is_healthy() -> None:
    services = COMPOSE["services"]
    needs = {name: list(service.get("depends_on", {})) for name, service in services.items()}
    assert needs == {"redis": [], "throughline": ["redis"], "nginx": ["throughline"]}
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[name] or name == "throughline"  # whose image has one
    assert "ports" not in services["redis"]
    assert "ports" not in services["throughline"]


@pytest.mark.parametrize("place", ["compose", "kubernetes"])
def test_redis_evicts_nothing_and_keeps_what_it_has(place: str) -> None:
    if place == "compose":
        command = COMPOSE["services"]["redis"]["command"]
    else:
        command = pod("StatefulSet", "redis.yaml")["containers"][0]["args"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"


def test_the_readme_makes_the_secrets_and_the_certificate_that_compose_reads(tmp_path: Path) -> None:
    blocks = code_blocks(section((DEPLOY / "docker/README.md").read_text(), "Begin"))
    [commands] = [code for _, code in blocks if "throughline.env" in code]
    (tmp_path / "deploy/docker").mkdir(parents=True)
    run_with_stubs(commands, tmp_path, "docker")
    file = tmp_path / "deploy/docker" / COMPOSE["services"]["throughline"]["env_file"]
    assert file.stat().st_mode & 0o777 == 0o600
    config = Config.load(dict(line.split("=", 1) for line in file.read_text().splitlines()))
    assert config.publish_keys
    assert config.secret
    names = sorted(path.name for path in (tmp_path / "deploy/docker/tls").iterdir())
    assert names == ["throughline.crt", "throughline.key"]
    assert "docker compose -f deploy/docker/compose.yaml up" in (tmp_path / "calls").read_text()


def test_what_the_pages_have_the_reader_make_gets_into_no_commit() -> None:
    """Nor does it into a cloud build, to which `gcloud builds submit` sends what .gitignore does not name."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"deploy/docker/throughline.env", "deploy/docker/tls/", "/service.yaml"} <= set(ignored)


def run_with_stubs(commands: str, folder: Path, *programs: str) -> None:
    """Run the commands of a page in `folder`. The programs only note how they were called, and print an address."""
    stubs = folder / "stubs"
    stubs.mkdir()
    for name in programs:
        (stubs / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"$CALLS"\necho 10.1.2.3\n')
        (stubs / name).chmod(0o755)
    env = {"PATH": f"{stubs}:/usr/bin:/bin", "CALLS": str(folder / "calls"), "HOME": str(folder)}
    command = ["bash", "-euc", commands]
    result = subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


# Kubernetes


def test_the_schemas_of_kubernetes_accept_each_manifest() -> None:
    files = [path for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) if path.name != "httproute.yaml"]
    command = [PROGRAMS / "kubernetes-validate", "--strict", *files]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    kinds = {manifest["kind"].lower() for path in files for manifest in manifests(path.name)}
    assert kinds == set(re.findall(r"resource (\w+)/", result.stdout + result.stderr))


def test_the_schemas_of_kubernetes_refuse_a_misspelled_field(tmp_path: Path) -> None:
    text = (DEPLOY / "kubernetes/throughline.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(text.replace("terminationGracePeriodSeconds", "terminationGraceSeconds"))
    command = [PROGRAMS / "kubernetes-validate", "--strict", tmp_path / "wrong.yaml"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "terminationGraceSeconds" in result.stdout + result.stderr


def test_a_pod_has_the_time_that_its_end_takes() -> None:
    spec = pod()
    [container] = spec["containers"]
    sleep, waited = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    # The grace period counts from before preStop.
    assert spec["terminationGracePeriodSeconds"] >= int(waited) + longest_end(of_kind("ConfigMap")["data"]) + 5


def test_a_pod_gets_no_requests_until_it_is_ready_and_is_not_killed_for_a_slow_redis() -> None:
    [container] = pod()["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/sse/ready"
    assert (
        container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/sse/health"
    )
    [port] = container["ports"]
    assert str(port["containerPort"]) == re.findall(r"PORT=(\d+)", DOCKERFILE.read_text())[0]
    assert of_kind("Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert "sessionAffinity" not in of_kind("Service")["spec"]


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "throughline.yaml"), ("StatefulSet", "redis.yaml")])
def test_pods_have_the_restricted_security_of_kubernetes(kind: str, name: str) -> None:
    spec = pod(kind, name)
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["enableServiceLinks"] is spec["automountServiceAccountToken"] is False
    for container in spec["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"].keys() == {"memory"}  # a limit of CPU would stop the loop now and then
    if kind == "Deployment":
        assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in DOCKERFILE.read_text()


def test_each_selector_of_kubernetes_finds_the_pods_that_it_means() -> None:
    labels = {kind: of_kind(kind, name)["spec"]["template"]["metadata"]["labels"] for kind, name in WORKLOADS.items()}
    for kind, name in WORKLOADS.items():
        assert of_kind(kind, name)["spec"]["selector"]["matchLabels"] == labels[kind]
        assert of_kind("Service", name)["spec"]["selector"] == labels[kind]
    assert of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels["Deployment"]
    policy = of_kind("NetworkPolicy", "redis.yaml")["spec"]
    assert policy["podSelector"]["matchLabels"] == labels["StatefulSet"]
    assert policy["ingress"][0]["from"] == [{"podSelector": {"matchLabels": labels["Deployment"]}}]
    host = of_kind("Service", "redis.yaml")["metadata"]["name"]
    assert of_kind("ConfigMap")["data"]["SSE_REDIS_URL"] == f"redis://{host}:6379/0"


WORKLOADS = {"Deployment": "throughline.yaml", "StatefulSet": "redis.yaml"}


def test_the_ways_in_lead_to_the_service_and_cut_no_stream() -> None:
    service, port = of_kind("Service")["metadata"]["name"], of_kind("Service")["spec"]["ports"][0]
    ingress = of_kind("Ingress", "ingress.yaml")
    [path] = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": service, "port": {"name": port["name"]}}
    options = {name.partition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()}
    assert int(options["proxy-read-timeout"]) > 1.2 * Config().stream_lifetime
    assert options["proxy-buffering"] == "off"
    [rule] = of_kind("HTTPRoute", "httproute.yaml")["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": service, "port": port["port"]}]
    assert set(rule["timeouts"].values()) == {"0s"}


# Cloud Run


# The form of a service, as far as it is used: what each part may have. A list stands for a list of its one entry.
PROBE: dict[str, Any] = {
    "httpGet": {"path": str, "port": int},
    **dict.fromkeys(("periodSeconds", "timeoutSeconds", "failureThreshold", "initialDelaySeconds"), int),
}
SERVICE_FORM: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "labels": dict, "annotations": dict},
    "spec": {
        "template": {
            "metadata": {"annotations": dict},
            "spec": {
                "containerConcurrency": int,
                "timeoutSeconds": int,
                "serviceAccountName": str,
                "containers": [
                    {
                        "image": str,
                        "ports": [{"name": str, "containerPort": int}],
                        "resources": {"limits": {"cpu": str, "memory": str}},
                        "startupProbe": PROBE,
                        "livenessProbe": PROBE,
                        "env": [
                            {
                                "name": str,
                                "value": str,
                                "valueFrom": {"secretKeyRef": {"name": str, "key": str}},
                            }
                        ],
                    }
                ],
            },
        }
    },
}


def faults_of_form(value: Any, form: Any, place: str = "") -> list[str]:
    """Return what a value has that its form does not know, or has in another type."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return [f"{place} is no mapping"]
        unknown = [f"{place}.{name} is unknown" for name in value.keys() - form.keys()]
        parts = [faults_of_form(value[name], form[name], f"{place}.{name}") for name in value.keys() & form.keys()]
        return [*unknown, *chain.from_iterable(parts)]
    if isinstance(form, list):
        return [fault for n, entry in enumerate(value) for fault in faults_of_form(entry, form[0], f"{place}[{n}]")]
    return [] if type(value) is form else [f"{place} is {value!r}, not of type {form.__name__}"]


def test_cloud_run_s_service_has_its_form() -> None:
    assert faults_of_form(CLOUD_RUN, SERVICE_FORM) == []
    assert (CLOUD_RUN["apiVersion"], CLOUD_RUN["kind"]) == ("serving.knative.dev/v1", "Service")
    annotations = cloud_run()[0]
    assert all(isinstance(value, str) for value in annotations.values()), "annotations are text: quote them"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("timeoutSeconds: 3600", "timeoutSeconds: 3600s", ".timeoutSeconds is '3600s'"),
        ("timeoutSeconds: 3600", "timeout: 3600", ".timeout is unknown"),
        ('value: "900"', "value: 900", ".value is 900"),
        ("key: latest", "version: latest", ".version is unknown"),
    ],
)
def test_a_wrong_form_is_found(old: str, new: str, fault: str) -> None:
    assert old in CLOUD_RUN_TEXT
    wrong = yaml.safe_load(CLOUD_RUN_TEXT.replace(old, new))
    assert any(fault in found for found in faults_of_form(wrong, SERVICE_FORM))


def test_the_commands_for_cloud_run_write_the_service_with_the_reader_s_own_names(tmp_path: Path) -> None:
    [commands] = [code for _, code in code_blocks(section(CLOUD_RUN_PAGE, "Begin"))]
    (tmp_path / "deploy").symlink_to(DEPLOY)
    run_with_stubs(commands, tmp_path, "gcloud")
    text = re.sub("#.*", "", (tmp_path / "service.yaml").read_text())
    assert "REGION" not in text
    assert "PROJECT" not in text
    assert "redis://10.1.2.3:6379/0" in text  # as the stub says
    calls = (tmp_path / "calls").read_text()
    image = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"][0]["image"]
    assert f"_IMAGE={image}" in calls
    for name in re.findall(r"secretKeyRef:\s+name: (\S+)", text):
        assert f"gcloud secrets create {name} " in calls
    assert "maxmemory-policy=noeviction" in calls


def test_cloud_run_lets_the_cpu_run_and_keeps_an_instance() -> None:
    annotations, _, _ = cloud_run()
    assert annotations["run.googleapis.com/cpu-throttling"] == "false"
    assert int(annotations["autoscaling.knative.dev/minScale"]) >= 1
    assert "run.googleapis.com/sessionAffinity" not in annotations  # a client resumes on any instance


def test_cloud_run_s_limits_agree_with_the_settings() -> None:
    _, spec, env = cloud_run()
    config = Config.load({name: value for name, value in env.items() if name.startswith("SSE_")})
    assert 1.2 * config.stream_lifetime < spec["timeoutSeconds"] <= 3600
    assert config.max_subscribers < spec["containerConcurrency"] <= 1000
    assert longest_end(env) < 10  # from SIGTERM to SIGKILL
    [container] = spec["containers"]
    assert container["ports"] == [{"name": "http1", "containerPort": 8080}]  # h2c would need a server of HTTP/2
    assert (config.redis_url or "").startswith("redis://10.")


# Heroku


def test_heroku_s_process_ends_in_time_and_outlives_the_router_s_connections() -> None:
    [line] = (DEPLOY / "heroku/Procfile").read_text().splitlines()
    assert line.startswith("web: ")
    assert int(line.split("--keep-alive ")[1].split()[0]) > 90  # the router keeps an idle connection so long
    env = dict(environments())["heroku"]
    assert longest_end(env) < 30  # from SIGTERM to SIGKILL
    config = Config.load(env)
    assert config.heartbeat < 55  # the router cuts a stream that is silent for so long
    assert config.poll_timeout < 30  # the router answers 503 itself if the first byte takes so long


@pytest.mark.parametrize(
    ("given", "taken"),
    [("rediss://:a@h.example:6380", "rediss://:a@h.example:6380?ssl_cert_reqs=none"), ("", "")],
)
def test_heroku_s_redis_has_a_certificate_that_nobody_signed(given: str, taken: str) -> None:
    [line] = (DEPLOY / "heroku/Procfile").read_text().splitlines()
    assignment = line.removeprefix("web: ").split(" gunicorn ")[0]
    shown = subprocess.run(
        ["sh", "-c", f"{assignment} sh -c 'printf %s \"$SSE_REDIS_URL\"'"],
        env={"REDIS_URL": given, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
        text=True,
        timeout=10,
    ).stdout
    assert shown == taken
    assert (Config.load({"SSE_REDIS_URL": shown}).redis_url or "") == taken
