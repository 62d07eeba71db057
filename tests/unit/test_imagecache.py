"""Pulls through the image cache: real sockets and TLS, registries on loopback for public ones."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from fakeregistry import (
    OCI_MANIFEST,
    TOKEN,
    Client,
    Registry,
    Web,
    ask,
    digest,
    manifest,
    reply,
)
from ports import free_port
from timing import until

from vmoat.imagecache import Authority, ImageCache, Server
from vmoat.imagecache import store as store_module

GIB = 1 << 30
LAYER = random.Random(1).randbytes(3_000_000)
SMALL = b"config"


class Host:
    """The user's machine: one store, any number of VMs, registries near and far."""

    def __init__(self, folder: Path, authority: Authority, public: Authority) -> None:
        self.folder, self.authority, self.public = folder, authority, public
        self.store = folder / "store"
        self.lines: list[str] = []
        self.webs: list[Web] = []
        self.servers: list[Server] = []
        self.names: dict[str, list[str]] = {}
        self.distribution_ends: Callable[[], None] = lambda: None

    def near(self, **options: Any) -> Registry:
        """A registry on this machine's loopback, plain http."""
        return self.started(Registry(**options))

    def far(self, name: str = "hub.test", **options: Any) -> Registry:
        """One that has a name and a certificate."""
        self.names[name] = ["127.0.0.1"]
        return self.started(Registry(tls=self.public.context(name), **options))

    def started(self, web: Any) -> Any:
        self.webs.append(web)
        return web

    def vm(self, *registries: str, limit: int = GIB, **options: Any) -> Client:
        """A VM: its own server of the shared store."""
        cache = ImageCache(
            self.store, self.authority, limit, registries=registries,
            certificates=[self.public.certificate()], log=self.lines.append, **options,
        )  # fmt: skip
        cache.store.reserve = 0
        place = self.folder / f"s{len(self.servers)}"
        self.servers.append(cache.serve(place))
        return Client(place, self.authority.certificate())

    def blobs(self) -> set[str]:
        return {f"sha256:{path.name}" for path in self.store.glob("sha256/*/*")}

    def partial(self) -> list[Path]:
        return list(self.store.glob("partial/*"))

    def close(self) -> None:
        for one in self.servers:
            one.close()
        for web in self.webs:
            if web.thread.is_alive():
                web.stop()


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """The cache's authority and a public one, for all tests: certificates take time to make."""
    folder = tmp_path_factory.mktemp("keys")
    return Authority(folder / "ca"), Authority(folder / "public")


@pytest.fixture
def host(
    keys: tuple[Authority, Authority], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    made = Host(tmp_path, *keys)
    real = socket.getaddrinfo

    def look_up(name: Any, port: Any, *more: Any, **options: Any) -> Any:
        if name in made.names:
            one = made.names[name].pop(0) if len(made.names[name]) > 1 else made.names[name][0]
            return real(one, port, *more, **options)
        assert not str(name).endswith(".test"), name
        return real(name, port, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(Server, "poll", 0.02)
    # instead of the system's many certificates, which take a tenth of a second to load
    made.authority.certificate()
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority.folder / "ca.crt"))
    yield made
    made.close()


def pull(
    client: Client, target: str, name: str = "app", tag: str = "1", **fields: str
) -> list[bytes]:
    """All layers of an image, as dockerd asks for them; on one connection."""
    accept = {"Accept": f"{OCI_MANIFEST}, application/vnd.oci.image.index.v1+json", **fields}
    with client.open(target) as connection:
        ping = ask(connection, "GET", "/v2/")
        assert ping.status == 200, ping
        found = ask(connection, "GET", f"/v2/{name}/manifests/{tag}", **accept)
        assert found.status == 200, found
        assert found.headers["Docker-Content-Digest"] == digest(found.data)
        assert found.headers["Content-Type"] == OCI_MANIFEST
        rows = json.loads(found.data)["layers"]
        got = [
            ask(connection, "GET", f"/v2/{name}/blobs/{row['digest']}", **fields) for row in rows
        ]
    for row, one in zip(rows, got, strict=True):
        assert one.status == 200
        assert digest(one.data) == row["digest"]
    return [one.data for one in got]


# -- the second pull --


