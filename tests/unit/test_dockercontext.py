"""`docker --context vmoat-NAME` on the host, `vmoat env`, and what `tunnel` says of ports."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import secrets
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import World
from timing import until

from vmoat import dockercontext
from vmoat.commands.environment import assignment
from vmoat.commands.ports import browser_argv
from vmoat.facts import containers

docker_cli = pytest.mark.skipif(not shutil.which("docker"), reason="no docker CLI is installed")

CONFIG = '{"currentContext": "mine", "auths": {}}'


@pytest.fixture
def folder(homes: Path) -> Path:
    """docker's config folder of a user who has selected a context."""
    found = homes / "docker"
    found.mkdir(exist_ok=True)
    (found / "config.json").write_text(CONFIG)
    return found


def test_it_comes_with_the_vm_and_goes_with_it(world: World, folder: Path) -> None:
    world.vmoat("up")
    file = dockercontext.meta_file("vmoat-wt-tree", folder)
    told = json.loads(file.read_text())
    assert told["Name"] == "vmoat-wt-tree"
    assert told["Endpoints"]["docker"]["Host"].startswith("unix:///")
    file.unlink()
    world.vmoat("up")  # there is nothing to do, and it is there again
    assert file.exists()
    world.vmoat("down")
    assert file.exists()
    world.vmoat("destroy", "-f")
    assert not file.parent.exists()
    assert (folder / "config.json").read_text() == CONFIG


def test_one_of_somebody_else_stays(world: World, folder: Path) -> None:
    file = dockercontext.meta_file("vmoat-wt-tree", folder)
    file.parent.mkdir(parents=True)
    file.write_text('{"Name": "vmoat-wt-tree", "Metadata": {}}')
    assert "not vmoat's" in world.vmoat("up").stderr
    world.vmoat("destroy", "-f")
    assert json.loads(file.read_text()) == {"Name": "vmoat-wt-tree", "Metadata": {}}


def test_a_folder_that_cannot_be_written_stops_nothing(world: World, folder: Path) -> None:
    (folder / "contexts").write_text("a file")
    assert "cannot be written" in world.vmoat("up").stderr


