"""QEMU's argument list, a pure function of what the VM is.

Facts: QEMU 7.2's and 10's ``qemu-system-*(1)``; JSON is taken by ``-blockdev``, ``-device`` and
``-netdev`` since 7.2 and needs no quoting of commas.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from vmoat.drivers.qemu import netguard
from vmoat.drivers.qemu.shares import Export

MTU = 65520
"""passt's own default: few, large frames."""


@dataclass(frozen=True)
class Machine:
    """What differs between the machines that QEMU emulates."""

    program: str
    board: str
    console: str
    tcg_cpu: str
    kvm_cpu: str


MACHINES = {
    "x86_64": Machine("qemu-system-x86_64", "q35", "ttyS0", "max", "host"),
    # gic-version and the CPU: what both KVM and TCG take
    "aarch64": Machine("qemu-system-aarch64", "virt", "ttyAMA0", "max", "host"),
}


@dataclass(frozen=True)
class Paths:
    """Files by the names that QEMU sees: fixed ones in the sandbox, the host's without."""

    kernel: str
    initrd: str
    image: str
    system: str
    data: str
    meta: str


SANDBOX_PATHS = Paths(
    kernel="/vm/image/kernel",
    initrd="/vm/image/initrd",
    image="/vm/image/root.qcow2",
    system="/vm/disks/system.qcow2",
    data="/vm/disks/data.qcow2",
    meta="/vm/meta.tar",
)


@dataclass(frozen=True)
class Launch:
    """One start of one VM."""

    machine: str
    program: str
    name: str
    cpus: int
    memory_mib: int
    accel: str
    paths: Paths
    cmdline: str
    exports: tuple[Export, ...]
    qmp_fd: int
    sandboxed: bool
    share_fds: tuple[tuple[str, int], ...] = ()
    """Exports that go by virtiofs: their tags, and sockets that lead to their virtiofsd."""
    net_fd: int = -1
    console_fd: int = -1
    console_log: str = ""
    ssh_port: int = 0
    extra: tuple[str, ...] = ()


def option(text: str) -> str:
    """A value for QEMU's older option syntax: commas are doubled."""
    return text.replace(",", ",,")


def _machine(launch: Launch) -> list[str]:
    machine = MACHINES[launch.machine]
    kvm = launch.accel == "kvm"
    accel = "kvm" if kvm else "tcg,thread=multi"
    board, memory = machine.board, []
    if launch.share_fds:
        # virtiofsd reads and writes the guest's memory itself
        board += ",memory-backend=memory"
        backend = {"qom-type": "memory-backend-memfd", "id": "memory", "share": True}
        memory = ["-object", json.dumps({**backend, "size": launch.memory_mib << 20})]
    return [
        *("-name", f"guest={launch.name}", "-nodefaults", "-no-user-config", "-display", "none"),
        *memory,
        *("-machine", board, "-accel", accel),
        *("-cpu", machine.kvm_cpu if kvm else machine.tcg_cpu),
        *("-smp", str(launch.cpus), "-m", f"{launch.memory_mib}M"),
        *("-rtc", "base=utc,clock=host"),
    ]


def _kernel(launch: Launch) -> list[str]:
    console = MACHINES[launch.machine].console
    words = [f"root=/dev/vda vmoat.data=/dev/vdb console={console} panic=1"]
    words += [word for word in launch.cmdline.split() if not word.startswith("console=")]
    return [
        *("-kernel", launch.paths.kernel, "-initrd", launch.paths.initrd),
        *("-append", " ".join(words)),
        *("-fw_cfg", f"name=opt/vmoat/meta,file={option(launch.paths.meta)}"),
    ]


def _disk(node: str, path: str, backing: str = "") -> list[str]:
    file = {"driver": "file", "filename": path, "discard": "unmap"}
    disk: dict[str, object] = {
        "driver": "qcow2",
        "node-name": node,
        "file": file,
        "discard": "unmap",
        "detect-zeroes": "unmap",
    }
    if backing:
        # named again, for the path in the overlay's header is the host's
        base = {"driver": "file", "filename": backing, "read-only": True}
        disk["backing"] = {"driver": "qcow2", "read-only": True, "file": base}
    device = {"driver": "virtio-blk-pci", "drive": node, "id": f"{node}-disk"}
    device |= {"werror": "stop", "rerror": "report"}
    return ["-blockdev", json.dumps(disk), "-device", json.dumps(device)]


def _network(launch: Launch) -> list[str]:
    if launch.net_fd >= 0:
        address = {"type": "fd", "str": str(launch.net_fd)}
        net = json.dumps({"type": "stream", "id": "net", "server": False, "addr": address})
        mtu: dict[str, object] = {"host_mtu": MTU}
    else:
        forward = [{"str": f"tcp:127.0.0.1:{launch.ssh_port}-:22"}]
        net = json.dumps({"type": "user", "id": "net", "hostfwd": forward})
        mtu = {}
    device = {
        "driver": "virtio-net-pci",
        "netdev": "net",
        "mac": netguard.GUEST_MAC,
        "romfile": "",
        **mtu,
    }
    return ["-netdev", net, "-device", json.dumps(device)]


def _devices(launch: Launch) -> list[str]:
    console = (
        f"socket,id=console,fd={launch.console_fd}"
        if launch.console_fd >= 0
        else f"file,id=console,path={option(launch.console_log)}"
    )
    balloon = {"driver": "virtio-balloon-pci", "id": "balloon", "free-page-reporting": True}
    words = ["-device", "virtio-rng-pci", "-device", json.dumps(balloon)]
    if launch.machine == "x86_64":
        words += ["-device", "vmgenid,guid=auto"]
    return [
        *words,
        *("-chardev", console, "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,fd={launch.qmp_fd},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
    ]


def _vhost_share(tag: str, fd: int) -> list[str]:
    device = {"driver": "vhost-user-fs-pci", "chardev": f"{tag}-socket", "tag": tag}
    return [
        *("-chardev", f"socket,id={tag}-socket,fd={fd}"),
        *("-device", json.dumps({**device, "queue-size": 1024})),
    ]


def _share(export: Export, sandboxed: bool) -> list[str]:
    path = export.inside if sandboxed else option(export.source)
    fsdev = f"local,id={export.tag},path={path},security_model=none,multidevs=remap"
    if not export.writable:
        fsdev += ",readonly=on"
    device = {"driver": "virtio-9p-pci", "fsdev": export.tag, "mount_tag": export.tag}
    return ["-fsdev", fsdev, "-device", json.dumps(device)]


def _confinement(launch: Launch) -> Sequence[str]:
    if not launch.sandboxed:
        return ()
    options = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    return ("-sandbox", options)


def qemu_argv(launch: Launch) -> list[str]:
    """The whole command, program first."""
    words = [launch.program, *_machine(launch), *_kernel(launch)]
    words += _disk("system", launch.paths.system, launch.paths.image)
    words += _disk("data", launch.paths.data)
    words += _network(launch)
    words += _devices(launch)
    by_socket = dict(launch.share_fds)
    for export in launch.exports:
        if export.tag in by_socket:
            words += _vhost_share(export.tag, by_socket[export.tag])
        else:
            words += _share(export, launch.sandboxed)
    return [*words, *_confinement(launch), *launch.extra]
