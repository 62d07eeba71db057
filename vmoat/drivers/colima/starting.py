"""Starting a VM: a first start, one after a crash, one that a killed worker left under way."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from vmoat import netports, paths, proc
from vmoat.drivers import Say, VmSpec
from vmoat.drivers.colima import (
    argv,
    ending,
    equip,
    guestlink,
    homes,
    layers,
    look,
    machine,
    pids,
    record,
    walled,
    words,
)
from vmoat.drivers.colima.argv import Host
from vmoat.drivers.colima.homes import Place
from vmoat.drivers.colima.walls import told, wsl_warnings
from vmoat.drivers.qemu import accel
from vmoat.errors import Code, VmoatError
from vmoat.state import write_atomically

START_SECONDS = 2700.0
"""For `colima start`: a disk image of hundreds of MB may come first, emulation takes minutes."""
POLL = 0.2
BANNER_SECONDS = 60.0
SSHFS = (
    "sshfs: root in the VM reaches every file that you do on this machine; 9p or virtiofs "
    "(vm.mount_type) let it see the shared folders alone"
)


def create(spec: VmSpec, say: Say) -> None:
    """See ``Driver.create``: the home, and a data disk that begins as another VM's."""
    place = homes.place_of(spec.name)
    known = record.read(spec.name)
    if known and known.home and (place.instance / "lima.yaml").is_file():
        return
    if place.adopted:
        say(f"taking over the VM {place.profile} in {place.home}")
    else:
        argv.mounts(spec)  # raises before anything is made
        paths.make_private(place.home)
        place.state.write_bytes(os.fsencode(paths.state_home()))
        for folder in (place.override.parent, place.docker, place.temporary, place.store.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = known or record.Record(spec.vm_id)
    known.home, known.profile, known.adopted = str(place.home), place.profile, place.adopted
    known.common_dir = str(spec.common_dir)
    known.data_id = known.data_id or secrets.token_hex(8)
    record.write(spec.name, known)
    if spec.layers and not place.adopted and not place.data_disk.exists():
        layers.begin(spec, place, say)


def start(spec: VmSpec, say: Say) -> None:
    """See ``Driver.start``."""
    host = machine.host()
    status = look.status(spec.name)
    known = _known(spec)
    place = homes.place_of(spec.name)
    if status.state == "starting":
        say("`colima start` is under way already")
        _wait(spec.name, known, say)
        status = look.status(spec.name)
    if status.state == "running":
        fresh = not known.spec_digest or place.adopted
        if fresh or known.spec_digest == spec.digest():
            _prepare(spec, place, host, say)
            return
        say("the VM is restarted: it is to have other mounts or another size")
        ending.stop(spec.name)
    if status.state == "broken":
        _repair(spec, place, status.reasons, say)
    create(spec, say)
    _start(spec, place, host, say)
    _prepare(spec, homes.place_of(spec.name), host, say)


def _known(spec: VmSpec) -> record.Record:
    known = record.read(spec.name)
    if known is None:
        create(spec, lambda line: None)
        known = record.read(spec.name)
    assert known is not None
    return known


def _repair(spec: VmSpec, place: Place, reasons: tuple[str, ...], say: Say) -> None:
    """Make a VM that is broken one that can be started."""
    say(f"the VM is repaired: {'; '.join(reasons)}")
    ending.end_everything(place)
    if place.instance.is_dir() and not (place.instance / "lima.yaml").is_file():
        # limactl refuses to delete such a folder (pkg/store/instance.go: Inspect)
        ending.remove(place.instance)
    if not place.data_disk.exists() and place.instance.is_dir():
        # the VM would come up without it, Docker's data on the system disk
        raise VmoatError(
            "the VM's data disk is gone",
            hint="`vmoat destroy`, then `vmoat up`, makes the VM anew",
            code=Code.VM,
        )
    if not place.instance.is_dir() and not place.adopted:
        # of a first start that failed: the disk may be half formatted (cmd/delete leaves it)
        ending.remove(place.data_folder)
        place.store.unlink(missing_ok=True)


def _start(spec: VmSpec, place: Place, host: Host, say: Say) -> None:
    known = _known(spec)
    if not place.adopted and argv.emulated(host):
        say(accel.COST)
    if argv.mount_type(spec, host) == "sshfs" and not place.adopted:
        say(SSHFS)
    if host.wsl:
        for text, cure in wsl_warnings(str(spec.worktree), kvm=host.kvm):
            say(f"{text}: {cure}")
    ending.unlock(place)
    if not (place.instance / "lima.yaml").exists():
        look.known_hosts(spec.name).unlink(missing_ok=True)  # another disk, another host key
    token = secrets.token_hex(8)
    behind = walled.wanted(spec, place, host)
    if not place.adopted:
        layers.grow(spec, place, known)
        script = equip.script(
            _boot(spec, place, known, token, behind), guestlink.given(spec, place)
        )
        write_atomically(place.override, argv.override(spec, host, script).encode())
    known.phase, known.token, known.agent, known.clean = "starting", token, "", False
    known.spec_digest, known.disk_gib = spec.digest(), max(spec.disk_gib, known.disk_gib)
    known.mount = argv.mount_type(spec, host) if not place.adopted else known.mount
    known.accel = "" if host.mac else "tcg" if argv.emulated(host) else "kvm"
    known.walled = behind
    if behind:
        walled.install(spec, place, host)
    log = paths.vm_dir(spec.name) / words.LOG
    with _alone(spec, place, host, say):
        with open(log, "wb") as file:
            process = proc.spawn(
                argv.start(spec, place, host),
                env=argv.environment(place, host, walled=behind),
                cwd="/",
                stdout=file,
                stderr=file,
            )
        known.starter = look.told(pids.look(process.pid, ""))
        record.write(spec.name, known)
        try:
            code = _wait(spec.name, known, say, process)
        except BaseException as error:
            if not isinstance(error, Exception):  # cancelled: nothing goes on unseen
                ending.end_starter(known)
                ending.end_everything(place)
            raise
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
    if code != 0:
        raise _failed(spec.name, log, host)


def _boot(spec: VmSpec, place: Place, known: record.Record, token: str, behind: bool) -> equip.Boot:
    copied = layers.copied(place)
    return equip.Boot(spec, place, os.getuid(), token, known.data_id, copied, behind)


def _wait(
    name: str,
    known: record.Record,
    say: Say,
    starter: subprocess.Popen[bytes] | None = None,
) -> int:
    """Follow `colima start` to its end, with its words; its exit code, as far as it is known.

    ``starter`` is the process where it is this one's child.
    Raises TIMEOUT, and ends it, after ``START_SECONDS``.
    """
    log = paths.vm_dir(name) / words.LOG
    deadline = time.monotonic() + START_SECONDS
    said = 0
    while True:
        over = starter.poll() is not None if starter else not look.starting(known)
        lines = words.text(log).splitlines(keepends=True)
        whole = lines if over else [line for line in lines if line.endswith("\n")]
        for line in whole[said:]:
            if text := words.told(line.rstrip()):
                say(text)
        said = max(said, len(whole))
        if over:
            break
        if time.monotonic() > deadline:
            ending.end_starter(known)
            raise VmoatError(
                f"`colima start` did not end within {START_SECONDS / 60:g} minutes",
                hint=f"its words are in {log}; `vmoat logs --console` shows the guest",
                code=Code.TIMEOUT,
                details=words.last_words(words.text(log)),
            )
        time.sleep(POLL)
    known.starter = ""
    record.write(name, known)
    return starter.returncode if starter else (0 if look.finished(name) else 1)


def _failed(name: str, log: Path, host: Host) -> VmoatError:
    said = words.text(log)
    cure = words.cure(said)
    if host.kvm and "software emulation" in cure:
        program = proc.which(f"qemu-system-{host.machine}")
        if program:
            accel.remember(program, False, " ".join(words.last_words(said, 2)))
    return VmoatError(
        "`colima start` failed",
        hint=(f"{cure}; " if cure else "") + f"all it said is in {log}; `vmoat up` tries again",
        code=Code.VM,
        details=words.last_words(said),
    )


def _prepare(spec: VmSpec, place: Place, host: Host, say: Say) -> None:
    """The guest answers, is who it was, and has what vmoat needs."""
    known = _known(spec)
    end = look.endpoint(spec.name)
    if not netports.banner(end.host, end.port, BANNER_SECONDS):
        raise VmoatError(
            f"the VM's ssh did not answer within {BANNER_SECONDS:g} s",
            hint="`vmoat logs --console` shows how far it came",
            code=Code.VM,
        )
    first = guestlink.pin(spec.name, end)
    agent = look.told(look.agent(place))
    if known.agent not in ("", agent):
        known.token = secrets.token_hex(8)  # somebody else started it
    known.token = known.token or secrets.token_hex(8)
    boot = _boot(spec, place, known, known.token, known.walled)
    # a login for nothing would cost a first `up` a second
    if not first or not look.said_ready(place, known.token):
        guestlink.equip(end, boot, guestlink.given(spec, place))
    if layers.copied(place):
        say("removing the other VM's containers and volumes; its images stay")
        guestlink.as_root(end, equip.clean_script(boot), timeout=300)
        layers.done(place)
    if place.adopted and not known.mount:
        known.mount = guestlink.share_kind(end, spec)
    known.agent, known.phase = agent, "running"
    known.spec_digest = spec.digest()
    record.write(spec.name, known)
    _tell_walls(spec, place, known, say)


def _tell_walls(spec: VmSpec, place: Place, known: record.Record, say: Say) -> None:
    """Once for each VM: what it reaches all the same."""
    if known.told:
        return
    for line in told(adopted=place.adopted, walled=known.walled):
        say(line)
    known.told = True
    record.write(spec.name, known)


@contextlib.contextmanager
def _alone(spec: VmSpec, place: Place, host: Host, say: Say) -> Iterator[None]:
    """One start at a time, where two would disturb each other: in the user's own home (``homes``),
    and while Colima fetches its disk image, for two would write one file
    (util/downloader/download.go).  None is fetched where one is named or kept.
    """
    if place.adopted:
        with homes.locked(place, say):
            yield
        return
    if "--disk-image" in spec.start_args or "-i" in spec.start_args or _image_kept(host):
        yield
        return
    with homes.lock(place.home.parent / ".download.lock", say):
        yield


def _image_kept(host: Host) -> bool:
    """Whether Colima has a disk image already (config/files.go: CacheDir)."""
    cache = os.environ.get("COLIMA_CACHE_HOME", "")
    if not cache:
        base = os.environ.get("XDG_CACHE_HOME", "")
        plain = "~/Library/Caches" if host.mac else "~/.cache"
        cache = os.path.join(base or os.path.expanduser(plain), "colima")
    kept = Path(cache, "caches").glob("*")
    return any(not file.name.endswith(".downloading") for file in kept)