def test_without_docker_nothing_is_made(
    homes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    assert dockercontext.ensure("wt-x", "0" * 16, tmp_path) == ""
    assert not (tmp_path / "none").exists()


def test_env_is_for_a_shell(world: World) -> None:
    world.vmoat("env", code=5)
    world.vmoat("up")
    line = 'eval "$(cat)"; echo "$DOCKER_HOST $COMPOSE_PROJECT_NAME"'
    told = world.vmoat("env", "--shell", "sh").stdout
    done = subprocess.run(["sh", "-c", line], input=told, capture_output=True, text=True)
    assert done.stdout.startswith("unix:///")
    assert done.stdout.endswith("/to-docker repo\n")
    answer = json.loads(world.vmoat("env", "--json").stdout)
    assert answer["context"] == "vmoat-wt-tree"
    assert answer["environment"]["DOCKER_HOST"] in told


def test_values_are_quoted() -> None:
    assert assignment("A", "it's $x", fish=False) == """export A='it'"'"'s $x'"""
    assert assignment("A", "it's \\ $x", fish=True) == r"set -gx A 'it\'s \\ $x'"


class Daemon(http.server.BaseHTTPRequestHandler):
    """dockerd's answers to the CLI's `ps`."""

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        row = {"Id": "c0ffee" * 10, "Names": ["/web"], "Image": "i", "Command": "c",
               "State": "running", "Status": "Up"}  # fmt: skip
        listing = self.path.split("?")[0].endswith("/containers/json")
        self.answer(json.dumps([row] if listing else {}).encode())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        for name, value in (("Api-Version", "1.45"), ("Content-Type", "application/json")):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "cli"

    def log_message(self, *_: object) -> None:
        pass


class UnixHTTP(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@docker_cli
def test_the_real_cli_uses_it(homes: Path, folder: Path) -> None:
    vm_id = secrets.token_hex(8)  # its runtime folder may be one for all tests
    assert dockercontext.ensure("wt-x", vm_id, homes / "it's ü") == ""
    server = UnixHTTP(str(dockercontext.socket_of(vm_id)), Daemon)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def docker(*words: str) -> str:
        done = subprocess.run(
            ["docker", "--config", str(folder), *words], capture_output=True, text=True, timeout=60,
            env={k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        assert docker("--context", "vmoat-wt-x", "ps", "--format", "{{.Names}}") == "web\n"
        (folder / "config.json").write_text("{}")
        assert "vmoat-wt-x" in docker("context", "ls", "--format", "{{.Name}}")
        assert docker("context", "show") == "default\n"
        dockercontext.remove("wt-x", "another")
        assert "vmoat-wt-x" in docker("context", "ls", "--format", "{{.Name}}")
        dockercontext.remove("wt-x", vm_id)
        assert "vmoat-wt-x" not in docker("context", "ls", "--format", "{{.Name}}")
    finally:
        server.shutdown()
        server.server_close()
        shutil.rmtree(dockercontext.socket_of(vm_id).parent)


def test_the_file_is_where_docker_looks() -> None:
    name = hashlib.sha256(b"vmoat-x").hexdigest()
    place = Path("/c/contexts/meta") / name / "meta.json"
    assert dockercontext.meta_file("vmoat-x", Path("/c")) == place


# --- ports


def test_twins_are_one_and_a_range_is_many_and_udp_is_apart() -> None:
    """dockerd's own answer for `-p 8080:80 -p 7000-7002:7000-7002 -p 53:53/udp`, IPv6 on."""
    ports = [{"IP": ip, "PrivatePort": inside, "PublicPort": port, "Type": kind}
             for ip in ("0.0.0.0", "::")
             for port, inside, kind in ((8080, 80, "tcp"), (7000, 7000, "tcp"), (7001, 7001, "tcp"),
                                        (7002, 7002, "tcp"), (53, 53, "udp"))]  # fmt: skip
    ports.append({"PrivatePort": 9, "Type": "tcp"})  # exposed, not published
    (found,) = containers([{"Id": "a", "State": "running", "Ports": ports}], {})
    assert found.ports == ((7000, 7000), (7001, 7001), (7002, 7002), (8080, 80))
    assert found.udp == (53,)


def test_udp_is_left_out_with_a_line(world: World) -> None:
    world.vmoat("up")
    rows = [{"name": "dns", "ports": [[18218, 80]], "udp": [18253]}]
    world.set("containers", json.dumps(rows))
    done = world.vmoat("tunnel")
    assert done.stdout == "http://localhost:18218\n"
    assert "18253/udp of dns is left out" in done.stderr
    assert "http://localhost:18218 → dns 18218" in done.stderr


@pytest.fixture
def held() -> Iterator[int]:
    """A port of this machine that somebody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_a_remapped_port_tells_who_has_the_original(world: World, held: int) -> None:
    world.vmoat("up")
    world.set("containers", json.dumps([{"name": "web", "ports": [[held, 80]]}]))
    done = world.vmoat("tunnel")
    url = done.stdout
    assert url != f"http://localhost:{held}\n"
    assert f"something else on this machine holds {held}" in done.stderr
    # the same host port at the next run
    world.vmoat("untunnel")
    assert world.vmoat("tunnel").stdout == url
    # one of our own worktrees
    other = world.context().instance.folder.parent / "wt-other"
    other.mkdir()
    (other / "owner").write_text("f" * 16 + "\n/g\n/the/other/worktree\nqemu\n")
    (other / "forwards.json").write_text(json.dumps({str(held): 80}))
    assert f"localhost:{held} is the tunnel of /the/other/worktree" in world.vmoat("tunnel").stderr


def test_open_shows_the_page_in_the_browser(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >{seen}.new; mv {seen}.new {seen}\n')
    browser.chmod(0o755)
    world.vmoat("up")
    world.set("containers", json.dumps([{"name": "web", "ports": [[18219, 80]]}]))
    monkeypatch.setenv("BROWSER", str(browser))
    assert world.vmoat("tunnel", "--open").stdout == "http://localhost:18219\n"
    until(seen.exists)
    assert seen.read_text() == "http://localhost:18219/\n"
    monkeypatch.setenv("BROWSER", "/no/such/browser")
    done = world.vmoat("tunnel", "--open")
    assert "open http://localhost:18219/ yourself" in done.stderr


def test_what_opens_a_page_by_platform() -> None:
    assert browser_argv({}, "darwin") == ["open"]
    assert browser_argv({"WSL_DISTRO_NAME": "Debian"}, "linux") == ["wslview"]
    assert browser_argv({"DISPLAY": ":0"}, "linux") == ["xdg-open"]
    assert browser_argv({}, "linux") == []
    chosen = {"BROWSER": "firefox --new-window %s:w3m"}
    assert browser_argv(chosen, "linux") == ["firefox", "--new-window"]
