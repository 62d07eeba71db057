"""The image cache's parts: what it reads out of requests, its certificates, its store."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from email.message import Message
from pathlib import Path

import pytest

from vmoat import proc
from vmoat.errors import Code, VmoatError
from vmoat.imagecache import protocol, upstream, walls
from vmoat.imagecache.authority import Authority
from vmoat.imagecache.protocol import Asked
from vmoat.imagecache.store import Remembered, Store, digest_of

HEX = "a" * 64
DIGEST = f"sha256:{HEX}"


def fields(**values: str) -> Message:
    message = Message()
    for name, value in values.items():
        message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (f"/v2/a/blobs/{DIGEST}", Asked("blobs", "a", digest=DIGEST)),
        (f"/v2/library/x/manifests/{DIGEST}", Asked("manifests", "library/x", digest=DIGEST)),
        (f"/v2/a/blobs/sha256%3A{HEX}", Asked("blobs", "a", digest=DIGEST)),
        ("/v2/a/b/manifests/1.2-x?ns=docker.io", Asked("manifests", "a/b", tag="1.2-x")),
        ("/v2/blobs/manifests/manifests/x", Asked("manifests", "blobs/manifests", tag="x")),
        ("/v2/a/blobs/uploads/", None),
        ("/v2/a/blobs/uploads/1234", None),
        ("/v2/a/blobs/1", None),
        (f"/v2/a/blobs/sha512:{HEX}", None),
        (f"/v2/a/blobs/{DIGEST}/", None),
        (f"/v2/a/blobs/{DIGEST.upper()}", None),
        ("/v2/a/tags/list", None),
        ("/v2/../manifests/x", None),
        ("/v2/", None),
    ],
)
def test_what_a_path_asks_for(path: str, asked: Asked | None) -> None:
    assert protocol.content_asked(path) == asked


@pytest.mark.parametrize(
    ("status", "headers", "found"),
    [
        (200, {"Docker_Distribution_Api_Version": "registry/2.0"}, True),
        (401, {"WWW_Authenticate": 'Bearer realm="https://ghcr.io/token",service="ghcr.io"'}, True),
        (307, {"Location": "https://us-west1-docker.pkg.dev/v2/"}, True),
        (200, {}, False),
        (404, {}, False),
        (401, {"WWW_Authenticate": 'Basic realm="private"'}, False),
        (301, {"Location": "https://example.org/"}, False),
    ],
)
def test_what_counts_as_a_registry(status: int, headers: dict[str, str], found: bool) -> None:
    assert protocol.looks_like_registry(status, fields(**headers)) is found


def test_a_manifests_type_is_what_its_content_says() -> None:
    docker = "application/vnd.docker.distribution.manifest.list.v2+json"
    index = "application/vnd.oci.image.index.v1+json"
    for kind in (docker, index):
        assert (
            protocol.manifest_type(json.dumps({"mediaType": kind, "manifests": []}).encode())
            == kind
        )
    assert protocol.manifest_type(b'{"manifests": []}') == index
    for odd in (
        b"", b"\xff", b"[]", b"{}", b"1", b"[" * 99999, b'{"layers":[],"manifests":[]}',
        b'{"layers":[],"fsLayers":[]}', b'{"layers":[],"mediaType":7}',
        json.dumps({"mediaType": index, "layers": []}).encode(),
    ):  # fmt: skip
        assert protocol.manifest_type(odd) == ""


def test_what_belongs_to_one_connection_is_not_passed_on() -> None:
    pairs = [("Accept", "a"), ("accept", "b"), ("Connection", "close, X-Mine"), ("X-Mine", "1"),
             ("Proxy-Authorization", "secret"), ("Host", "h")]  # fmt: skip
    assert protocol.end_to_end(pairs, leave_out="host") == [("Accept", "a"), ("accept", "b")]


@pytest.mark.parametrize(
    ("accept", "taken"),
    [("", True), ("*/*", True), ("text/html, application/*;q=0.1", True), ("a/b; q=1", True),
     ("text/html", False)],
)  # fmt: skip
def test_what_a_client_takes(accept: str, taken: bool) -> None:
    kind = "a/b" if accept.startswith("a/") else "application/json"
    assert protocol.accepts(fields(Accept=accept) if accept else fields(), kind) is taken


@pytest.mark.parametrize(
    ("host", "direct"),
    [("hub.test", False), ("a.corp", True), ("corp", True), ("xcorp", False), ("10.1.2.3", True),
     ("11.1.2.3", False), ("127.0.0.1", True)],
)  # fmt: skip
def test_which_hosts_the_hosts_proxy_is_not_for(host: str, direct: bool) -> None:
    proxies = {"https_proxy": "p:3128", "no_proxy": "corp, .corp,10.0.0.0/8"}
    found = upstream.Upstream(walls.Walls(), proxies).proxy_for(
        walls.Origin("https", host, 443, host)
    )
    assert (found is None) is direct


def test_a_proxy_of_an_unknown_kind_is_said() -> None:
    up = upstream.Upstream(walls.Walls(), {"all_proxy": "socks5://p:1"})
    with pytest.raises(OSError, match="http:// proxies only, not socks5://"):
        up.proxy_for(walls.Origin("https", "hub.test", 443, "hub.test"))


# -- certificates --


def test_the_authority_is_made_once_and_its_key_stays_private(tmp_path: Path) -> None:
    many = [Authority(tmp_path / "ca") for _ in range(4)]
    texts: list[str] = []
    threads = [threading.Thread(target=lambda a=one: texts.append(a.certificate())) for one in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(texts)) == 1
    assert texts[0].startswith("-----BEGIN CERTIFICATE-----")
    assert os.listdir(tmp_path) == ["ca"], "those who came second left nothing"
    assert (tmp_path / "ca").stat().st_mode & 0o777 == 0o700
    for name in ("ca.key", "leaf.key"):
        assert (tmp_path / "ca" / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "host", ["hub.test", "127.0.0.1", "::1", "under_score.test", "a" * 63 + ".test"]
)
def test_a_certificate_holds_for_its_host_and_a_clock_that_is_behind(
    tmp_path_factory: pytest.TempPathFactory, host: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "one-ca"
    authority = Authority(folder)
    trust = ssl.create_default_context(cadata=authority.certificate())
    client_in, client_out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trust.wrap_bio(client_in, client_out, server_hostname=host)
    server = authority.context(host).wrap_bio(client_out, client_in, server_side=True)
    assert authority.context(host) is authority.context(host)
    for one in (client, server, client):
        try:
            one.do_handshake()
        except ssl.SSLWantReadError:
            continue
    found = client.getpeercert()
    assert found is not None
    since, until = (
        ssl.cert_time_to_seconds(str(found[name])) for name in ("notBefore", "notAfter")
    )
    assert since < time.time() - 365 * 86400
    assert until > time.time() + 10 * 365 * 86400
    assert not list(folder.glob("tmp*"))


def test_without_openssl_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "which", lambda name: None)
    with pytest.raises(VmoatError, match="`openssl` is not installed") as caught:
        Authority(tmp_path / "ca").certificate()
    assert caught.value.code == Code.MISSING


# -- the store --


def test_what_a_killed_process_left_is_taken_over_and_removed(tmp_path: Path) -> None:
    store = Store(tmp_path, 1 << 30, reserve=0)
    data = b"x" * 100
    (tmp_path / "partial").mkdir()
    left, old = (tmp_path / "partial" / digest_of(d)[7:] for d in (data, b"old"))
    for path in (left, old):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    with store.claim(digest_of(data)) as writing:
        assert writing is not None
        writing.write(data)
        assert writing.commit()
    assert store.read(digest_of(data), 1000) == data
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_partial_file_in_use_is_never_removed(tmp_path: Path) -> None:
    store = Store(tmp_path, 1 << 30, reserve=0)
    with store.claim(digest_of(b"ab")) as writing:
        assert writing is not None
        writing.write(b"a")
        os.utime(writing.path, (1, 1))
        Store(tmp_path, 1 << 30).trim()
        writing.write(b"b")
        assert writing.commit()
    assert store.read(digest_of(b"ab"), 10) == b"ab"


def test_small_files_are_bounded_too(tmp_path: Path) -> None:
    store = Store(tmp_path, 40 * 4096, reserve=0)
    for number in range(200):
        store.remember(f"tag {number}", Remembered(DIGEST, "t", 1))
        store.note_registry(f"host{number}:443")
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) <= 40 + 64
    assert store.knows_registry("host199:443")


def test_a_tag_record_that_makes_no_sense_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path, 1 << 30, reserve=0)
    store.keep(digest_of(b"m"), b"m")
    store.remember("k", Remembered(digest_of(b"m"), "t", 1))
    assert store.recall("other", "k") == Remembered(digest_of(b"m"), "t", 1)
    (path,) = (tmp_path / "tags").iterdir()
    for text in ("", "[]", "{}", '{"digest": 1, "type": 2, "size": "x"}'):
        path.write_text(text)
        assert store.recall("k") is None


def test_the_addresses_of_a_mac() -> None:
    """Without netlink they come from ifconfig(8), whose interface addresses are the host's own."""
    from vmoat.imagecache import ifconfig

    text = (
        "lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384\n"
        "\tinet 127.0.0.1 netmask 0xff000000\n\tinet6 ::1 prefixlen 128\n"
        "en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500\n"
        "\tether 0a:00:27:00:00:01\n"
        "\tinet6 fe80::1c2d:3e4f%en0 prefixlen 64 secured scopeid 0xb\n"
        "\tinet 192.168.1.20 netmask 0xffffff00 broadcast 192.168.1.255\n"
    )
    found = [socket.inet_ntop(family, data) for family, _, _, data in ifconfig.parsed(text)]
    assert found == ["127.0.0.1", "::1", "fe80::1c2d:3e4f", "192.168.1.20"]
