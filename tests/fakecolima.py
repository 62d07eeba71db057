"""A `colima` and a `limactl` that run no VM: recorded words, files, processes and failures.

``install(folder)`` writes the programs into a folder for PATH.  They were made after runs of Colima
0.10.3 with Lima 2.2.0 (``golden/colima_start.log``; which files come when, which processes run,
what stays after a stop, a delete, a kill -9).  Time is scaled by ``SPEED``.  The guest is an sshd
of this machine that runs nothing but this file (``ForceCommand``), which answers the driver's own
few questions.

``$FAKE_COLIMA`` is a folder where a test looks and interferes:

- ``ran``       one line for each call
- ``fail``      how the next start ends: ``image`` (before anything is made), ``halfway`` (disk and
                store are there, the VM is not), ``guest`` (it runs, Colima gives up), ``hang``
- ``no-share``  the guest does not see the worktree
- ``version``   what `colima version` says
- ``guest``     what the guest was told: one line for each script, the names of its settings
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from ports import free_port

HERE = Path(__file__).resolve()
LOG = HERE.parent / "golden" / "colima_start.log"
SPEED = 0.0005
"""Seconds for one recorded second: a start takes 0.07 s."""
SSHD = "/usr/sbin/sshd"


def install(folder: Path) -> Path:
    """Write the programs; returns the folder for ``$FAKE_COLIMA``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("colima", "limactl", "lima", "docker"):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {HERE} {name} "$@"\n')
        (folder / name).chmod(0o755)
    scene = folder / "scene"
    scene.mkdir(exist_ok=True)
    return scene


def scene() -> Path:
    return Path(os.environ["FAKE_COLIMA"])


def text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


class Instance:
    """One profile's files."""

    def __init__(self, profile: str) -> None:
        self.ident = "colima" if profile == "default" else f"colima-{profile}"
        self.home = Path(os.environ["COLIMA_HOME"])
        self.lima = Path(os.environ.get("LIMA_HOME") or self.home / "_lima")
        self.folder = self.lima / self.ident
        self.disk = self.lima / "_disks" / self.ident
        self.store = self.home / "_store" / f"{self.ident}.json"
        self.config = self.home / profile
        self.network = self.lima / "_networks" / "user-v2"

    def pid(self, name: str) -> int:
        found = text(self.folder / name)
        if not found.isdigit():
            return 0
        try:
            os.kill(int(found), 0)
        except OSError:
            return 0
        state = Path(f"/proc/{found}/stat").read_text().rpartition(")")[2].split()[0]
        return 0 if state in "ZX" else int(found)

    def running(self) -> bool:
        return bool(self.pid("ha.pid") and self.pid("qemu.pid"))


def say(level: str, message: str, context: str = "") -> None:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    told = json.dumps(message, ensure_ascii=False) if re.search(r"\W", message) else message
    tail = f" context={context}" if context else ""
    print(f'time="{now}" level={level} msg={told}{tail}', file=sys.stderr, flush=True)


def fatal(message: str) -> int:
    say("fatal", message)
    return 1


# --- colima


def option(words: list[str], *names: str, default: str = "") -> str:
    for name in names:
        if name in words:
            return words[words.index(name) + 1]
    return default


def start(words: list[str]) -> int:
    profile = option(words, "-p", default="default")
    mine = Instance(profile)
    unknown = [word for word in words if word.startswith("--no-such")]
    if unknown:
        print(f"Error: unknown flag: {unknown[0]}", file=sys.stderr)
        return 1
    (mine.config).mkdir(parents=True, exist_ok=True)
    (mine.config / "colima.yaml").write_text("runtime: docker\n")
    if mine.running():
        say("warning", "already running, ignoring")
        return 0
    wish = text(scene() / "fail")
    (scene() / "fail").unlink(missing_ok=True)
    known = mine.folder / "lima.yaml"
    if not known.exists() and mine.folder.exists():
        return fatal("error starting vm: error at 'creating and starting': exit status 1")
    link = mine.disk / "in_use_by"
    if link.is_symlink() and os.readlink(link) != str(mine.folder):
        return fatal("error starting vm: failed to lock disk: in use by instance")
    last = 0.0
    for line in LOG.read_text().splitlines():
        at = re.match(r'time="\d+-\d+-\d+T(\d+):(\d+):(\d+)Z"', line)
        if at:
            now = int(at[1]) * 3600.0 + int(at[2]) * 60 + int(at[3])
            time.sleep(max(0.0, now - (last or now)) * SPEED)
            last = now
        if "unable to validate disk image" in line and wish == "image":
            return fatal(
                "error starting vm: error at 'creating and starting': disk image must be "
                "downloaded from 'https://example.org/image', hash failure: no match"
            )
        if line.endswith('"Terminal is not available, proceeding without opening an editor"'):
            make(mine, words)
            if wish == "halfway":
                return fatal("error starting vm: error at 'creating and starting': exit status 1")
        if "Starting QEMU" in line:
            run(mine)
        print(line.replace("colima-vm", mine.ident), file=sys.stderr, flush=True)
        if "Waiting for the essential requirement 1" in line and wish == "hang":
            time.sleep(600)
        if line.endswith('msg="READY. Run `limactl shell colima-vm` to open the shell."'):
            if wish == "guest":
                say("error", '[hostagent] did not receive an event with the "running" status')
                return fatal("error starting vm: error at 'creating and starting': exit status 1")
            provision(mine)
            shutil.copy(mine.config / "colima.yaml", mine.folder / "colima.yaml")
            mine.store.parent.mkdir(parents=True, exist_ok=True)
            mine.store.write_text('{"disk_formatted": true, "disk_runtime": "docker"}')
    return 0


