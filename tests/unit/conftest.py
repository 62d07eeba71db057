"""A repository with a linked worktree, and homes of its own, for every test that wants them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import pytest

from vmoat import graph, watch, worker
from vmoat.context import Context, load
from vmoat.state import current_run

ALONE = """\
[watch]
enabled = false
[credentials]
docker = false
[cache]
enabled = false
"""
"""No companion: there is no guest that could be told or ask."""

CONFIG = f"""\
{ALONE}
[up]
command = "echo up"
[test]
command = "echo tests"
[provision]
apt = ["git", "jq"]
script = "echo script"
seed = [".env"]
[health]
url = "http://localhost:8080/"
timeout = 5
[stages.gen]
run = "echo gen"
inputs = ["gen.txt"]
"""


def git(where: Path, *words: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    who = (*who, "-c", "protocol.file.allow=always")
    done = subprocess.run(
        ["git", *who, "-C", where, *words], check=True, capture_output=True, text=True
    )
    return done.stdout


def repository(folder: Path, files: dict[str, str]) -> Path:
    """A repository with these files in its first commit."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    return folder


class World:
    """The worktree ``tree`` of ``repo``, and `vmoat` on a machine without VMs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files = {"vmoat.toml": CONFIG, "gen.txt": "1", "app.py": "1"}
        files[".gitignore"] = ".env\nout\n__pycache__/\n"
        self.repo = repository(root / "repo", files)
        (self.repo / ".env").write_text("SECRET=1\n")
        self.tree = root / "tree"
        git(self.repo, "worktree", "add", "-q", "-b", "work", str(self.tree))

    # what a person does

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, fakes.__file__, *words]

    def vmoat(
        self, *words: str, cwd: Path | None = None, code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*words), cwd=cwd or self.tree, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        return done

    # the machine

    @property
    def place(self) -> Path:
        return fakes.place("wt-tree")

    def ran(self) -> list[str]:
        """What the stages' commands and the driver did, in order."""
        return [e for e in self.events() if e.split()[0] not in fakes.QUIET]

    def events(self) -> list[str]:
        return fakes.text(self.place / "ran").splitlines()

    def set(self, name: str, value: str) -> None:
        """Whole at once: a companion or a worker may be reading it."""
        (self.place / f"{name}.new").write_text(value)
        (self.place / f"{name}.new").replace(self.place / name)

    def hold(self) -> None:
        """No unit of a stage ends until ``go_on``, however long the test takes."""
        self.set("hold", "")

    def go_on(self) -> None:
        (self.place / "hold").unlink(missing_ok=True)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """`vmoat`, not waited for."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        given = {"cwd": self.tree, **pipes, **options}
        return subprocess.Popen(self.argv(*words), text=True, **given)

    # in this process

    def context(self, *, claim: bool = True) -> Context:
        return load(self.tree, claim=claim)

    def fork_worker(self, *targets: str, force: tuple[str, ...] = ()) -> int:
        """The worker's whole run in a process of its own; its pid."""
        ctx = self.context()
        request = worker.Request(
            os.urandom(6).hex(), str(self.tree), str(ctx.instance.folder), watch.last_run(ctx),
            list(targets), list(force),
        )  # fmt: skip
        # A signal that comes at once must not reach the tests' own code in the child.
        early = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, early)
            return pid
        code = 99
        try:
            os.setsid()
            signal.pthread_sigmask(signal.SIG_SETMASK, early)
            code = worker.main([request.dumps()])
        finally:
            os._exit(code)

    def work(self, *targets: str, force: tuple[str, ...] = ()) -> int:
        """Run the worker to its end; its exit code, 137 where it was killed."""
        return self.join(self.fork_worker(*targets, force=force))

    def join(self, pid: int, limit: float = 60) -> int:
        """Wait for a forked worker."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            time.sleep(0.01)
        os.kill(pid, 9)
        raise AssertionError("the worker did not end")

    def reasons(self) -> dict[str, str]:
        """What a run would do, and why."""
        return {s.name: s.reason for s in graph.plan(self.context(claim=False)) if s.reason}

    def last_end(self) -> dict[str, object]:
        log = current_run(self.context().instance.folder)
        assert log is not None
        return next(e for e in log.events() if e["event"] == "run_end")


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State, data and config folders of this test alone."""
    for kind in ("STATE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    for name in [n for n in os.environ if n.startswith("VMOAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path


@pytest.fixture
def world(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """See ``World``; the fakes are installed in this process too."""
    fakes.install(lambda *words: monkeypatch.setattr(*words))
    yield World(homes)
    for held in fakes.place("x").parent.glob("*/hold"):
        held.unlink()
