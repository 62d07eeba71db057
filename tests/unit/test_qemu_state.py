"""Processes, disks, KVM's verdict and QEMU's word: what ``status`` tells, without a VM."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ports import free_port

from vmoat import paths
from vmoat.drivers.qemu import accel, checks, disks, host, look, network, process, qmp, record
from vmoat.errors import VmoatError

NAME, VM_ID = "wt-a", "0123456789abcdef"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # sockets: pytest's own path is too long
        for kind in ("STATE", "DATA", "CONFIG"):
            monkeypatch.setenv(f"XDG_{kind}_HOME", f"{short}/{kind[0]}")
        yield tmp_path


# --- processes


def test_a_process_is_known_by_pid_and_start_time() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    one = process.Process.of("qemu", child.pid)
    assert one.alive()
    assert not process.Process("qemu", child.pid, one.started + 1).alive(), "a recycled pid"
    process.end([one])
    assert not one.alive()
    assert child.stdin
    child.stdin.close()
    child.wait()


def test_one_that_ignores_termination_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TERMINATE_SECONDS", 0.5)
    code = "import signal,time;signal.signal(15,signal.SIG_IGN);print(1,flush=True);time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.read(1)
        process.end([process.Process.of("x", child.pid)])
        assert process.start_time(child.pid) == 0


def test_a_process_that_ended_and_was_not_waited_for_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    one = process.Process.of("x", child.pid)
    assert process.wait_gone([one], 60)
    child.wait()


# --- status


def make_disk(path: Path, clusters: int = 4, keep: int | None = None) -> None:
    """A qcow2 with an L1 table, one L2 table and ``clusters`` of data."""
    cluster = 1 << 16
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, 1 << 30, 0, 2, 3 * cluster,
                       cluster, 1, 0, 0)  # fmt: skip
    l1 = struct.pack(">QQ", 1 << 63 | 4 * cluster, 0)
    l2 = b"".join(struct.pack(">Q", 1 << 63 | (5 + n) * cluster) for n in range(clusters))
    parts = [head, b"", b"", l1, l2, *[b"x"] * clusters]
    data = b"".join(part.ljust(cluster, b"\0") for part in parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[:keep])


def have_disks() -> Path:
    folder = paths.disks_dir(NAME)
    for name in (disks.SYSTEM, disks.DATA):
        make_disk(folder / name)
    disks.write_record(folder, {"system": "s1", "data": "d1", "image": "i1"})
    return folder


def have_record(**more: object) -> record.Record:
    fields: dict[str, object] = {"vm_id": VM_ID, "phase": "running", "boot": "b1", "ssh_port": 2222,
                                 "host_boot": process.host_boot(), "accel": "tcg"}  # fmt: skip
    found = record.Record(**{**fields, **more})  # type: ignore[arg-type]
    record.write(NAME, found)
    return found


def test_nothing_is_absent_and_disks_alone_are_stopped() -> None:
    assert look.status(NAME).state == "absent"
    have_disks()
    assert look.status(NAME).state == "stopped"
    assert look.status(NAME).disk == "s1"


def test_a_record_is_read_back() -> None:
    before = have_record(processes=[process.Process("qemu", 5, 6)], wanted=["/x"])
    assert record.read(NAME) == before


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"host_boot": "another"}, "the host was restarted"),
        ({"phase": "starting"}, "interrupted"),
        ({}, "killed"),
    ],
)
def test_a_vm_whose_qemu_is_gone_is_broken_and_says_why(
    more: dict[str, object], reason: str
) -> None:
    have_disks()
    have_record(processes=[process.Process("qemu", os.getpid(), 1)], **more)
    status = look.status(NAME)
    assert status.state == "broken"
    assert reason in status.reasons[0]


def test_a_guest_that_powered_itself_off_is_stopped() -> None:
    have_disks()
    have_record()
    (paths.vm_dir(NAME) / "console.log").write_text("[ 9.0] reboot: Power down\n")
    assert look.status(NAME).state == "stopped"


def test_truncated_and_missing_disks_are_told() -> None:
    folder = have_disks()
    have_record(phase="stopped")
    assert look.status(NAME).state == "stopped"
    make_disk(folder / disks.SYSTEM, keep=1000)
    (folder / disks.DATA).unlink()
    status = look.status(NAME)
    assert status.state == "broken"
    assert status.reasons == ("system.qcow2 is truncated", "data.qcow2 is gone")


@pytest.mark.parametrize(
    ("keep", "shallow", "deep"),
    [
        (0, "not a whole", "not a whole"),
        (3 << 16, "truncated", "truncated"),
        (4 << 16, "truncated", "truncated"),
        (7 << 16, "", "truncated"),
        ((8 << 16) + 512, "", ""),
        (None, "", ""),
    ],
)
def test_how_damage_is_found(home: Path, keep: int | None, shallow: str, deep: str) -> None:
    make_disk(home / "d", keep=keep)
    for found, wanted in (
        (disks.damage(home / "d"), shallow),
        (disks.damage(home / "d", deep=True), deep),
    ):
        assert (wanted in found) if wanted else (found == "")


class FakeQemu(threading.Thread):
    """Answers on a QMP socket as QEMU does: greeting, capabilities, events in between."""

    def __init__(self, state: str) -> None:
        super().__init__(daemon=True)
        self.state = state
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(paths.runtime_dir(VM_ID) / "qmp"))
        self.server.listen()
        self.start()

    def end(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.join(60)
        self.server.close()

    def run(self) -> None:
        while True:
            try:
                link, _ = self.server.accept()
            except OSError:
                return
            with link, link.makefile("rw") as file:
                print(json.dumps({"QMP": {"version": {}}}), file=file, flush=True)
                for line in file:
                    command = json.loads(line)["execute"]
                    print(json.dumps({"event": "NIC_RX_FILTER_CHANGED"}), file=file)
                    if command == "refused":
                        answer: dict[str, object] = {"error": {"desc": "not now"}}
                    else:
                        answer = {"return": {"status": self.state}}
                    print(json.dumps(answer), file=file, flush=True)


Running = Callable[..., record.Record]


@pytest.fixture
def running() -> Iterator[Running]:
    """A VM whose processes are this one, and whose QEMU says that it is in a state."""
    fakes: list[FakeQemu] = []

    def start(state: str, **more: object) -> record.Record:
        have_disks()
        me = [process.Process.of(name, os.getpid()) for name in ("passt", "guard", "qemu")]
        fakes.append(FakeQemu(state))
        return have_record(processes=me, **more)

    yield start
    for fake in fakes:
        fake.end()


@pytest.mark.parametrize(
    ("said", "state", "reason"),
    [
        ("running", "running", ""),
        ("io-error", "paused", ""),
        ("paused", "paused", "it was paused"),
        ("internal-error", "broken", "internal-error"),
        ("guest-panicked", "broken", "guest-panicked"),
    ],
)
def test_a_living_vm_is_what_qemu_says(
    running: Running, said: str, state: str, reason: str
) -> None:
    running(said)
    status = look.status(NAME)
    assert status.state == state
    assert reason in " ".join(status.reasons)


def test_commands_at_once_wait_their_turn_at_qemus_socket() -> None:
    """QEMU serves one client, lets one wait, and the kernel refuses the others with EAGAIN."""
    path = paths.runtime_dir(VM_ID) / "qmp"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)
    answers: list[object] = []

    def ask() -> None:
        with qmp.connect(path, 120) as monitor:
            answers.append(monitor.command("query-status"))

    clients = [threading.Thread(target=ask) for _ in range(12)]
    for client in clients:
        client.start()
    time.sleep(0.2)  # all of them have tried
    for _ in clients:
        link, _ = server.accept()
        with link, link.makefile("rw") as file:
            print(json.dumps({"QMP": {}}), file=file, flush=True)
            for _line in file:
                print(json.dumps({"return": "here"}), file=file, flush=True)
    for client in clients:
        client.join(120)
    server.close()
    assert answers == ["here"] * 12


def test_a_qemu_that_a_signal_stopped_is_paused_and_told_at_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = running("running")
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            mine = process.Process.of("qemu", sleeper.pid)
            found.processes = [one for one in found.processes if one.name != "qemu"] + [mine]
            record.write(NAME, found)
            assert look.status(NAME).state == "running"
            sleeper.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
            status = look.status(NAME)
            assert status.state == "paused"
            assert status.reasons == (f"a signal stopped its QEMU (process {sleeper.pid})",)
        finally:
            sleeper.kill()


def test_a_full_host_disk_is_named(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running("io-error")
    monkeypatch.setattr(look, "free_bytes", lambda _: 3 << 20)
    assert look.status(NAME).reasons == ("the host's disk is full (3 MiB free)",)


def test_a_wall_that_is_gone_or_a_dead_guard_breaks_the_vm(running: Running) -> None:
    found = running("running", wanted=["/vm/share/worktree/.git"])
    assert "the wall over /worktree/.git is gone" in look.status(NAME).reasons[0]
    found.wanted = []
    found.processes = [one for one in found.processes if one.name != "guard"]
    record.write(NAME, found)
    status = look.status(NAME)
    assert (status.state, status.reasons) == ("broken", ("its network process `guard` ended",))


def test_a_vm_that_starts_is_not_running_yet(running: Running) -> None:
    running("running", phase="starting")
    assert look.status(NAME).state == "starting"


def test_qemus_refusal_is_an_error_with_its_words(running: Running) -> None:
    running("running")
    with qmp.connect(paths.runtime_dir(VM_ID) / "qmp") as monitor:
        with pytest.raises(VmoatError, match="not now"):
            monitor.command("refused")
        assert monitor.events
    with pytest.raises(VmoatError):
        qmp.connect(Path("/nowhere/qmp"))


# --- KVM, the machine, the host


def test_kvms_verdict_is_remembered_for_this_qemu_only() -> None:
    assert accel.remembered(sys.executable) == ""
    accel.remember(sys.executable, False, "it hangs")
    assert accel.remembered(sys.executable) == "fails"
    assert accel.remembered("/bin/sh") == ""
    accel.remember(sys.executable, True)
    assert accel.remembered(sys.executable) == "works"


def test_missing_programs_are_named_with_the_line_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "vmoat.proc.which", lambda name: None if name in ("passt", "bwrap") else "/x"
    )
    with pytest.raises(VmoatError, match="bwrap, passt") as found:
        checks.check_machine(walls=True)
    assert found.value.code == 4
    assert "sudo apt-get install bubblewrap passt" in found.value.hint
    checks.check_machine(walls=False)


def test_ubuntus_user_namespaces_have_their_own_cure(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knob = home / "knob"
    knob.write_text("1\n")
    monkeypatch.setattr(checks, "APPARMOR_KNOB", knob)
    assert "kernel.apparmor_restrict_unprivileged_userns=0" in checks.userns_cure()


def test_a_port_is_kept_while_it_is_free() -> None:
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert network.free_port(port) in network.PORTS, "no connection of the host's takes it"
    assert network.free_port(port) == port


def test_the_hosts_proxies_and_certificates_are_found(home: Path) -> None:
    assert host.proxies({"HTTPS_PROXY": "http://p", "no_proxy": "x"}) == {
        "https_proxy": "http://p",
        "no_proxy": "x",
    }
    bundle = home / "bundle.pem"
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    bundle.write_text(f"# mine\n{pem}\nrubbish\n")
    assert pem in host.extra_certificates({"SSL_CERT_FILE": str(bundle)})
