"""Questions over a channel of the master: dockerd and HEALTH_URL."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from vmoat import channels


def serve(path: Path, answer: bytes) -> list[bytes]:
    """Answer one connection on a Unix socket; returns what it was asked."""
    asked: list[bytes] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def once() -> None:
        with server, server.accept()[0] as client:
            asked.append(client.recv(4096))
            client.sendall(answer)

    threading.Thread(target=once, daemon=True).start()
    return asked


def test_an_answer_comes_whole(tmp_path: Path) -> None:
    asked = serve(tmp_path / "s", b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\n[]\n")
    assert channels.get(tmp_path / "s", "/containers/json?all=1", "docker") == (200, b"[]\n")
    assert asked[0].startswith(b"GET /containers/json?all=1 HTTP/1.0\r\nHost: docker\r\n")


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"\r\n\r\n"])
def test_what_is_no_http_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    serve(tmp_path / "s", answer)
    with pytest.raises(ValueError, match="no HTTP"):
        channels.get(tmp_path / "s", "/", "x")


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://localhost/x", 80),
        ("http://127.0.0.1:8080", 8080),
        ("http://[::1]:9000/?a=b", 9000),
        ("https://localhost:8443/", 0),  # needs TLS: the guest's curl
        ("http://db:80/", 0),  # a name that only the guest knows
        ("http://me:secret@localhost/", 0),
    ],
)
def test_only_plain_loopback_urls_go_over_a_channel(url: str, port: int) -> None:
    assert channels.health_port(url) == port


class Connection:
    """A master whose channels lead to sockets in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def channel(self, name: str, target: str) -> Path:
        return self.folder / name


def test_a_dockerd_that_does_not_answer_is_not_there(tmp_path: Path) -> None:
    docker = channels.Docker(Connection(tmp_path))  # type: ignore[arg-type]
    docker.join()
    assert (docker.answered, docker.listing) == (False, [])


def test_the_health_url_is_asked_with_its_query(tmp_path: Path) -> None:
    asked = serve(tmp_path / "port-8080", b"HTTP/1.1 204 No Content\r\n\r\n")
    health = channels.Health(
        Connection(tmp_path),  # type: ignore[arg-type]
        "http://localhost:8080/up?deep=1",
    )
    health.join()
    assert health.code == 204
    assert asked[0].startswith(b"GET /up?deep=1 HTTP/1.0\r\nHost: localhost:8080\r\n")


def test_what_docker_weighs_by_part() -> None:
    answer = {
        "LayersSize": 1000,
        "Containers": [{"SizeRw": 5}, {"Id": "x"}],
        "Volumes": [{"UsageData": {"Size": 70}}, {"UsageData": {"Size": -1}}, {"Name": "v"}],
        "BuildCache": [{"Size": 30, "Shared": False}, {"Size": 900, "Shared": True}],
    }
    parts = {"images": 1000, "containers": 5, "volumes": 70, "build cache": 30}
    assert channels.usage(answer) == parts
    assert set(channels.usage({"Containers": None}).values()) == {0}


def test_a_dockerd_that_counts_for_long_is_not_waited_for(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "docker"))
    server.listen()
    with server:
        usage = channels.Usage(Connection(tmp_path), 30)  # type: ignore[arg-type]
        began = time.monotonic()
        usage.join(0.1)
        assert usage.parts is None
        assert time.monotonic() - began < 20
