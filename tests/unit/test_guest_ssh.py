"""The guest's side of ssh against a real sshd on this machine's loopback, as the current user."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port

from vmoat import netports, proc, ssh
from vmoat.drivers import SshEndpoint
from vmoat.errors import Code, VmoatError
from vmoat.forwards import SOCKS, Record
from vmoat.guest import File, Guest

SSHD = proc.which("sshd")
pytestmark = pytest.mark.skipif(
    SSHD is None or not shutil.which("ssh-keygen"),
    reason="openssh-server is not installed (apt-get install openssh-server)",
)


class Server:
    """sshd in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        for name in ("host", "key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
            )
        public = (folder / "host.pub").read_text().split()
        (folder / "known_hosts").write_text(f"vmoat {public[0]} {public[1]}\n")
        (folder / "authorized").write_text((folder / "key.pub").read_text())
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\n"
            f'HostKey "{folder}/host"\nAuthorizedKeysFile "{folder}/authorized"\n'
            f'PidFile "{folder}/pid"\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd separates its privileges
        self.process = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-f", self.folder / "sshd_config"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def endpoint(self) -> SshEndpoint:
        return SshEndpoint(
            "127.0.0.1", self.port, getpass.getuser(), self.folder / "key",
            self.folder / "known_hosts",
        )  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("sshd"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets, and as awkward as a user's may be."""
    with tempfile.TemporaryDirectory(prefix="vm t %h'\"é", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def guest(server: Server, folder: Path, tmp_path: Path) -> Iterator[Guest]:
    worktree = tmp_path / "it's $HOME 100%"
    worktree.mkdir()
    made = Guest(server.endpoint(), folder, worktree, {"VMOAT_TEST": "a 'b' $c"})
    made.connect(60)
    yield made
    made.close()


def in_process(guest: Guest, *words: str) -> list[str]:
    """A process of its own that runs ``guest.exec``, as the command line does."""
    text = (
        "import sys; from pathlib import Path; from vmoat.guest import Guest\n"
        "from vmoat.drivers import SshEndpoint\nfrom vmoat.errors import VmoatError\n"
        "a = sys.argv[1:]\n"
        "g = Guest(SshEndpoint(a[0], int(a[1]), a[2], Path(a[3]), Path(a[4])), Path(a[5]),"
        " Path(a[6]), {'VMOAT_TEST': a[7]})\n"
        "try: sys.exit(g.exec(a[8:]))\n"
        "except VmoatError as e: print(e, file=sys.stderr); sys.exit(e.code)\n"
    )
    end = guest.endpoint
    return [
        sys.executable, "-c", text, end.host, str(end.port), end.user, str(end.key),
        str(end.known_hosts), str(guest.connection.folder), str(guest.worktree),
        guest.env["VMOAT_TEST"], *words,
    ]  # fmt: skip


def execute(guest: Guest, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        in_process(guest, *words), input=data, capture_output=True, timeout=60, check=False
    )


def test_a_command_answers_over_one_master(guest: Guest) -> None:
    assert guest.connected()
    result = guest.run("printf '\\377\\000x'; echo warn >&2; exit 3", check=False)
    assert (result.rc, result.err) == (3, "warn\n")
    assert result.out.encode(errors="surrogateescape") == b"\xff\0x"


def test_a_failed_command_shows_its_last_lines(guest: Guest) -> None:
    with pytest.raises(VmoatError) as caught:
        guest.run("echo no such thing >&2; exit 4")
    assert caught.value.code == Code.STAGE
    assert caught.value.details == ("no such thing",)


def test_a_script_longer_than_an_argument_may_be(guest: Guest) -> None:
    assert guest.run("# " + "x" * 200_000 + "\necho end").out == "end\n"


def test_a_time_limit_is_kept(guest: Guest) -> None:
    start = time.monotonic()
    with pytest.raises(VmoatError) as caught:
        guest.run("exec sleep 200", timeout=0.5)
    assert time.monotonic() - start < 60
    assert caught.value.code == Code.TIMEOUT


def test_a_stale_socket_is_replaced(guest: Guest) -> None:
    kill_master(guest)
    assert guest.connection.socket().exists()
    assert not guest.connected()
    assert guest.run("echo again").out == "again\n"


def test_a_server_that_comes_up_later_is_waited_for(server: Server, guest: Guest) -> None:
    guest.close()
    server.stop()
    waiter = subprocess.Popen(
        in_process(guest, "echo here"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    time.sleep(0.7)
    server.start()
    assert waiter.communicate(timeout=60)[0] == b"here\n"


def test_a_connection_that_says_nothing_is_not_waited_for() -> None:
    """QEMU's forward accepts before the guest's sshd listens; that connection stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []

        def serve() -> None:
            kept.append(listener.accept()[0])  # the first one: silent for ever
            kept.append(listener.accept()[0])
            kept[1].sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert netports.banner("127.0.0.1", listener.getsockname()[1], 60)
        thread.join()
        for sock in kept:
            sock.close()


def test_a_slow_first_line_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []

        def serve() -> None:
            kept.append(listener.accept()[0])
            time.sleep(2.5)
            kept[0].sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert netports.banner("127.0.0.1", listener.getsockname()[1], 60)
        thread.join()
        kept[0].close()


def test_nobody_there_is_a_time_out(server: Server, folder: Path) -> None:
    end = SshEndpoint("127.0.0.1", free_port(), "me", server.folder / "key", server.folder / "k")
    with pytest.raises(VmoatError) as caught:
        ssh.Connection(end, folder).connect(0.3)
    assert caught.value.code == Code.TIMEOUT


def test_another_host_key_is_refused(server: Server, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "known"
    other.write_text("vmoat " + (server.folder / "key.pub").read_text())
    end = SshEndpoint(
        "127.0.0.1", server.port, getpass.getuser(), server.folder / "key", other
    )  # fmt: skip
    with pytest.raises(VmoatError) as caught:
        ssh.Connection(end, folder).connect(60)
    assert caught.value.code == Code.VM


def test_the_master_holds_nothing_of_its_starter(guest: Guest) -> None:
    guest.close()
    done = execute(guest, "true")  # ends only when both pipes are closed
    assert done.returncode == 0
    assert guest.connected()


@pytest.mark.parametrize("code", [0, 1, 125, 127, 254, 255])
def test_exit_codes_are_exact(guest: Guest, code: int) -> None:
    assert execute(guest, f"exit {code}").returncode == code


def test_a_command_that_a_signal_ended(guest: Guest) -> None:
    assert execute(guest, "sh", "-c", "kill -TERM $$").returncode == 143
    assert execute(guest, "kill -9 $$").returncode == 137


def test_one_word_is_a_line_and_several_are_a_list(guest: Guest) -> None:
    assert execute(guest, 'echo "$VMOAT_TEST" | cat').stdout == b"a 'b' $c\n"
    assert execute(guest, "--", "printf", "%s|", "a b", "$x", "'").stdout == b"a b|$x|'|"


def test_it_runs_in_the_worktree_in_a_login_shell(guest: Guest) -> None:
    done = execute(guest, "pwd; shopt -q login_shell && echo $#")
    assert done.stdout.decode() == f"{guest.worktree}\n0\n"


def test_a_worktree_that_is_not_there_is_125(guest: Guest) -> None:
    guest.worktree.rmdir()
    done = execute(guest, "true")
    assert (done.returncode, b"worktree" in done.stderr) == (125, True)
    guest.worktree.mkdir()


def test_binary_input_passes(guest: Guest) -> None:
    data = os.urandom(200_000)
    assert execute(guest, "cat", data=data).stdout == data


def test_a_lost_connection_is_125(guest: Guest) -> None:
    running = subprocess.Popen(
        in_process(guest, "echo go; sleep 30"), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with running:
        assert running.stdout is not None
        running.stdout.readline()
        guest.close()
        _, err = running.communicate(timeout=60)
    assert running.returncode == Code.BEFORE
    assert b"connection" in err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_reach_the_command(guest: Guest, name: str) -> None:
    line = f"trap 'echo got; exit 42' {name[3:]}; echo go; while :; do sleep 0.1; done"
    with subprocess.Popen(
        in_process(guest, line), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.send_signal(signal.Signals[name])
        assert running.communicate(timeout=60)[0] == b"got\n"
    assert running.returncode == 42


def test_a_killed_vmoat_leaves_no_command_behind(guest: Guest) -> None:
    with subprocess.Popen(
        in_process(guest, "echo $BASHPID; exec sleep 60"), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        remote = int(running.stdout.readline())
        os.killpg(running.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{remote}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{remote}").exists()


def test_forwards_open_and_close_on_loopback_only(guest: Guest) -> None:
    port = free_port()
    guest.forward(guest.endpoint.port, port)
    assert guest.forwards() == {port: guest.endpoint.port}
    assert netports.banner("127.0.0.1", port, 60)
    guest.forward(guest.endpoint.port, port)  # quiet when it stands
    guest.cancel(guest.endpoint.port, port)
    assert guest.forwards() == {}
    assert not netports.banner("127.0.0.1", port, 1)


def through_socks(port: int, target: int) -> bytes:
    """What the target port says first, asked for by name through a SOCKS5 proxy (RFC 1928)."""
    with socket.create_connection(("127.0.0.1", port), 60) as link:
        link.sendall(b"\5\1\0")
        assert link.recv(2) == b"\5\0"
        link.sendall(b"\5\1\0\3\x09localhost" + target.to_bytes(2, "big"))
        assert link.recv(10)[:2] == b"\5\0"
        return link.recv(4)


def test_a_socks_forward_leads_to_every_port_of_the_guest(guest: Guest) -> None:
    """On loopback only, and again with the next master."""
    port = free_port()
    guest.forward(SOCKS, port)
    assert guest.forwards() == {port: SOCKS}
    assert through_socks(port, guest.endpoint.port) == b"SSH-"
    kill_master(guest)
    guest.connect(60)
    assert through_socks(port, guest.endpoint.port) == b"SSH-"
    guest.cancel(SOCKS, port)
    assert guest.forwards() == {}
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 5)


def test_a_busy_port_is_named(guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(VmoatError, match=str(port)) as caught:
            guest.forward(80, port)
    assert caught.value.code == Code.BUSY


def kill_master(guest: Guest) -> None:
    _, said = guest.connection.control("check")
    master = int(said.split("pid=")[1].rstrip(")"))
    os.kill(master, signal.SIGKILL)
    while Path(f"/proc/{master}").exists():
        time.sleep(0.02)


def test_a_forward_comes_back_with_the_next_master(guest: Guest) -> None:
    """Killed, ended, or gone with its folder: what was asked for stays asked for."""
    port = free_port()
    guest.forward(guest.endpoint.port, port)
    kill_master(guest)
    assert guest.forwards() == {}
    assert guest.waiting() == {port: guest.endpoint.port}
    guest.connect(60)
    assert guest.forwards() == {port: guest.endpoint.port}
    assert netports.banner("127.0.0.1", port, 60)
    guest.close()
    assert not netports.banner("127.0.0.1", port, 0.5)
    guest.connect(60)
    assert guest.forwards() == {port: guest.endpoint.port}
    guest.cancel(guest.endpoint.port, port)
    guest.close()
    guest.connect(60)
    assert guest.forwards() == guest.waiting() == {}


def test_a_master_whose_socket_is_gone_lets_go_of_its_ports(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    """The runtime folder was emptied under it: nobody can ask it any more."""
    guest = Guest(server.endpoint(), folder, tmp_path, {}, record=tmp_path / "kept.json")
    guest.connect(60)
    port = free_port()
    guest.forward(guest.endpoint.port, port)
    for file in folder.iterdir():
        file.unlink()
    guest.connect(60)
    try:
        assert guest.forwards() == {port: guest.endpoint.port}
        assert guest.connection.ports.failed == {}
    finally:
        guest.close()


def test_a_forward_whose_port_was_taken_meanwhile_waits(guest: Guest) -> None:
    port = free_port()
    guest.forward(guest.endpoint.port, port)
    guest.close()
    with socket.create_server(("127.0.0.1", port)):
        guest.connect(60)
        assert guest.forwards() == {}
        assert guest.connection.ports.failed == {port: guest.endpoint.port}
    guest.forward(guest.endpoint.port, port)
    assert guest.waiting() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', "null"])
def test_a_damaged_record_of_forwards_counts_as_none(tmp_path: Path, text: str) -> None:
    record = Record(tmp_path / "forwards.json")
    record.file.write_text(text)
    assert record.read() == {}
    with record.change() as table:
        table[8000] = 80
    assert record.read() == {8000: 80}


def test_files_arrive_with_their_modes(guest: Guest, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("put writes as root")
    guest.put([File(f"{tmp_path}/new/a b", b"\0x", 0o600), File(f"{tmp_path}/c", b"y", 0o755)])
    assert (tmp_path / "new/a b").read_bytes() == b"\0x"
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o755


def test_other_programs_use_the_printed_block(guest: Guest, tmp_path: Path) -> None:
    config = tmp_path / "config"
    program = "import socket, sys; from vmoat.sshproxy import carry; " + (
        "carry(socket.create_connection(('127.0.0.1', int(sys.argv[1]))))"
    )
    proxy = [sys.executable, "-c", program, str(guest.endpoint.port)]
    config.write_bytes(os.fsencode(guest.ssh_config_block("wt-x", proxy)))
    for connected in (True, False):  # beside the master, and without one
        if not connected:
            guest.close()
        done = subprocess.run(
            ["ssh", "-F", config, "wt-x", "echo hi"], capture_output=True, timeout=60
        )
        assert done.stdout == b"hi\n", done.stderr
        (tmp_path / "from").write_text("x")
        source, target = tmp_path / "from", f"wt-x:{tmp_path}/to"
        subprocess.run(["scp", "-q", "-O", "-F", config, source, target], timeout=60, check=True)
        assert (tmp_path / "to").read_text() == "x"
        if shutil.which("rsync"):
            subprocess.run(
                ["rsync", "-e", f"ssh -F '{config}'", source, f"{target}2"],
                timeout=60, check=True,
            )  # fmt: skip
