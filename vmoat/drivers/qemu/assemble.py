"""Putting one VM together: its share plan, what the guest is told, its processes."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vmoat import localfolders, paths, proc
from vmoat.drivers import VmSpec
from vmoat.drivers.qemu import (
    accel,
    argv,
    console,
    disks,
    gitview,
    host,
    launch,
    meta,
    network,
    process,
    record,
    shares,
    virtiofs,
)
from vmoat.drivers.qemu.sandbox import Bind
from vmoat.errors import Code, VmoatError


def program() -> str:
    """This machine's QEMU; raises MISSING for a machine that is not known."""
    machine = argv.MACHINES.get(platform.machine())
    if machine is None:
        raise VmoatError(
            f"the qemu driver does not know this machine ({platform.machine()})",
            hint="use an x86_64 or aarch64 host",
            code=Code.MISSING,
        )
    return proc.which(machine.program) or machine.program


def start_processes(spec: VmSpec, image: Path, kind: str, mount: str) -> record.Record:
    """Start every process of the VM; each is on record as soon as it runs.

    ``image``: the golden image's folder; ``kind``: ``kvm`` or ``tcg``; ``mount``: ``9p`` or
    ``virtiofs``.
    """
    state = paths.make_private(paths.vm_dir(spec.name))
    entry = _new_record(spec, kind, mount)

    def add(one: process.Process) -> None:
        entry.processes.append(one)
        record.write(spec.name, entry)

    who = launch.who(spec.owner.uid, spec.owner.gid)
    log = state / "qemu.log"
    _rotate(log)
    plan, inside_git = _plan(spec, state)
    if mount == "virtiofs" and not virtiofs.remembered():
        _add_check(spec, plan, state)
    _write_meta(spec, entry, plan, inside_git, state)
    lend(paths.disks_dir(spec.name), spec)
    with contextlib.ExitStack() as open_sockets:
        server = open_sockets.enter_context(launch.listen(paths.runtime_dir(spec.vm_id) / "qmp"))
        job = _job(spec, entry, image, plan, server.fileno())
        if not spec.walls:
            pid = _plain(argv.qemu_argv(job), [server.fileno()], who, log)
            add(process.Process.of("qemu", pid))
            return entry
        wires = launch.start_network(
            add,
            ssh_port=entry.ssh_port,
            run_as=who.network,
            open_network=spec.network_open,
            console_log=console.log(spec.name),
            log=log,
        )
        open_sockets.enter_context(wires.net)
        open_sockets.enter_context(wires.console)
        entry.wanted, entry.hidden = plan.wanted, plan.hidden
        shared = virtiofs.served(plan.exports) if mount == "virtiofs" else []
        sockets = {
            export.tag: open_sockets.enter_context(_serve(export, spec, plan, who, log, add))
            for export in shared
        }
        job = replace(
            job,
            net_fd=wires.net.fileno(),
            console_fd=wires.console.fileno(),
            share_fds=tuple((tag, one.fileno()) for tag, one in sockets.items()),
        )
        pid = launch.sandboxed(
            argv.qemu_argv(job),
            _binds(spec, image, _without(plan, shared), kind),
            who.sandbox,
            keep=[job.qmp_fd, job.net_fd, job.console_fd, *(fd for _, fd in job.share_fds)],
            log=log,
        )
        add(process.Process.of("qemu", pid))
    return entry


def _add_check(spec: VmSpec, plan: shares.Plan, state: Path) -> None:
    """An empty folder on which the guest tries a virtiofsd that none has tried yet."""
    folder = state / "check"
    disks.discard(folder)
    paths.make_private(folder)
    lend(folder, spec)
    export = replace(virtiofs.CHECK, source=str(folder))
    plan.exports.append(export)
    plan.binds.append(Bind(str(folder), export.inside, writable=True))


def _below(bind: Bind, export: shares.Export) -> bool:
    return Path(bind.target).is_relative_to(export.inside)


def _without(plan: shares.Plan, shared: Sequence[shares.Export]) -> shares.Plan:
    """The plan as QEMU sees it: what a virtiofsd serves is no business of its."""
    mine = [b for b in plan.binds if not any(_below(b, export) for export in shared)]
    return replace(plan, binds=mine)