def make(mine: Instance, words: list[str]) -> None:
    """What a first start makes; a later one writes lima.yaml and ssh.config again."""
    if not (mine.disk / "datadisk").exists():
        mine.disk.mkdir(parents=True, exist_ok=True)
        (mine.disk / "datadisk").write_text(f"empty {option(words, '--disk')}\n")
    (mine.disk / "in_use_by").unlink(missing_ok=True)
    (mine.disk / "in_use_by").symlink_to(mine.folder)
    mine.folder.mkdir(parents=True, exist_ok=True)
    if not (mine.folder / "disk").exists():
        (mine.folder / "disk").write_text("system\n")
        (mine.folder / "lima-version").write_text("2.2.0")
        (mine.folder / "lima-version").chmod(0o444)
    mounts = [words[n + 1] for n, word in enumerate(words) if word == "--mount"]
    rows = "".join(
        f"    - location: {mount.removesuffix(':w')}/\n"
        f"      writable: {str(mount.endswith(':w')).lower()}\n"
        for mount in mounts
    )
    kept = text(mine.folder / "lima.yaml")
    if mounts or not kept:
        (mine.folder / "lima.yaml").write_text(f"vmType: qemu\nmounts:\n{rows}mountType: 9p\n")
    key = mine.lima / "_config" / "user"
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (mine.folder / "serial.log").write_text("a guest boots\n")


def run(mine: Instance) -> None:
    """The processes of a VM: Lima's agent, QEMU, the network daemon; the guest's sshd is QEMU's."""
    port = free_port()
    options = [
        f'IdentityFile "{mine.lima}/_config/user"', "StrictHostKeyChecking no",
        f"User {user()}", "Hostname 127.0.0.1", f"Port {port}",
    ]  # fmt: skip
    rows = "".join(f"  {row}\n" for row in options)
    (mine.folder / "ssh.config").write_text(f"# of Lima\nHost lima-{mine.ident}\n{rows}")
    mine.network.mkdir(parents=True, exist_ok=True)
    spawn(mine, "usernet", mine.network / "usernet_user-v2.pid")
    spawn(mine, "qemu", mine.folder / "qemu.pid", str(port))
    spawn(mine, "hostagent", mine.folder / "ha.pid")


