"""What is true of a VM now, from Lima's files and processes: without ssh, without `limactl`."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path

from vmoat import paths
from vmoat.drivers import SshEndpoint, VmStatus
from vmoat.drivers.colima import homes, pids, record, words
from vmoat.drivers.colima.homes import Place
from vmoat.errors import Code, VmoatError

AGENT = "ha.pid"
MACHINES = ("qemu.pid", "vz.pid", "krunkit.pid")
"""Named by the kind of VM (pkg/limatype/filenames); vz runs in the host agent itself."""
PROVISIONED = "colima.yaml"
"""In the instance's folder: written when the VM itself is set up (environment/vm/lima/lima.go)."""


def agent(place: Place) -> pids.Living | None:
    """Lima's host agent of a VM."""
    return pids.read(place.instance / AGENT, place.instance)


def machine(place: Place) -> pids.Living | None:
    """What runs the VM itself."""
    found = (pids.read(place.instance / name, place.instance) for name in MACHINES)
    return next((living for living in found if living), None)


def told(living: pids.Living | None) -> str:
    """An agent as it is recorded."""
    return f"{living.pid} {living.started}" if living else ""


def starting(known: record.Record | None) -> bool:
    """Whether a `colima start` of ours is under way, also one whose starter was killed."""
    if known is None or not known.starter:
        return False
    # by pid and time alone: while a program replaces itself (sh, bwrap), its command line is empty
    return told(pids.look(int(known.starter.split()[0]), "")) == known.starter


def finished(name: str) -> bool:
    """Whether the last `colima start` came to its end (app/app.go: it says so last)."""
    return words.last(paths.vm_dir(name) / words.LOG) == "done"


def said_ready(place: Place, token: str) -> bool:
    """Whether the guest said on a console that this boot is prepared (``equip``'s last words).

    False proves nothing: what cloud-init prints there is up to the image.
    """
    said = f"vmoat-boot: ready {token}".encode()
    return any(said in _bytes(file) for file in place.instance.glob("serial*.log"))


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def disk_id(place: Place) -> str:
    """Which system disk this is; another one for each instance that is made."""
    try:
        folder = os.stat(place.instance)
        # written once, when the instance is made (pkg/instance/create.go)
        made = os.stat(place.instance / "lima-version")
    except OSError:
        return ""
    text = f"{place.instance} {folder.st_ino} {made.st_ino} {made.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def status(name: str) -> VmStatus:
    """See ``Driver.status``."""
    known = record.read(name)
    place = homes.place_of(name)
    facts = VmStatus("absent")
    if known:
        facts = replace(facts, accel=known.accel, mount=known.mount, spec_digest=known.spec_digest)
    if starting(known):
        return replace(facts, state="starting", disk=disk_id(place))
    if not place.instance.is_dir():
        if known and known.phase == "starting":
            why = "its first start was cut short before Lima had made it"
            return replace(facts, state="broken", reasons=(why,))
        return facts
    facts = replace(facts, disk=disk_id(place))
    if not (place.instance / "lima.yaml").is_file():
        why = "its folder holds no lima.yaml: a start or a delete was cut short"
        return replace(facts, state="broken", reasons=(why,))
    if not place.data_disk.exists():
        why = "its data disk is gone"
        return replace(facts, state="broken", reasons=(why,))
    return _by_processes(name, place, known, facts)


def _by_processes(
    name: str, place: Place, known: record.Record | None, facts: VmStatus
) -> VmStatus:
    host, vm = agent(place), machine(place)
    living = {"hostagent": host, "vm": vm}
    facts = replace(facts, pids={name: one.pid for name, one in living.items() if one})
    if not host and not vm:
        left = [n for n in (AGENT, *MACHINES) if (place.instance / n).exists()]
        if known and known.phase == "starting":
            return replace(facts, state="broken", reasons=("its start was interrupted",))
        if left and known and known.phase == "running":
            # whoever ends in order removes these
            why = "it was killed, or this machine was restarted under it"
            return replace(facts, state="broken", reasons=(why,))
        return replace(facts, state="stopped")
    if not host:
        why = "Lima's host agent ended under it"
        return replace(facts, state="broken", reasons=(why,))
    if not vm:
        why = "the VM ended under Lima's host agent"
        return replace(facts, state="broken", reasons=(why,))
    if not (place.instance / PROVISIONED).is_file():
        why = "it runs, but Colima never finished its set-up"
        return replace(facts, state="broken", reasons=(why,))
    if known and known.phase == "starting" and not finished(name):
        return replace(facts, state="broken", reasons=("its start was interrupted",))
    seen = bool(known and known.token and known.agent == told(host))
    # Started by somebody else (`colima start`): it runs, in a boot that is not prepared yet.
    boot = known.token if known and seen else ""
    return replace(facts, state="running", boot=boot, ssh_port=port(place))


def ssh_options(place: Place) -> dict[str, str]:
    """Lima's own ssh config of the VM, lower-case key → value; empty without one.

    Written at each start (pkg/hostagent), with ``User``, ``Hostname``, ``Port``, ``IdentityFile``.
    """
    try:
        text = (place.instance / "ssh.config").read_text(errors="surrogateescape")
    except OSError:
        return {}
    rows = re.findall(r"^\s+(\w+)[ \t]+(.+?)\s*$", text, re.MULTILINE)
    found: dict[str, str] = {}
    for key, value in rows:
        found.setdefault(key.lower(), value.strip('"'))
    return found


def port(place: Place) -> int:
    """The host's port of the guest's sshd; another one in each boot; 0 for none."""
    found = ssh_options(place).get("port", "")
    return int(found) if found.isdigit() else 0


def known_hosts(name: str) -> Path:
    """Where the guest's key stands, pinned when it was first met."""
    return paths.vm_dir(name) / "ssh" / "known_hosts"


def endpoint(name: str) -> SshEndpoint:
    """See ``Driver.ssh_endpoint``."""
    options = ssh_options(homes.place_of(name))
    try:
        return SshEndpoint(
            options["hostname"],
            int(options["port"]),
            options["user"],
            Path(options["identityfile"]),
            known_hosts(name),
        )
    except (KeyError, ValueError) as error:
        raise VmoatError(
            f"the VM {name} was never started", hint="`vmoat up` starts it", code=Code.VM
        ) from error


def weights(name: str) -> dict[str, int]:
    """See ``Driver.weights``."""
    place = homes.place_of(name)
    living = [one for one in (agent(place), machine(place)) if one]
    data = _weight(place.data_disk)
    return {
        "system": weight(place.instance),
        "data": data,
        "image": 0,
        "memory": sum(pids.resident(pid) for pid in {one.pid for one in living}),
    }


def weight(folder: Path) -> int:
    """Bytes that the files of a folder take on the host."""
    total = 0
    for top, _, files in os.walk(folder):
        total += sum(_weight(Path(top) / name) for name in files)
    return total


def total_weight(name: str) -> int:
    """See ``Driver.weight``."""
    place = homes.place_of(name)
    return weight(place.instance) + _weight(place.data_disk)


def _weight(file: Path) -> int:
    try:
        return os.lstat(file).st_blocks * 512
    except OSError:
        return 0
