"""What is no day's business, each once on a real VM: nested worktrees, Ctrl-C, sleep, no walls."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest
from lab import Lab, Vm, add_worktree, git, told, wait_until
from ports import free_port

from vmoat.drivers.qemu import qmp

pytestmark = pytest.mark.vm


def test_ctrl_c_on_a_terminal_stops_the_stage_at_once(second: Vm) -> None:
    """Exit code 130, nothing left in the VM, and the next `up` goes on from there."""
    mark = second.worktree / "build" / "at-it"
    mark.unlink(missing_ok=True)
    env = {"VMOAT_PROVISION_SCRIPT": "touch build/at-it; exec sleep 4242"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *second.home.argv(("up", "script"))], stdin=theirs,
        stdout=theirs, stderr=theirs, cwd=second.worktree,
        env=second.home.env({**second.env, **env, "TERM": "xterm"}),
    )  # fmt: skip
    os.close(theirs)
    wait_until(mark.exists, 60)
    began = time.monotonic()
    os.write(ours, b"\x03")
    while process.poll() is None and time.monotonic() - began < 60:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                os.read(ours, 65536)
            except OSError:
                break
    assert process.wait(60) == 130
    assert time.monotonic() - began < 60
    os.close(ours)
    assert second.sh("pgrep -f '[s]leep 4242'")[0] == 1
    assert "cancelled" in second.plan(env=env)["script"]
    second.up()


def test_a_nested_worktree_is_hidden_and_may_go(second: Vm) -> None:
    """A new one is walled off by a restart; one that is removed costs nothing."""
    inner = add_worktree(second.main, second.worktree / "build" / "inner", "inner")
    (inner / "secret").write_text("of another worktree")
    assert "another worktree was made inside" in second.plan()["vm"]
    second.up("vm")
    code, out = second.root_sh("ls -A build/inner; cat build/inner/secret; touch build/inner/x")
    assert code != 0
    assert "of another worktree" not in out
    assert (inner / "secret").exists()
    git(second.main, "worktree", "remove", "--force", str(inner))
    assert second.status()["state"] == "running"
    assert second.ok("echo well") == "well"
    assert "vm" not in second.plan()


def test_another_vm_is_out_of_reach(golden: Vm, second: Vm) -> None:
    """Its ssh port and its tunnel are on the host's loopback, which no address leads to."""
    second.up()
    port = free_port()
    assert second.cli("tunnel", f"8080:{port}").stdout == f"http://localhost:{port}\n"
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    script = "".join(
        # By what answers: some networks complete connections to addresses that nobody has.
        f"timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{number}; "
        "echo -e \"GET / HTTP/1.0\\n\" >&3; timeout 2 cat <&3' 2>/dev/null &\n"
        for number in (port, second.ssh_port())
        for address in ("10.0.2.2", "10.0.2.1", "127.0.0.1", *own)
        if ":" not in address
    )
    script += "wait"
    marks = (second.ok("cat index.html"), "SSH-2.0-")
    here = subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout
    assert all(mark in here for mark in marks), "the script finds them where they can be reached"
    said = golden.root_sh(script)[1]
    assert not [mark for mark in marks if mark in said]
    second.cli("untunnel")


def test_the_clock_is_right_after_the_vm_stood_still(vm: Vm) -> None:
    """As after the host slept."""
    for command in ("stop", "cont"):
        with qmp.connect(vm.runtime() / "qmp") as monitor:
            monitor.command(command)
        time.sleep(8 if command == "stop" else 0)
    assert vm.clock_error() < 3
    assert vm.cli("status").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide a program from one process")
def test_without_bubblewrap_nothing_starts_and_the_cure_is_told(lab: Lab, repository: Path) -> None:
    vm = lab.vm(add_worktree(repository, lab.folder / "wt" / "bare", "no-walls"), repository)
    hide = 'mount --bind /dev/null "$(command -v bwrap)" && exec "$@"'
    hidden = ["unshare", "--mount", "sh", "-c", hide, "sh"]
    done = subprocess.run(
        [*hidden, *vm.home.argv(("up",))], cwd=vm.worktree, env=vm.home.env(),
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 4, told(done)
    assert "bwrap" in done.stderr
    assert "bubblewrap" in done.stderr
    assert vm.status()["state"] == "absent"