def spawn(mine: Instance, role: str, pidfile: Path, *more: str) -> None:
    words = [sys.executable, str(HERE), role, str(pidfile), str(mine.folder), *more]
    process = subprocess.Popen(
        words, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pidfile.write_text(f"{process.pid}\n")
    process.returncode = 0  # it outlives us


def provision(mine: Instance) -> None:
    """Lima runs override.yaml's scripts in the guest, before Colima starts docker."""
    override = mine.lima / "_config" / "override.yaml"
    if not override.exists():
        return
    for entry in json.loads(override.read_text()).get("provision", []):
        code = guest_script(mine.folder, entry["script"])
        if code == 0 and not (scene() / "quiet-console").exists():
            token = text(mine.folder / "guest-boot")  # what cloud-init prints goes to a console
            line = f"[   65.156263] cloud-init[464]: vmoat-boot: ready {token}\r\n"
            (mine.folder / "serialv.log").write_text(line)


def stop(words: list[str]) -> int:
    mine = Instance(option(words, "-p", default="default"))
    force = "--force" in words
    if not mine.running() and not force:
        say("info", "not running", "vm")
        return 0
    say("info", "stopping ...", "vm")
    if force:
        kill(mine)
        for file in mine.folder.glob("*.pid"):
            file.unlink()
    else:
        os.kill(mine.pid("ha.pid"), signal.SIGINT)
        for _ in range(6000):
            if not mine.pid("ha.pid") and not mine.pid("qemu.pid"):
                break
            time.sleep(0.01)
    (mine.disk / "in_use_by").unlink(missing_ok=True)
    say("info", "done")
    return 0


def kill(mine: Instance) -> None:
    for pid in (mine.pid("qemu.pid"), mine.pid("ha.pid")):
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def delete(words: list[str]) -> int:
    mine = Instance(option(words, "-p", default="default"))
    if mine.folder.exists() and not (mine.folder / "lima.yaml").exists():
        return fatal("error during teardown of vm: exit status 1")  # limactl refuses
    kill(mine)
    shutil.rmtree(mine.folder, ignore_errors=True)
    shutil.rmtree(mine.config, ignore_errors=True)
    if "--data" in words and "true" in text(mine.store):
        shutil.rmtree(mine.disk, ignore_errors=True)
        mine.store.unlink(missing_ok=True)
    say("info", "done")
    return 0


# --- the processes of a VM


def role(name: str, pidfile: Path, folder: Path, port: str = "") -> None:
    ended = []
    signal.signal(signal.SIGINT, lambda *_: ended.append(True))
    child = sshd(folder, int(port)) if name == "qemu" else None
    while not ended:
        time.sleep(0.02)
        if name == "hostagent" and not Path(folder / "qemu.pid").exists():
            break
    if name == "hostagent":
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((folder / "qemu.pid").read_text()), signal.SIGINT)
        for _ in range(6000):
            if not (folder / "qemu.pid").exists():
                break
            time.sleep(0.01)
        network = folder.parent / "_networks" / "user-v2" / "usernet_user-v2.pid"
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(network.read_text()), signal.SIGINT)
    if child:
        child.kill()
    pidfile.unlink(missing_ok=True)


def sshd(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """The guest's sshd.  It dies with its parent: PR_SET_PDEATHSIG."""
    import ctypes

    key = folder / "host_key"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    config = folder / "sshd_config"
    # The environment does not reach a session of sshd's.
    line = f"env FAKE_COLIMA={scene()} {sys.executable} {HERE} guest {folder}"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {key}\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder.parent}/_config/user.pub\nStrictModes no\n"
        f"ForceCommand {line}\nPermitRootLogin yes\n"
    )
    libc = ctypes.CDLL(None)
    return subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=open(folder / "sshd.log", "wb"),
        preexec_fn=lambda: libc.prctl(1, signal.SIGKILL),
    )  # fmt: skip


def guest(folder: Path) -> int:
    """The guest: the driver's own words, and nothing else, are understood."""
    if os.environ.get("SSH_ORIGINAL_COMMAND") != "sudo -n sh -s":
        return 0
    script = sys.stdin.read()
    asked = re.search(r'cat /run/vmoat/boot 2>/dev/null\)" = (\w+) \]', script)
    if asked:
        with open(scene() / "guest", "a") as file:
            file.write("asked\n")
        return 0 if text(folder / "guest-boot") == asked[1] else 1
    if "docker volume ls" in script:
        with open(scene() / "guest", "a") as file:
            file.write("clean\n")
        return 0
    return guest_script(folder, script)


def guest_script(folder: Path, script: str) -> int:
    values = dict(re.findall(r"^(VMOAT_\w+)=(.*)$", script, re.MULTILINE))
    with open(scene() / "guest", "a") as file:
        file.write(f"boot {values.get('VMOAT_TOKEN')} copied={values.get('VMOAT_COPIED')}\n")
    if (scene() / "no-share").exists():
        print("vmoat-boot: the worktree is not shared yet", file=sys.stderr)
        return 1
    (folder / "guest-boot").write_text(values.get("VMOAT_TOKEN", "") + "\n")
    return 0


def user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def main(words: list[str]) -> int:
    name, *rest = words
    if name in ("hostagent", "qemu", "usernet"):
        role(name, Path(rest[0]), Path(rest[1]), *rest[2:])
        return 0
    if name == "guest":
        return guest(Path(rest[0]))
    with open(scene() / "ran", "a") as file:
        file.write(" ".join([name, *rest]) + "\n")
    if name == "limactl":
        print("limactl version 2.2.0")
        return 0
    if name == "docker" or not rest:
        return 0
    if rest[0] == "version":
        print("colima version", text(scene() / "version") or "0.10.3")
        return 0
    return {"start": start, "stop": stop, "delete": delete}[rest[0]](rest[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
