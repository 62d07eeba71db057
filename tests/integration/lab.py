"""What the tests with real VMs stand on: repositories, worktrees, and VMs as their users see them.

Everything goes through the command line, as a process of its own.  State and disks are the test
run's own; only the golden image is the machine's, because a build takes minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PORT = 8080
PAGE = "index.html"
SEED = ".env"

FILES = {
    ".gitignore": ".env\nbuild/\nout/\n",
    ".dockerignore": "*\n!build/busybox\n!index.html\n",
    ".env": "GREETING=from-main\n",
    PAGE: "first version\n",
    "prepare.sh": "echo prepared >>build/prepared\n",
    # Around the guest's static busybox: no image registry is needed.
    "Dockerfile": """\
FROM scratch
STOPSIGNAL SIGKILL
COPY build/busybox /bin/busybox
COPY index.html /www/index.html
CMD ["/bin/busybox", "httpd", "-f", "-v", "-p", "8080", "-h", "/www"]
""",
    "compose.yaml": """\
services:
  web:
    build: .
    ports: ["8080:8080"]
    environment: { GREETING: "${GREETING:?the seed is missing}" }
    volumes: ["./out:/out", "kept:/kept"]
    command: ["/bin/busybox", "sh", "-c",
      "echo started $$GREETING; echo $$GREETING >>/out/started;
       exec /bin/busybox httpd -f -p 8080 -h /www"]
volumes:
  kept:
""",
    "vmoat.toml": """\
[vm]
cpu = 2
memory = 2
disk = 10

[provision]
apt = ["tree", "inotify-tools"]
script = "mkdir -p build && cp /bin/busybox build/busybox && echo provisioned >>build/provisioned"
seed = [".env"]

[stages.prepare]
run = "sh ./prepare.sh"
inputs = ["prepare.sh"]

[health]
url = "http://localhost:8080/"

[test]
command = "printf '<%s>'"
""",
}


def git(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """git in a folder, with nobody's hooks or signing."""
    quiet = ("-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null")
    return subprocess.run(
        ["git", "-C", folder, *quiet, *words],
        check=check, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def make_repository(folder: Path, files: Mapping[str, str] = FILES) -> Path:
    """A repository with one commit; returns its main checkout.  One that is there is kept."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "user.name", "Host User")
    git(folder, "config", "user.email", "host@example.invalid")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "a page")
    return folder


def add_worktree(main: Path, folder: Path, branch: str) -> Path:
    if folder.exists():
        return folder
    git(main, "worktree", "add", "-q", "-b", branch, str(folder))
    return folder


def wait_until(what: Callable[[], Any], limit: float = 60, pause: float = 0.1) -> Any:
    """The first true answer of ``what``; an AssertionError after ``limit`` seconds."""
    deadline = time.monotonic() + limit
    while True:
        answer = what()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {limit:g} s: {what}"
        time.sleep(pause)


def fetch(url: str) -> str:
    """The page at a URL of this machine, past any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as answer:
        return str(answer.read().decode())


@dataclass(frozen=True)
class Home:
    """The folders of one user of vmoat: state, disks, config; the image is the machine's."""

    root: Path
    user: str = ""
    """Whom to run as; "" is whoever runs the tests."""
    python: tuple[str, ...] = (sys.executable, "-P", "-m", "vmoat")
    more_env: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.root / "state" / "vmoat"

    @property
    def data(self) -> Path:
        return self.root / "data" / "vmoat"

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of its commands; none of the caller's own vmoat settings."""
        dropped = ("VMOAT_", "GIT_", "DOCKER_", "COMPOSE_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        for name in ("state", "data", "config"):
            env[f"XDG_{name.upper()}_HOME"] = str(self.root / name)
        docker = self.root / "docker"  # nobody's logins but the tests' own
        docker.mkdir(exist_ok=True)
        env["DOCKER_CONFIG"] = str(docker)
        return {**env, **self.more_env, **(more or {})}

    def argv(self, words: Sequence[str | Path]) -> list[str]:
        become = ()
        if self.user:
            become = ("setpriv", "--reuid", self.user, "--regid", self.user, "--init-groups", "--")
        return [*become, *self.python, *map(str, words)]


@dataclass
class Vm:
    """One worktree and its VM."""

    worktree: Path
    main: Path
    home: Home
    env: dict[str, str] = field(default_factory=dict)
    """Settings of this VM for all of its commands."""

    # --- commands

    def start(self, *words: str, env: Mapping[str, str] | None = None, **kw: Any) -> Any:
        """A vmoat command in the worktree, begun; ``kw`` are Popen's."""
        kw.setdefault("stdin", subprocess.DEVNULL)
        kw.setdefault("stdout", subprocess.PIPE)
        kw.setdefault("stderr", subprocess.PIPE)
        kw.setdefault("cwd", self.worktree)
        return subprocess.Popen(
            self.home.argv(words), env=self.home.env({**self.env, **(env or {})}), text=True, **kw
        )

    def cli(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        timeout: float = 400,
        input: str | None = None,
        **kw: Any,
    ) -> subprocess.CompletedProcess[str]:
        """A vmoat command in the worktree, to its end."""
        if input is not None:
            kw["stdin"] = subprocess.PIPE
        process = self.start(*words, env=env, **kw)
        try:
            out, err = process.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(
                f"`vmoat {' '.join(words)}` did not end within {timeout:g} s\n{out}\n{err}"
            ) from None
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def up(self, *words: str, code: int = 0, **kw: Any) -> str:
        """``vmoat up``, which has to end with ``code``; returns its story."""
        done = self.cli("up", *words, **kw)
        assert done.returncode == code, f"exit {done.returncode}, not {code}\n{told(done)}"
        return done.stderr or ""

    def sh(self, command: str, **kw: Any) -> tuple[int, str]:
        """A shell line in the VM, as its user in the worktree: exit code, both streams."""
        done = self.cli("exec", command, stderr=subprocess.STDOUT, **kw)
        return done.returncode, done.stdout

    def root_sh(self, command: str, **kw: Any) -> tuple[int, str]:
        """The same as the VM's root."""
        done = self.cli(
            "exec", "sudo", "-n", "bash", "-c", command, stderr=subprocess.STDOUT, **kw
        )
        return done.returncode, done.stdout

    def ok(self, command: str, **kw: Any) -> str:
        """A shell line in the VM that has to work; its output without the last line end."""
        code, out = self.sh(command, **kw)
        assert code == 0, f"exit {code}: {command}\n{out}"
        return out.rstrip("\n")

    def clock_error(self) -> float:
        """Seconds that the guest's clock is off, at least: it was read within this call."""
        before = time.time()
        said = float(self.ok("date +%s.%N"))
        return max(before - said, said - time.time(), 0.0)

    def status(self) -> dict[str, Any]:
        done = self.cli("status", "--json", timeout=120)
        assert done.returncode == 0, told(done)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def plan(self, **kw: Any) -> dict[str, str]:
        """Stages that would run, with their reasons."""
        done = self.cli("plan", "--json", timeout=120, **kw)
        assert done.returncode == 0, told(done)
        return {s["stage"]: s["reason"] for s in json.loads(done.stdout)["stages"] if s["runs"]}

    # --- what is on disk

    @property
    def name(self) -> str:
        return self.cli("name", timeout=60).stdout.strip()

    @property
    def folder(self) -> Path:
        return self.home.state / "vms" / self.name

    @property
    def disks(self) -> Path:
        return self.home.data / "disks" / self.vm_id

    @property
    def vm_id(self) -> str:
        return (self.folder / "owner").read_bytes().split(b"\n")[0].decode()

    def events(self) -> list[dict[str, Any]]:
        """Every event of every run, in the order of the runs."""
        logs = sorted((self.folder / "runs").glob("*.ndjson"), key=lambda f: f.stat().st_mtime_ns)
        rows = []
        for log in logs:
            for line in log.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    rows.append(json.loads(line))
        return sorted(rows, key=lambda row: float(row["time"]))

    def ran(self, since: float) -> list[str]:
        """The stages that did some work since a ``time.time()``, in order."""
        return [
            row["stage"]
            for row in self.events()
            if row["event"] == "stage_start" and row["time"] >= since
        ]

    def worker(self, since: float = 0) -> int:
        """The pid of the worker that was started last; 0 where none was since then."""
        pids = [
            row["pid"]
            for row in self.events()
            if row["event"] == "run_start" and row["time"] >= since
        ]
        return int(pids[-1]) if pids else 0

    def processes(self) -> dict[str, int]:
        """Name and pid of the VM's processes as the driver recorded them."""
        try:
            found = tomllib.loads((self.folder / "driver.toml").read_text())
        except OSError:
            return {}
        return {name: pid for name, pid, _ in found.get("processes", [])}

    def ssh_port(self) -> int:
        """The port of the VM's ssh server on the host's loopback."""
        return int(tomllib.loads((self.folder / "driver.toml").read_text())["ssh_port"])

    def masters(self) -> list[int]:
        """Pids of the VM's ssh masters."""
        run = str(self.runtime())
        return [pid for pid, line in command_lines() if line.startswith("ssh ") and run in line]

    def runtime(self) -> Path:
        """The folder of its sockets."""
        vm_id = self.vm_id
        inside = self.home.state / "run" / vm_id[:12]
        if inside.is_dir():
            return inside
        uid = self.worktree.stat().st_uid if self.home.user else os.getuid()
        return Path(f"/tmp/vmoat-{uid}") / vm_id[:12]

    def living(self) -> list[int]:
        """Pids of whatever belongs to this VM, and whatever was left behind."""
        marks = [str(self.folder), str(self.runtime())]
        known = set(self.processes().values())
        found = {pid for pid, line in command_lines() if any(mark in line for mark in marks)}
        return sorted(pid for pid in known | found if alive(pid))


def told(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said, for a failed assertion."""
    return f"$ vmoat {' '.join(map(str, done.args))}\n{done.stdout or ''}\n{done.stderr or ''}"


def command_lines() -> list[tuple[int, str]]:
    """Each process of the machine: pid, the program's own name and its words."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            line = " ".join(word.decode(errors="replace") for word in words)
            found.append((int(entry.name), line.removeprefix("/usr/bin/")))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def kill(*pids: int) -> None:
    """kill -9, and wait until they are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        wait_until(lambda pid=pid: not alive(pid), 15)


class Lab:
    """Makes repositories and VMs, and removes every one of them at the end."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder = folder
        self.images = images
        self.vms: list[Vm] = []
        self.figures: list[tuple[str, float, str]] = []
        self.home = self.make_home(folder / "home")

    def make_home(self, root: Path, **kw: Any) -> Home:
        """Folders of vmoat of their own, with the machine's images."""
        for name in ("state", "data/vmoat", "config"):
            (root / name).mkdir(parents=True, exist_ok=True)
        images = root / "data" / "vmoat" / "images"
        if not images.is_symlink():
            images.symlink_to(self.images)
        return Home(root, **kw)

    def repository(self, name: str, files: Mapping[str, str] = FILES) -> Path:
        return make_repository(self.folder / "src" / name, files)

    def vm(self, worktree: Path, main: Path, home: Home | None = None, **env: str) -> Vm:
        """The VM of a worktree; nothing is started yet."""
        made = Vm(worktree, main, home or self.home, dict(env))
        self.vms.append(made)
        return made

    def destroy(self, vm: Vm) -> None:
        """Remove a VM; whatever it takes."""
        if vm in self.vms:
            self.vms.remove(vm)
        pids = list(vm.processes().values()) if vm.worktree.is_dir() else []
        with contextlib.suppress(AssertionError):
            if vm.worktree.is_dir():
                vm.cli("destroy", "-f", timeout=120)
        kill(*(pid for pid in pids if alive(pid)))

    def close(self) -> None:
        for vm in list(self.vms):
            self.destroy(vm)

    def figure(self, name: str, seconds: float, limit: str) -> None:
        """A figure for the end of the report."""
        self.figures.append((name, seconds, limit))


@contextlib.contextmanager
def at_once(*works: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run each in a thread of its own; the answers are there at the end of the block."""
    answers: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def do(index: int) -> None:
        try:
            answers[index] = works[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=do, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True)