def _serve(
    export: shares.Export,
    spec: VmSpec,
    plan: shares.Plan,
    who: launch.Who,
    log: Path,
    add: Callable[[process.Process], None],
) -> socket.socket:
    """Start the virtiofsd of one export; returns the socket that leads to it, for QEMU."""
    place = paths.runtime_dir(spec.vm_id) / f"fs-{export.tag}"
    binds = [bind for bind in plan.binds if _below(bind, export)]
    client = socket.socket(socket.AF_UNIX)
    with launch.listen(place) as server:
        # First: where this process is killed, the other end is gone, and virtiofsd ends with it.
        client.connect(str(place))
        words = virtiofs.argv(
            virtiofs.program(), export, fd=server.fileno(), uid=spec.owner.uid, gid=spec.owner.gid
        )
        shown = virtiofs.SHOWN_UID if spec.owner.uid == 0 else None
        identity = replace(who.sandbox, shown=shown)
        pid = launch.sandboxed(words, binds, identity, keep=[server.fileno()], log=log)
        add(process.Process.of(record.SHARING + export.tag, pid))
    place.unlink()
    return client


def _new_record(spec: VmSpec, kind: str, mount: str) -> record.Record:
    old = record.read(spec.name)
    entry = record.Record(
        vm_id=spec.vm_id,
        phase="starting",
        boot=secrets.token_hex(8),
        accel=kind,
        mount=mount,
        spec_digest=spec.digest(),
        ssh_port=network.free_port(old.ssh_port if old else 0),
        user=spec.owner.name,
        host_boot=process.host_boot(),
        walls=spec.walls,
    )
    record.write(spec.name, entry)
    return entry


def _job(
    spec: VmSpec, entry: record.Record, image: Path, plan: shares.Plan, qmp_fd: int
) -> argv.Launch:
    return argv.Launch(
        machine=platform.machine(),
        program=program(),
        name=record.mark(spec.vm_id),
        cpus=spec.cpus,
        memory_mib=int(spec.memory_gib * 1024),
        accel=entry.accel,
        paths=argv.SANDBOX_PATHS if spec.walls else _open_paths(spec, image),
        cmdline=(image / "cmdline").read_text(),
        exports=tuple(plan.exports),
        qmp_fd=qmp_fd,
        sandboxed=spec.walls,
        console_log=str(console.log(spec.name)),
        ssh_port=entry.ssh_port,
        extra=spec.extra_args,
    )


def _open_paths(spec: VmSpec, image: Path) -> argv.Paths:
    folder = paths.disks_dir(spec.name)
    return argv.Paths(
        kernel=str(image / "kernel"),
        initrd=str(image / "initrd"),
        image=str(image / "root.qcow2"),
        system=str(folder / disks.SYSTEM),
        data=str(folder / disks.DATA),
        meta=str(paths.vm_dir(spec.name) / "meta.tar"),
    )


def _binds(spec: VmSpec, image: Path, plan: shares.Plan, kind: str) -> list[Bind]:
    """Everything that QEMU sees of this host, besides its own programs."""
    binds = [
        Bind(str(image), "/vm/image"),
        Bind(str(paths.disks_dir(spec.name)), "/vm/disks", writable=True),
        Bind(str(paths.vm_dir(spec.name) / "meta.tar"), "/vm/meta.tar"),
        *plan.binds,
    ]
    if kind == "kvm":
        binds.append(Bind(accel.DEVICE, accel.DEVICE, device=True))
    return binds


def _cache_certificate() -> str:
    """What dockerd trusts for the host's image cache; "" where it is to pull by itself."""
    from vmoat.imagecache import usable_authority

    authority = usable_authority()
    return authority.certificate() if authority else ""