def test_a_second_vm_pulls_from_two_registries_without_asking_for_their_blobs(host: Host) -> None:
    near, far = host.near(), host.far()
    near.put("1", LAYER, SMALL)
    far.put("1", LAYER[::-1], SMALL)
    targets = (f"host.vmoat.internal:{near.port}", f"hub.test:{far.port}")
    listed = (f"127.0.0.1:{near.port}", f"hub.test:{far.port}")
    first, second = host.vm(*listed), host.vm(*listed)
    for target in targets:
        pull(first, target)
    assert near.count("/blobs/") == 2
    assert far.count("/blobs/") == 1, "the config is the same one"
    assert pull(second, targets[0]) == [LAYER, SMALL]
    assert pull(second, targets[1]) == [LAYER[::-1], SMALL]
    assert near.count("/blobs/") == 2
    assert far.count("/blobs/") == 1
    assert near.count("/manifests/1") == 2, "a tag is the registry's to answer"


@pytest.mark.parametrize("away", ["gone", 503, 429])
def test_with_the_registries_away_what_was_pulled_still_comes(host: Host, away: str | int) -> None:
    near, far = host.near(), host.far(private=True)
    for one in (near, far):
        one.put("1", LAYER, SMALL)
    targets = (f"host.vmoat.internal:{near.port}", f"hub.test:{far.port}")
    listed = (f"127.0.0.1:{near.port}", f"hub.test:{far.port}")
    client = host.vm(*listed)
    pull(client, targets[0])
    with client.open(targets[1]) as link:
        for path in ("manifests/1", f"blobs/{digest(LAYER)}", f"blobs/{digest(SMALL)}"):
            assert ask(link, "GET", f"/v2/app/{path}", Authorization=TOKEN).status == 200
    for one in (near, far):
        if away == "gone":
            one.stop()
        else:
            one.status = int(away)
    later = host.vm(*listed)
    for target in targets:
        head = later.get(target, "/v2/app/manifests/1", "HEAD")
        assert (head.status, head.headers["Content-Type"]) == (200, OCI_MANIFEST)
        if away == 429:  # the registry is there, and says so itself
            assert later.get(target, "/v2/").status == 429
            assert later.get(target, "/v2/app/manifests/1").status == 200
        else:
            assert "WWW-Authenticate" not in later.get(target, "/v2/").headers
            assert pull(later, target) == [LAYER, SMALL]
        assert later.get(target, "/v2/app/manifests/2").status >= 429
        assert later.get(target, f"/v2/app/blobs/{digest(b'x')}").status >= 429


def test_a_registry_found_by_asking_it_is_known_when_it_is_away(host: Host) -> None:
    far = host.far()
    far.put("1", LAYER)
    target = f"hub.test:{far.port}"
    pull(host.vm(open_network=True), target)
    far.stop()
    assert pull(host.vm(open_network=True), target) == [LAYER]
    with pytest.raises(ConnectionError, match=r"502 .*hub\.test:1 cannot be reached"):
        host.vm(open_network=True).get("hub.test:1", "/v2/")


def test_a_tag_that_moved_is_what_the_registry_says(host: Host) -> None:
    near = host.near()
    near.put("1", LAYER)
    client, target = host.vm(f"127.0.0.1:{near.port}"), f"host.vmoat.internal:{near.port}"
    pull(client, target)
    near.put("1", SMALL)
    assert pull(client, target) == [SMALL]
    near.put("1", b"newer")
    assert client.get(target, "/v2/app/manifests/1", "HEAD").status == 200
    near.stop()
    assert pull(client, target) == [SMALL], "the newest whose content is here"


# -- credentials --


def test_a_token_goes_to_its_registry_and_nowhere_else(host: Host) -> None:
    cdn = host.started(Web(lambda web, h: reply(h, 200, LAYER)))
    far = host.far(private=True)
    far.put("1", LAYER)
    far.cdn = f"http://127.0.0.1:{cdn.port}"
    target = f"hub.test:{far.port}"
    client = host.vm(target, f"127.0.0.1:{cdn.port}")
    challenge = client.get(target, "/v2/")
    assert challenge.status == 401
    assert challenge.headers["WWW-Authenticate"].startswith(
        'Bearer realm="https://auth.test/token"'
    )
    path = f"/v2/app/blobs/{digest(LAYER)}"
    assert client.get(target, path).status == 401
    assert client.get(target, path, Authorization=TOKEN).data == LAYER
    assert far.seen[-1].headers["Authorization"] == TOKEN
    (asked,) = cdn.seen
    assert "Authorization" not in asked.headers
    assert client.get(target, "/v2/app/manifests/1", Authorization=TOKEN).status == 200
    secret = TOKEN.split()[1]
    kept = b"".join(p.read_bytes() for p in host.store.rglob("*") if p.is_file())
    assert digest(LAYER) in host.blobs()
    assert secret.encode() not in kept
    assert host.lines
    assert not any(secret in line for line in host.lines)


