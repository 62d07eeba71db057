"""The host's docker logins in a VM: a registry with a password, and a search for that password.

The registry runs in the VM itself, for the walls keep the VM from one on the host's loopback.  The
image is the stack's own.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Vm, told

pytestmark = pytest.mark.vm

REGISTRY = "localhost:5000"
IMAGE = f"{REGISTRY}/private/page"
USER = "puller"
STOP = "/run/vmoat-stop-watching"

HASH = f"chomp; print qq({USER}:), crypt($_, q($2y$04$) . q(abcdefghijklmnopqrstuu)), qq(\\n)"
"""htpasswd's line from the password on standard input (bcrypt, crypt(5))."""

# Everything that any process is started with, until STOP is there.  Its own words hold no secret.
WATCH = f"""
my %seen;
until (-e "{STOP}") {{
    for my $file (glob "/proc/[0-9]*/cmdline /proc/[0-9]*/environ") {{
        open my $in, "<", $file or next;
        local $/;
        my $text = <$in>;
        $seen{{$text}} = 1 if defined $text;
    }}
    select undef, undef, undef, 0.03;
}}
print "$_\\n" for keys %seen;
"""


@dataclass(frozen=True)
class Registry:
    """A registry in the VM, and the host's login to it."""

    secret: str
    config: Path


@pytest.fixture(scope="module")
def registry(golden: Vm, first_up: str) -> Iterator[Registry]:
    secret = f"pLaNt3d{secrets.token_hex(8)}"
    vm = golden
    code, out = vm.root_sh("DEBIAN_FRONTEND=noninteractive apt-get install -y docker-registry")
    assert code == 0, out
    begin = f"perl -ne '{HASH}' >/etc/docker/registry/htpasswd && systemctl restart docker-registry"
    done = vm.cli("exec", "sudo", "-n", "bash", "-c", begin, input=secret + "\n")
    assert done.returncode == 0, told(done)
    folder = Path(vm.home.env()["DOCKER_CONFIG"])
    folder.mkdir(exist_ok=True)
    config = folder / "config.json"
    login = base64.b64encode(f"{USER}:{secret}".encode()).decode()
    config.write_text(json.dumps({"auths": {REGISTRY: {"auth": login}}}))
    yield Registry(secret, config)
    config.unlink()
    vm.root_sh("systemctl disable --now docker-registry; rm -rf /var/lib/docker-registry/*")


@pytest.fixture(scope="module")
def pushed(golden: Vm, registry: Registry) -> Registry:
    """An image in the registry, and no longer in the VM."""
    golden.ok(f"docker tag $(docker ps -q | xargs docker inspect -f '{{{{.Image}}}}') {IMAGE}")
    golden.ok(f"docker push -q {IMAGE}; docker rmi {IMAGE}")
    return registry


def spellings(secret: str) -> set[bytes]:
    """The secret, and what is in each base64 of a text that holds it."""
    found = {secret.encode()}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret.encode())
        found.add(encoded[4 if before else 0 : -4])
    return found


def holding(files: Iterable[Path], needles: set[bytes]) -> list[str]:
    """The files that hold one of these, also where that lies across two reads."""
    found = []
    for file in files:
        rest = b""
        with open(file, "rb") as stream:
            while part := stream.read(16 << 20):
                if any(needle in rest + part for needle in needles):
                    found.append(str(file))
                    break
                rest = part[-100:]
    return found


def started_with(stop: threading.Event) -> set[bytes]:
    """The words and environments of this machine's processes, until ``stop``."""
    seen: set[bytes] = set()
    while not stop.wait(0.02):
        for name in ("cmdline", "environ"):
            for file in Path("/proc").glob(f"[0-9]*/{name}"):
                try:
                    seen.add(file.read_bytes())
                except OSError:
                    continue
    return seen


def test_without_a_login_the_registry_refuses(vm: Vm, pushed: Registry) -> None:
    """So what the others get is the host's login; one that the host took back is gone at once."""
    held = pushed.config.read_bytes()
    pushed.config.write_text("{}")
    code, out = vm.sh(f"docker pull {IMAGE}")
    pushed.config.write_bytes(held)
    assert code != 0
    assert "no basic auth credentials" in out


def test_the_password_is_nowhere_but_where_it_is_used(vm: Vm, pushed: Registry) -> None:
    """A pull and a build with the host's login, and then a search in all that is left of them."""
    stop = threading.Event()
    on_host: set[bytes] = set()
    watcher = threading.Thread(target=lambda: on_host.update(started_with(stop)))
    watcher.start()
    in_guest = vm.start("exec", "sudo", "-n", "perl", "-e", WATCH)
    try:
        vm.ok(f"docker pull -q {IMAGE} && docker rmi {IMAGE}")
        build = f"printf 'FROM {IMAGE}\\nLABEL a=b\\n' | docker build --progress=plain -t built -"
        story = vm.cli("-v", "exec", f"{build} 2>&1; docker rmi -f built")
        assert story.returncode == 0, told(story)
    finally:
        stop.set()
        watcher.join()
        vm.root_sh(f"touch {STOP}")
        words, _ = in_guest.communicate(timeout=60)
        vm.root_sh(f"rm {STOP}")
    assert f"sharing credentials for {REGISTRY}" in story.stdout
    needles = spellings(pushed.secret)
    assert "docker-credential-vmoat\0get" in words, "the watcher saw the helper at work"
    guest_says = "\n".join(
        (words, story.stdout, story.stderr, vm.root_sh("journalctl -q --no-pager")[1])
    ).encode()
    assert not [needle for needle in needles if needle in guest_says]
    assert len(on_host) > 10
    assert not [text for text in on_host if any(needle in text for needle in needles)]

    marker = f"Mark{secrets.token_hex(8)}"
    vm.root_sh(f"echo {marker} >/var/lib/marker; echo {marker} >/data/marker; sync")
    time.sleep(1)
    disks = sorted(vm.disks.glob("*.qcow2"))
    assert holding(disks, {marker.encode()}) == [str(disk) for disk in disks], "the search works"
    state = [
        file
        for top in (vm.home.state, vm.home.data / "disks", vm.runtime())
        for file in top.rglob("*")
        if file.is_file() and not file.is_symlink()
    ]
    assert {"console.log", "qemu.log"} <= {file.name for file in state}
    assert any(file.suffix == ".ndjson" for file in state)
    assert holding(state, needles) == []
    vm.root_sh("rm /var/lib/marker /data/marker")
    assert vm.sh("sudo find /run/vmoat -type f -path '*logins*'") == (0, "")


def test_a_login_made_in_the_vm_stays_in_its_memory(vm: Vm, registry: Registry) -> None:
    before = registry.config.read_bytes()
    login = f"docker login -u {USER} --password-stdin {REGISTRY}"
    done = vm.cli("exec", login, input=registry.secret)
    assert done.returncode == 0, told(done)
    assert vm.ok("stat -f -c %T $(sudo find /run/vmoat -type f -path '*logins*')") == "tmpfs"
    assert registry.secret not in vm.ok("cat ~/.docker/config.json")
    vm.ok(f"docker logout {REGISTRY}")
    assert vm.sh("sudo find /run/vmoat -type f -path '*logins*'") == (0, "")
    assert registry.config.read_bytes() == before


def test_nobody_else_in_the_vm_can_ask(vm: Vm, registry: Registry) -> None:
    asked = f"printf {REGISTRY} | %s docker-credential-vmoat get"
    assert registry.secret in vm.sh(asked % "")[1]
    assert registry.secret in vm.sh(asked % "sudo")[1]
    assert "not found" in vm.sh(asked % "sudo -u nobody")[1]
