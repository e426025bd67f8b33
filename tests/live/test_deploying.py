"""The commands of docs/deploying.md work as printed.

They set up nginx beside other sites, the systemd unit, and an app of the reader's own.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import code_blocks, section
from tests.servers import ROOT, NginxBeside

GUIDE = (ROOT / "docs/deploying.md").read_text()
START = (ROOT / "docs/start.md").read_text()
UNIT = ROOT / "deploy/systemd/throughline.service"
INSTANCE = ROOT / "deploy/systemd/throughline@.service"
SYSTEMD = (ROOT / "deploy/systemd/README.md").read_text()
BLOCK = GUIDE.partition("\nNAME=push.example\n")[2].partition("```")[0]


def shell(commands: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-euc", commands]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, check=False, capture_output=True, text=True, timeout=60
    )


def lines_of_nginx(directory: Path) -> str:
    """Return the page's commands that install the site, with `directory` in the place of /etc/nginx."""
    commands = BLOCK.partition("\nopenssl req")[2].partition("nginx -t")[0]
    return f"NAME=push.test; openssl req{commands.replace('/etc/nginx', str(directory))}"


@pytest.fixture
def etc_nginx(tmp_path: Path) -> Path:
    directory = tmp_path / "etc"
    for name in ("sites-available", "sites-enabled"):
        (directory / name).mkdir(parents=True)
    (directory / "nginx.conf").write_text(NginxBeside.DEBIAN)
    return directory