# -- never a wrong or partial blob --


def test_two_that_want_the_same_blob_fetch_it_once(host: Host) -> None:
    near = host.near()
    near.put("1", LAYER)
    near.pause = 0.02
    listed, target = f"127.0.0.1:{near.port}", f"host.vmoat.internal:{near.port}"
    got: list[bytes] = []
    clients = [host.vm(listed), host.vm(listed), host.vm(listed)]
    path = f"/v2/app/blobs/{digest(LAYER)}"
    threads = [
        threading.Thread(target=lambda c=one: got.append(c.get(target, path).data))
        for one in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [LAYER] * 3
    assert near.count("/blobs/") == 1


def test_one_who_waits_for_a_fetch_that_stands_still_goes_on_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = host.near()
    near.put("1", LAYER)
    client = host.vm(f"127.0.0.1:{near.port}")
    store = host.servers[0].cache.store
    real = store._claim
    monkeypatch.setattr(store, "_claim", lambda name, patience: real(name, min(patience, 0.3)))
    with store_module.Store(host.store, GIB).claim(digest(LAYER)) as other:
        assert other is not None
        other.write(LAYER[:1000])
        got = client.get(f"host.vmoat.internal:{near.port}", f"/v2/app/blobs/{digest(LAYER)}")
    assert got.data == LAYER
    assert host.blobs() == set()
    assert host.partial() == []


def test_of_a_client_that_hangs_up_nothing_stays(host: Host) -> None:
    near = host.near()
    big = random.Random(2).randbytes(20_000_000)
    near.put("1", big)
    near.pause = 0.01
    client = host.vm(f"127.0.0.1:{near.port}")
    target, path = f"host.vmoat.internal:{near.port}", f"/v2/app/blobs/{digest(big)}"
    with client.open(target) as link:
        link.request("GET", path)
        assert link.getresponse().read(100_000)
        assert host.partial()
    until(lambda: not host.partial())
    assert host.blobs() == set()
    near.pause = 0
    assert client.get(target, path).data == big
    assert host.blobs() == {digest(big)}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("how", ["wrong", "short", "cut"])
def test_a_blob_that_is_not_what_its_digest_says_is_never_whole(
    host: Host, how: str, chunked: bool
) -> None:
    near = host.near()
    near.put("1", LAYER)
    near.chunked = chunked
    if how == "cut":
        near.cut = 1_000_000
    else:
        near.lies[digest(LAYER)] = LAYER[:-1] + b"!" if how == "wrong" else LAYER[:-1000]
    client = host.vm(f"127.0.0.1:{near.port}")
    target, path = f"host.vmoat.internal:{near.port}", f"/v2/app/blobs/{digest(LAYER)}"
    with pytest.raises((OSError, HTTPException)):
        client.get(target, path)
    until(lambda: not host.partial())
    assert host.blobs() == set()
    near.cut, near.lies = 0, {}
    assert client.get(target, path).data == LAYER
    assert host.blobs() == {digest(LAYER)}


def test_a_blob_that_went_bad_on_disk_is_fetched_again(host: Host) -> None:
    near = host.near()
    near.put("1", LAYER)
    client = host.vm(f"127.0.0.1:{near.port}")
    target, path = f"host.vmoat.internal:{near.port}", f"/v2/app/blobs/{digest(LAYER)}"
    client.get(target, path)
    place = host.servers[0].cache.store.place(digest(LAYER))
    place.write_bytes(LAYER[:-1] + b"\0")
    with pytest.raises(HTTPException):
        client.get(target, path)
    assert client.get(target, path).data == LAYER


def test_what_a_registry_calls_a_manifest_must_be_what_it_is(host: Host) -> None:
    near = host.near()
    other = "application/vnd.oci.image.index.v1+json"
    both = b'{"schemaVersion":2,"layers":[],"manifests":[]}'
    for data, kind in ((manifest(LAYER), other), (both, OCI_MANIFEST), (b"[]", OCI_MANIFEST)):
        near.manifests[digest(data)] = near.manifests["t"] = (kind, data)
        client, target = host.vm(f"127.0.0.1:{near.port}"), f"host.vmoat.internal:{near.port}"
        for path in (digest(data), "t"):
            got = client.get(target, f"/v2/app/manifests/{path}")
            assert (got.data, got.headers["Content-Type"]) == (data, kind), "passed on as it came"
    assert host.blobs() == set()
    assert not list(host.store.glob("tags/*"))


# -- ranges --


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=2999990-", 206, slice(2_999_990, None)),
        ("bytes=1000000-9999999", 206, slice(1_000_000, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_a_part_of_a_blob(host: Host, wanted: str, status: int, part: slice) -> None:
    near = host.near()
    near.put("1", LAYER)
    client = host.vm(f"127.0.0.1:{near.port}")
    target, path = f"host.vmoat.internal:{near.port}", f"/v2/app/blobs/{digest(LAYER)}"
    client.get(target, path)
    near.stop()
    got = client.get(target, path, Range=wanted)
    assert (got.status, got.data) == (status, LAYER[part])
    if status == 206:
        first, last, _ = part.indices(len(LAYER))
        assert got.headers["Content-Range"] == f"bytes {first}-{last - 1}/{len(LAYER)}"


def test_a_download_that_is_resumed_is_kept_whole(host: Host) -> None:
    near = host.near()
    near.put("1", LAYER)
    client = host.vm(f"127.0.0.1:{near.port}")
    target, path = f"host.vmoat.internal:{near.port}", f"/v2/app/blobs/{digest(LAYER)}"
    got = client.get(target, path, Range="bytes=2000000-")
    assert (got.status, got.data) == (206, LAYER[2_000_000:])
    assert got.headers["Content-Range"] == f"bytes 2000000-2999999/{len(LAYER)}"
    assert host.blobs() == {digest(LAYER)}


def test_a_range_behind_the_end(host: Host) -> None:
    near = host.near()
    near.put("1", SMALL)
    client = host.vm(f"127.0.0.1:{near.port}")
    target, path = f"host.vmoat.internal:{near.port}", f"/v2/app/blobs/{digest(SMALL)}"
    client.get(target, path)
    got = client.get(target, path, Range="bytes=6-")
    assert (got.status, got.headers["Content-Range"]) == (416, "bytes */6")


# -- room --


def test_what_was_used_least_recently_goes(host: Host) -> None:
    near = host.near()
    layers = [random.Random(n).randbytes(1 << 20) for n in range(4)]
    near.put("1", *layers)
    client = host.vm(f"127.0.0.1:{near.port}", limit=3 << 20)
    target = f"host.vmoat.internal:{near.port}"
    for number in (0, 1, 2, 0, 3):
        client.get(target, f"/v2/app/blobs/{digest(layers[number])}")
        time.sleep(0.02)
    until(lambda: host.blobs() == {digest(layers[n]) for n in (0, 2, 3)})


def test_a_blob_larger_than_the_cache_is_served(host: Host) -> None:
    near = host.near()
    near.put("1", LAYER)
    for near.chunked in (False, True):
        client = host.vm(f"127.0.0.1:{near.port}", limit=1 << 20)
        assert pull(client, f"host.vmoat.internal:{near.port}") == [LAYER]
    assert digest(LAYER) not in host.blobs()


@pytest.mark.parametrize("how", ["full", "unwritable"])
def test_a_full_disk_serves_and_does_not_store(
    host: Host, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = host.near()
    near.put("1", LAYER)
    client = host.vm(f"127.0.0.1:{near.port}")
    if how == "full":
        host.servers[0].cache.store.reserve = 1 << 60
    else:
        host.store.write_text("no folder")
    assert pull(client, f"host.vmoat.internal:{near.port}") == [LAYER]
    assert digest(LAYER) not in host.blobs()


@pytest.mark.skipif(os.getuid() != 0, reason="a file system of its own needs root")
def test_a_disk_that_fills_up_midway(host: Host) -> None:
    near = host.near()
    near.put("1", LAYER)
    host.store.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(host.store)])
    if done.returncode:
        pytest.skip("no mounts here")
    try:
        near.chunked = True
        assert pull(host.vm(f"127.0.0.1:{near.port}"), f"host.vmoat.internal:{near.port}") == [
            LAYER
        ]
        assert digest(LAYER) not in host.blobs()
        until(lambda: not host.partial())
    finally:
        subprocess.run(["umount", "-l", str(host.store)], check=True)


# -- everything else passes --


def test_a_push_passes_and_its_links_lead_back(host: Host) -> None:
    near = host.near()
    near.put("1", LAYER)
    client, target = host.vm(f"127.0.0.1:{near.port}"), f"host.vmoat.internal:{near.port}"
    pull(client, target)
    with client.open(target) as link:
        started = ask(link, "POST", "/v2/app/blobs/uploads/", Authorization=TOKEN)
        assert started.status == 202
        assert started.headers["Location"] == f"https://{target}/v2/up/1"
        ask(link, "PATCH", "/v2/up/1", body=iter([b"abc", b"def"]))
        ask(link, "PUT", "/v2/up/1?digest=x", body=b"end")
    assert [(one.method, one.body) for one in near.seen[-3:]] == [
        ("POST", b""), ("PATCH", b"abcdef"), ("PUT", b"end"),
    ]  # fmt: skip
    assert near.seen[-3].headers["Authorization"] == TOKEN
    del near.blobs[digest(LAYER)]
    head = client.get(target, f"/v2/other/blobs/{digest(LAYER)}", "HEAD")
    assert head.status == 404, "else a push would leave out what the registry lacks"


def test_a_host_that_is_no_registry_is_spoken_to_end_to_end(host: Host) -> None:
    host.names["site.test"] = ["127.0.0.1"]
    context = host.public.context("site.test")
    site = host.started(
        Web(lambda web, h: reply(h, 404 if h.path == "/v2/" else 200, b"hello"), context)
    )
    client = host.vm(open_network=True)
    with client.open(f"site.test:{site.port}", host.public.certificate()) as link:
        assert ask(link, "GET", "/repo.git").data == b"hello"
    with pytest.raises(OSError, match="certificate verify failed"):
        client.get(f"site.test:{site.port}", "/")
    assert site.count("/v2/") == 1, "asked once"


def test_plain_http_through_the_proxy_and_in_a_registrys_place(host: Host) -> None:
    near = host.near()
    near.put("1", LAYER)
    client = host.vm(f"localhost:{near.port}")
    path = f"/v2/app/blobs/{digest(LAYER)}"
    assert client.plain(f"http://127.0.0.1:{near.port}{path}").data == LAYER
    assert client.plain(path, Host=f"localhost:{near.port}").data == LAYER
    assert near.count("/blobs/") == 1
    assert client.plain(path, Host="example.org").status == 403


# -- walls --

BEHIND = [
    "127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.1", "2130706433", "0x7f.1", "[::]",
    "169.254.169.254", "100.100.100.200", "[fe80::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]",
    "host.vmoat.internal", "own.test", "localhost.", "LOCALHOST",
]  # fmt: skip


def test_no_vm_reaches_the_host_through_the_cache(host: Host) -> None:
    secret = host.near()
    secret.put("1", LAYER)
    host.names["own.test"] = ["127.0.0.1"]
    client = host.vm("127.0.0.1:5001", "hub.test:443")
    for name in BEHIND:
        target = f"{name}:{secret.port}"
        status, reason = client.refused(target)
        assert (status, "vmoat's image cache" in reason) == (403, True), target
        assert client.plain(f"http://{target}/v2/").status == 403, target
        assert client.plain("/v2/", Host=target).status == 403, target
    assert secret.seen == []


def test_the_hosts_own_addresses_are_behind_the_wall(host: Host) -> None:
    from vmoat.drivers.qemu.netguard import host_addresses

    own = [socket.inet_ntop(f, a) for f, _, _, a in host_addresses() if f == socket.AF_INET]
    client = host.vm()
    assert own
    for address in own:
        status, reason = client.refused(f"{address}:22")
        assert (status, address in reason) == (403, True)


def test_a_redirect_does_not_lead_behind_the_wall(host: Host) -> None:
    near, secret = host.near(), host.near()
    near.put("1", LAYER)
    near.cdn = f"http://127.0.0.1:{secret.port}"
    client = host.vm(f"127.0.0.1:{near.port}")
    target = f"host.vmoat.internal:{near.port}"
    for place in (f"127.0.0.1:{secret.port}", "169.254.169.254", "own.test"):
        host.names["own.test"] = ["127.0.0.1"]
        near.cdn = f"http://{place}"
        assert client.get(target, f"/v2/app/blobs/{digest(LAYER)}").status == 403
    near.cdn = "file:///etc"
    assert client.get(target, f"/v2/app/blobs/{digest(LAYER)}").status == 403
    assert secret.seen == []


def test_a_name_that_changes_its_address_gains_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmoat.imagecache import upstream

    tried: list[str] = []

    def connect(addresses: Any) -> socket.socket:
        tried.extend(address for _, (address, _) in addresses)
        raise OSError("far away")

    monkeypatch.setattr(upstream, "connect", connect)
    host.names["rebind.test"] = ["192.0.2.7", "127.0.0.1"]
    client = host.vm()
    assert client.refused("rebind.test:443")[0] == 502
    assert client.refused("rebind.test:443")[0] == 403
    assert tried == ["192.0.2.7"]


def test_what_is_no_host_is_refused(host: Host) -> None:
    client = host.vm()
    for target in (
        "a b:443", "a@b:443", "x:0", "x:99999", "[zz]:1", "a,DNS:b:443", ":443", "a..b:443",
        "a" * 64 + ":443",
    ):  # fmt: skip
        with client.dial() as sock:
            sock.sendall(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
            assert sock.recv(4096).split(b" ")[1] in (b"400", b"403"), target


# -- the host's proxies --


def forwarding(web: Web, handler: Any) -> None:
    """A proxy that leads every CONNECT to 127.0.0.1."""
    port = int(handler.path.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as link:
        handler.send_response_only(200)
        handler.end_headers()
        handler.close_connection = True
        back = threading.Thread(target=_copy, args=(link, handler.connection))
        back.start()
        _copy(handler.connection, link)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_the_hosts_proxy_leads_to_the_registries(host: Host) -> None:
    far = host.far()
    far.put("1", LAYER)
    proxy = host.started(Web(forwarding))
    proxies = {"https_proxy": f"http://us%40er:pw@127.0.0.1:{proxy.port}", "no_proxy": "other.test"}
    target = f"hub.test:{far.port}"
    assert pull(host.vm(target, proxies=proxies), target) == [LAYER]
    assert {one.path for one in proxy.seen} == {target}
    assert proxy.seen[0].headers["Proxy-Authorization"] == "Basic dXNAZXI6cHc="
    proxy.seen.clear()
    assert pull(host.vm(target, proxies={**proxies, "no_proxy": ".test"}), target) == [LAYER]
    assert proxy.seen == []


def test_a_proxy_of_this_machine_gets_the_address_that_was_judged(host: Host) -> None:
    proxy = host.started(Web(lambda web, h: reply(h, 403)))
    proxies = {"https_proxy": f"http://127.0.0.1:{proxy.port}"}
    client = host.vm(proxies=proxies)
    host.names["far.test"], host.names["own.test"] = ["192.0.2.7"], ["127.0.0.1"]
    assert client.refused("far.test:443")[0] == 502
    assert client.refused("own.test:443")[0] == 403
    assert client.refused("127.0.0.1:443")[0] == 403
    assert [one.path for one in proxy.seen] == ["192.0.2.7:443"]


# -- the socket --


def test_the_socket_is_the_users_alone_and_free_after_close(host: Host) -> None:
    near = host.near()
    client = host.vm(f"127.0.0.1:{near.port}")
    assert client.place.stat().st_mode & 0o777 == 0o600
    with client.open(f"host.vmoat.internal:{near.port}") as link:
        assert ask(link, "GET", "/v2/").status == 200
        host.servers[0].close()
        assert not client.place.exists()
        with pytest.raises((OSError, HTTPException)):
            ask(link, "GET", "/v2/")
    again = host.servers[0].cache.serve(client.place)
    assert client.get(f"host.vmoat.internal:{near.port}", "/v2/").status == 200
    again.close()


def test_noise_on_the_socket_ends_one_connection(host: Host) -> None:
    near = host.near()
    client, target = host.vm(f"127.0.0.1:{near.port}"), f"host.vmoat.internal:{near.port}"
    for noise in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", b"\n\n", b"GET\r\n\r\n", b""):
        with client.dial() as sock:
            sock.sendall(noise)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                sock.recv(4096)
    status, _, sock = client.connect(target)
    with sock:
        assert status == 200
        sock.sendall(b"this is no TLS\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            sock.recv(4096)
    assert client.get(target, "/v2/").status == 200


# -- real programs --


@pytest.fixture
def distribution(host: Host, tmp_path: Path) -> Iterator[int]:
    """CNCF Distribution's own registry, where it is installed."""
    program = shutil.which("docker-registry")
    if program is None or shutil.which("skopeo") is None:
        pytest.skip("docker-registry and skopeo are not installed")
    port = free_port()
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:"
        f" {{filesystem: {{rootdirectory: {tmp_path}/r}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with subprocess.Popen([program, "serve", str(config)], stderr=subprocess.DEVNULL) as process:
        until(lambda: answers(port))

        def end() -> None:
            process.terminate()
            process.wait()

        host.distribution_ends = end
        yield port
        end()


def test_skopeo_pushes_to_distribution_and_pulls_with_it_gone(
    host: Host, distribution: int, tmp_path: Path
) -> None:
    """Go's own HTTP client, as dockerd has it: CONNECT, SSL_CERT_DIR, chunked uploads."""
    client = host.vm(f"127.0.0.1:{distribution}")
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / "ca.crt").write_text(client.authority)
    with socket.create_server(("127.0.0.1", 0)) as relay:
        threading.Thread(target=relay_to, args=(relay, client), daemon=True).start()
        proxy = f"http://127.0.0.1:{relay.getsockname()[1]}"
        env = {**os.environ, "HTTPS_PROXY": proxy, "SSL_CERT_DIR": str(tmp_path / "trust")}
        image = f"docker://host.vmoat.internal:{distribution}/app:1"

        def copy(source: str, target: str) -> None:
            words = ["skopeo", "--insecure-policy", "copy", "-q", source, target]
            done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr

        oci_image(tmp_path / "image")
        copy(f"oci:{tmp_path / 'image'}:1", image)
        copy(image, f"oci:{tmp_path / 'first'}:1")
        shutil.rmtree(tmp_path / "r")
        host.distribution_ends()
        copy(image, f"oci:{tmp_path / 'second'}:1")
    blobs = [
        {p.name for p in (tmp_path / n / "blobs/sha256").iterdir()} for n in ("first", "second")
    ]
    assert blobs[0] == blobs[1]
    assert len(blobs[0]) == 3, "manifest, config and layer"


def oci_image(folder: Path) -> None:
    """An image layout of one layer (OCI image specification)."""
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    ).encode()
    kind = "application/vnd.oci.image"
    rows = {
        "config": {
            "mediaType": f"{kind}.config.v1+json",
            "digest": digest(config),
            "size": len(config),
        },
        "layers": [
            {"mediaType": f"{kind}.layer.v1.tar", "digest": digest(LAYER), "size": len(LAYER)}
        ],
    }
    top = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **rows}).encode()
    (folder / "blobs/sha256").mkdir(parents=True)
    for data in (config, LAYER, top):
        (folder / "blobs" / digest(data).replace(":", "/")).write_bytes(data)
    entry = {"mediaType": OCI_MANIFEST, "digest": digest(top), "size": len(top),
             "annotations": {"org.opencontainers.image.ref.name": "1"}}  # fmt: skip
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def relay_to(server: socket.socket, client: Client) -> None:
    """A TCP port that leads to the cache's socket, as the ssh forward does in a VM."""
    while True:
        try:
            one, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=both_ways, args=(one, client.dial()), daemon=True).start()


def both_ways(one: socket.socket, other: socket.socket) -> None:
    with one, other:
        back = threading.Thread(target=_copy, args=(other, one))
        back.start()
        _copy(one, other)
        back.join()