def _write_meta(
    spec: VmSpec,
    entry: record.Record,
    plan: shares.Plan,
    inside_git: list[tuple[str, str]],
    state: Path,
) -> None:
    folder = paths.disks_dir(spec.name)
    ids = disks.read_record(folder)
    keys = paths.make_private(state / "ssh")
    public, host_key, host_public = _keys(keys)
    known = f"vmoat,[127.0.0.1]:{entry.ssh_port} {' '.join(host_public.split()[:2])}\n"
    (keys / "known_hosts").write_text(known)
    view = any(export.tag == "git" for export in plan.exports) and not spec.git_writable
    name, email = host.git_identity(spec.common_dir)
    identity = meta.Identity(
        name=spec.name,
        owner=spec.owner,
        token=entry.boot,
        disk_id=ids.get("system", ""),
        data_id=ids.get("data", ""),
        authorized_key=public,
        host_key=host_key,
        git_name=name,
        git_email=email,
        git_dir=str(spec.git_dir) if view else "",
    )
    mounts = meta.Mounts(
        exports=tuple(plan.exports),
        kind=entry.mount,
        common_dir=str(spec.common_dir) if view else "",
        inside_git=tuple(inside_git),
    )
    files = meta.guest_files(
        identity,
        mounts,
        grow=disks.grow(folder, spec.disk_gib),
        proxies=host.proxies(),
        certificates=host.extra_certificates(),
        cache=_cache_certificate() if spec.image_cache else "",
        local=localfolders.script(
            str(spec.worktree), spec.local, (spec.owner.uid, spec.owner.gid)
        ),
    )
    tar = state / "meta.tar"
    tar.unlink(missing_ok=True)
    tar.touch(0o600)
    tar.write_bytes(meta.tar_bytes(files))
    lend(tar, spec)


def lend(path: Path, spec: VmSpec) -> None:
    """What QEMU must open belongs to the one it runs as (which only root has to arrange)."""
    if os.getuid() != 0:
        return
    todo = [path, *path.iterdir()] if path.is_dir() else [path]
    for one in todo:
        if not one.is_symlink():
            os.chown(one, spec.owner.uid, spec.owner.gid)


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size:
        log.replace(log.with_suffix(".log.1"))


def _keys(folder: Path) -> tuple[str, str, str]:
    """The VM's own key pair and its host key, made once.

    Returns the first's public half, the host key, and its public half.
    """
    for name in ("id_ed25519", "host_ed25519"):
        if not (folder / f"{name}.pub").exists():
            (folder / name).unlink(missing_ok=True)
            proc.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vmoat", "-f", folder / name],
                timeout=60,
                code=Code.VM,
            )
    texts = [(folder / one) for one in ("id_ed25519.pub", "host_ed25519", "host_ed25519.pub")]
    public, host_key, host_public = (one.read_text() for one in texts)
    return public, host_key, host_public


def _plan(spec: VmSpec, state: Path) -> tuple[shares.Plan, list[tuple[str, str]]]:
    if not spec.walls:
        return _open_plan(spec), []
    empty = state / "empty"
    empty.mkdir(exist_ok=True)
    empty.chmod(0o755)
    links = host.gitlinks(spec.git_dir, spec.worktree)
    plan = shares.worktree_plan(spec, empty, links)
    shares.add_shares(spec, plan)
    inside = gitview.add_git(spec, plan, paths.make_private(state / "git"))
    return plan, inside


def _open_plan(spec: VmSpec) -> shares.Plan:
    """Without walls: the folders as they are."""
    plan = shares.Plan()
    top, common = str(spec.worktree), str(spec.common_dir)
    plan.exports.append(shares.Export("worktree", "", top, True, top))
    if not spec.common_dir.is_relative_to(spec.worktree):
        plan.exports.append(shares.Export("gitrw", "", common, True, common))
    shares.add_shares(spec, plan)
    return plan


def _plain(words: Sequence[str], keep: Sequence[int], who: launch.Who, log: Path) -> int:
    """Start QEMU without walls; still as the worktree's owner."""
    if who.sandbox.drop_to is not None:
        uid, gid = who.sandbox.drop_to
        setpriv = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--"]
        words = [*setpriv, *words]
    with open(log, "ab") as errors:
        return proc.spawn(words, cwd="/", stdout=errors, stderr=errors, pass_fds=keep).pid