def test_the_page_installs_one_site_beside_the_others(etc_nginx: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second time changes nothing
        result = shell(lines_of_nginx(etc_nginx))
        assert result.returncode == 0, result.stderr
    main = (etc_nginx / "nginx.conf").read_text()
    site = (etc_nginx / "sites-enabled/zz-throughline.conf").read_text()
    assert re.findall(r"server_name (.*?);", site) == ["push.test"]
    assert "push.example" not in re.sub("#.*", "", site)
    assert re.findall(r"worker_(?:connections|rlimit_nofile) \d+", main) == [
        "worker_rlimit_nofile 65536",
        "worker_connections 32768",
    ]
    assert (etc_nginx / "throughline.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in etc_nginx.iterdir()) == [
        *("nginx.conf", "sites-available", "sites-enabled"),
        *("throughline.crt", "throughline.key"),
    ]

    class Installed(NginxBeside):
        def files(self) -> dict[str, str]:
            name = site.replace("server_name push.test;", "server_name push.example;").replace(
                str(etc_nginx), "/etc/nginx"
            )
            return {**super().files(), "nginx.conf": main, "sites-enabled/zz-throughline.conf": name}

    result = Installed(tmp_path / "nginx", "127.0.0.1:8000").test()
    assert result.returncode == 0, result.stderr
    assert "[warn]" not in result.stderr


def test_values_of_an_operator_s_own_stay(etc_nginx: Path) -> None:
    own = NginxBeside.DEBIAN.replace("768", "50000").replace("user www", "worker_rlimit_nofile 99999;\nuser www")
    (etc_nginx / "nginx.conf").write_text(own)
    assert shell(lines_of_nginx(etc_nginx)).returncode == 0
    assert (etc_nginx / "nginx.conf").read_text() == own


def test_no_command_replaces_the_configuration_of_nginx_but_the_one_that_says_so() -> None:
    before, _, rest = GUIDE.partition(">/etc/nginx/nginx.conf")
    assert "every other site:" in before.rpartition("\n\n```")[0].rpartition("\n\n")[2]
    assert ">/etc/nginx/nginx.conf" not in rest
    assert "MACHINE OF ITS OWN" in (ROOT / "nginx.conf").read_text().partition("\n\n")[0]


def test_the_key_is_read_from_the_file_and_stands_on_no_command_line(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("SSE_PUBLIC=news/* touch/*\nSSE_PUBLISH_KEYS=a-key-$HOME\nSSE_SECRET=other\n")
    command = "sed -n" + BLOCK.rpartition("\nsed -n")[2]
    assert "-H @- " in command
    shown = shell(re.sub(r"\| *\n.*", "| cat", command.replace("/etc/throughline.env", str(file)), flags=re.DOTALL))
    assert shown.stdout == "Authorization: Bearer a-key-$HOME\n"
    assert not re.search(r"^ *(set -a.*)?\. /etc", GUIDE, re.MULTILINE)


def unit(file: Path = UNIT) -> dict[str, str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(file)
    return dict(parser["Service"])


def test_the_unit_runs_as_a_user_of_its_own_that_the_page_makes() -> None:
    service = unit()
    assert f"useradd --system --gid {service['Group']} --shell /usr/sbin/nologin {service['User']}\n" in BLOCK
    assert (service["User"], service["Group"]) == ("throughline", "www-data")
    assert f"user {service['Group']};" in (ROOT / "nginx.conf").read_text()
    assert f"install -m 600 /dev/null {service['EnvironmentFile']} " in BLOCK
    assert service["RuntimeDirectoryMode"] == "0750"  # gunicorn's socket is open to all that reach it
    assert f"unix:/run/{service['RuntimeDirectory']}/throughline.sock;" in (ROOT / "nginx.conf").read_text()
    assert service["ProtectSystem"] == "strict"
    assert "ReadWritePaths" not in service


def test_a_service_that_cannot_start_is_tried_again_for_good_but_not_all_the_time() -> None:
    service = unit()
    assert service["Restart"] == "always"
    assert int(service["RestartSec"]) >= 2  # five starts within 10 s, and systemd would refuse the operator's own


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is not installed"
    return subprocess.run([program, *arguments], check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("unit", [UNIT, INSTANCE], ids=["one", "instance"])
def test_systemd_accepts_the_unit(tmp_path: Path, unit: Path) -> None:
    file = tmp_path / unit.name.replace("@", "@8001")
    file.write_text(re.sub(r"/opt/throughline/\.venv/bin/\w+", sys.executable, unit.read_text()))
    result = analyze("verify", file)
    assert (result.returncode, result.stderr) == (0, "")
    file.write_text(file.read_text().replace("Type=notify", "Type=nonsense"))
    assert "nonsense" in analyze("verify", file).stderr


def test_the_unit_forbids_what_the_service_does_not_need() -> None:
    result = analyze("security", "--offline=yes", "--threshold=20", UNIT)
    assert result.returncode == 0, result.stdout  # an exposure of 2.0 at most; of 8.5 without these lines


def test_an_instance_differs_from_the_unit_in_its_address_alone() -> None:
    one, instance = unit(), unit(INSTANCE)
    for name in ("RuntimeDirectory", "RuntimeDirectoryMode"):  # for a unix socket
        del one[name]
    for name in ("ExecStart", "ExecReload"):
        instance[name] = instance[name].replace(" -b 127.0.0.1:%i", "")
    assert instance == one
    starts = re.findall(r"^Exec\w+=.*gunicorn.conf.py.*$", INSTANCE.read_text(), re.MULTILINE)
    assert len(starts) == 2
    assert all(" -c gunicorn.conf.py -b 127.0.0.1:%i wsgi:application" in line for line in starts)


def test_two_instances_take_the_place_of_the_server_in_the_site(tmp_path: Path) -> None:
    setup, roll = [code for language, code in code_blocks(section(SYSTEMD, "Restart without a gap")) if not language]
    site = tmp_path / "throughline.conf"
    site.write_text((ROOT / "deploy/nginx/throughline.conf").read_text())
    edit = "sed -i" + setup.partition("sed -i")[2].partition("nginx -t")[0]
    assert shell(edit.replace("/etc/nginx/sites-available", str(tmp_path))).returncode == 0
    servers = re.findall(
        r"^ *server (127\S+) max_fails=0; server (127\S+) max_fails=0;$", site.read_text(), re.MULTILINE
    )
    assert servers == [("127.0.0.1:8001", "127.0.0.1:8002")]
    assert "server 127.0.0.1:8000;" not in site.read_text()

    fakes = 'systemctl() { echo "$@"; }\ncurl() { case "$*" in *800$BAD/sse/ready) return 22;; esac; }\n'
    for bad, restarted in (("9", ["8001", "8002"]), ("1", ["8001"])):  # the second stays if the first does not come up
        result = shell(f"BAD={bad}\n{fakes}{roll}")
        assert result.stdout.split() == [word for port in restarted for word in ("restart", f"throughline@{port}")]


@pytest.mark.parametrize("fault", ["", "this is no Python", "raise RuntimeError('at import')"])
def test_a_reload_of_an_app_of_one_s_own_is_refused_where_its_code_does_not_import(tmp_path: Path, fault: str) -> None:
    example = re.findall(r"```python\n(.*?)```", START, re.DOTALL)[0]
    (tmp_path / "example.py").write_text(f"{example}\n{fault}\n")
    [arguments] = re.findall(r"^ExecReload=/opt/shop/.venv/bin/python (\S+/loadable.py .*)$", GUIDE, re.MULTILINE)
    [start] = re.findall(r"^ExecStart=/opt/shop/.venv/bin/(gunicorn .*)$", GUIDE, re.MULTILINE)
    assert arguments.replace("/opt/throughline/tools/loadable.py $MAINPID", "gunicorn") == start
    line = f"{sys.executable} {arguments.replace('/opt/throughline', str(ROOT)).replace('$MAINPID', '$$')}"
    result = shell(line, tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == (1 if fault else 0), result.stderr


def script(heading: str) -> str:
    """Return the command `throughline` as the section makes it."""
    [text] = re.findall(r"cat >/usr/local/sbin/throughline <<'EOF'\n(.*?)EOF\n", section(GUIDE, heading), re.DOTALL)
    return str(text)


def blocks(title: str) -> list[str]:
    return [code for language, code in code_blocks(section(GUIDE, title)) if not language]


@pytest.mark.parametrize("section", ["The command `throughline`", "Your own app"])
def test_the_command_passes_on_arguments_and_input_and_keeps_its_arguments_out_of_the_journal(
    tmp_path: Path, section: str
) -> None:
    command, fake = tmp_path / "throughline", tmp_path / "systemd-run"
    command.write_text(script(section))
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\ncat\nexit 7\n')
    command.chmod(0o755)
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = shell(f"echo a line | {command} publish 'news/a b' --lines", PATH=path)
    assert result.returncode == 7
    arguments = result.stdout.splitlines()
    assert arguments[-5:] == ["sse", "publish", "news/a b", "--lines", "a line"]
    assert {"--pipe", "--pty", "--wait", "--collect", "--description=flask sse"} <= set(arguments)
    service = unit()
    where = "/opt/shop" if section == "Your own app" else service["WorkingDirectory"]
    for value in (f"User={service['User']}", f"EnvironmentFile={service['EnvironmentFile']}"):
        assert value in arguments
    assert f"WorkingDirectory={where}" in arguments
    assert f"{where}/.venv/bin/flask" in arguments


def test_the_way_back_is_the_block_of_the_upgrade_with_another_version() -> None:
    upgrade = [block for block in blocks("Upgrade") if "checkout" in block]
    back = [block for block in blocks("Roll back") if "checkout" in block]
    assert len(back) == 2
    assert [block.partition("\n")[2].replace("$OLD", "$NEW") for block in back] == upgrade
    assert "tee /root/throughline.old" in blocks("Upgrade")[0]
    assert all(block.startswith("OLD=$(cat /root/throughline.old)") for block in back)


def test_an_upgrade_brings_the_package_that_runs_and_tries_it_before_the_restart() -> None:
    checkout, own = (block for block in blocks("Upgrade") if "checkout" in block)
    assert "/opt/throughline/.venv/bin/pip install --require-hashes -r /opt/throughline/requirements.txt" in checkout
    assert "/opt/shop/.venv/bin/pip install '/opt/throughline[server]'" in own
    assert own.index("rm -rf /opt/throughline/build") < own.index("pip install")
    for block in (checkout, own):
        assert block.endswith("  throughline config >/dev/null && systemctl restart throughline\n")
        steps = block[block.index("git ") :]
        assert all(line.endswith("&&") for line in steps.splitlines()[:-1])  # a step that fails stops the others


def test_only_the_lines_that_say_where_depend_on_where_one_stands() -> None:
    assert "&& cd /opt/throughline\n" in BLOCK  # which stands there, from then on
    for block in [code for language, code in code_blocks(GUIDE) if not language and BLOCK not in code]:
        for path in re.findall(r"(?<![\w./*$-])(?:\.venv|deploy|tools|nginx|docs)/\S*", block):
            raise AssertionError(f"{path} in {block}")
        for source in re.findall(r"\bcp (?:-a )?(\S+)", block):
            assert source.startswith("/") or source == "example.py"


def test_a_refused_reload_puts_the_former_file_back(tmp_path: Path) -> None:
    [block] = [block for block in blocks("Your own app") if "systemctl reload" in block]
    assert block.endswith("; false; }\n")
    shop, root, here = (tmp_path / name for name in ("shop", "root", "here"))
    for directory in (shop, root, here):
        directory.mkdir()
    commands = block.replace("/opt/shop", str(shop)).replace("/root", str(root))
    for code, stays in ((0, "new"), (1, "old")):
        (shop / "example.py").write_text("old")
        (here / "example.py").write_text("new")
        shell(f"systemctl() {{ return {code}; }}\n{commands}", here)
        assert (shop / "example.py").read_text() == stays
