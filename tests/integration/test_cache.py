"""Two VMs and the image cache of this machine: what one has pulled, the other has here.

Two registries on loopback stand in for public ones.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Vm, at_once, told

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from fakeregistry import OCI_MANIFEST, Registry, digest

pytestmark = pytest.mark.vm

LAYERS = 5


def tar(name: str, data: bytes) -> bytes:
    """A tar of one file (tar(5), ustar)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def serve_image(registry: Registry, mib: int) -> None:
    """``app:1``, of ``mib`` mebibytes that nobody else has."""
    layers = [tar(f"data{n}", os.urandom((mib << 20) // LAYERS)) for n in range(LAYERS)]
    config = json.dumps(
        {
            "architecture": "arm64" if os.uname().machine == "aarch64" else "amd64",
            "os": "linux",
            "config": {"Cmd": ["/none"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
    ).encode()
    kinds = ["application/vnd.oci.image.config.v1+json"]
    kinds += ["application/vnd.oci.image.layer.v1.tar"] * LAYERS
    rows = [
        {"mediaType": kind, "digest": digest(blob), "size": len(blob)}
        for kind, blob in zip(kinds, (config, *layers), strict=True)
    ]
    text = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": rows[0], "layers": rows[1:]}
    data = json.dumps(text).encode()
    registry.blobs.update({digest(blob): blob for blob in (config, *layers)})
    registry.manifests.update(dict.fromkeys(("1", digest(data)), (OCI_MANIFEST, data)))


@pytest.fixture
def registries(golden: Vm, second: Vm) -> Iterator[list[Registry]]:
    """Both VMs may reach them; other registries of this machine stay out of reach."""
    found = [Registry(), Registry()]
    listed = " ".join(f"127.0.0.1:{one.port}" for one in found)
    for vm in (golden, second):
        vm.env["VMOAT_CACHE_REGISTRIES"] = listed
    yield found
    for vm in (golden, second):
        del vm.env["VMOAT_CACHE_REGISTRIES"]
    for one in found:
        if one.thread.is_alive():
            one.stop()


def pull(vm: Vm, names: list[str], timeout: float) -> str:
    """Pull both, whatever is there, and say what came; nothing of it stays in the VM."""
    line = " && ".join(f"docker pull -q {name}" for name in names)
    ids = " ".join(names)
    done = vm.cli(
        "exec",
        f"{line} && docker image inspect -f '{{{{.RootFS.Layers}}}}' {ids}; c=$?; "
        f"docker rmi -f {ids} >&2; exit $c",
        timeout=timeout,
    )
    assert done.returncode == 0, told(done)
    return hashlib.sha256(done.stdout.encode()).hexdigest()


@pytest.mark.parametrize("mib", [10, pytest.param(200, marks=pytest.mark.long)])
def test_the_second_vm_asks_no_registry_for_a_blob(
    golden: Vm, second: Vm, registries: list[Registry], mib: int
) -> None:
    for one in registries:
        serve_image(one, mib)
    names = [f"host.vmoat.internal:{one.port}/app:1" for one in registries]
    limit = 120 + 5 * mib
    first = pull(golden, names, limit)
    asked = [one.count("/blobs/") for one in registries]
    assert asked == [LAYERS + 1] * 2
    assert pull(second, names, limit) == first
    assert [one.count("/blobs/") for one in registries] == asked
    for one in registries:
        one.stop()
    with at_once(lambda: pull(golden, names, limit), lambda: pull(second, names, limit)) as again:
        pass
    assert again == [first, first]
