"""What the VM can send, and what is dropped on its way."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from vmoat.drivers.qemu import netguard
from vmoat.drivers.qemu.netguard import Denied, refusal, verdict

MACS = b"\x02" * 6 + b"\x04" * 6
SYN, ACK, RST = 0x02, 0x10, 0x04
HOST = [
    (socket.AF_INET, 8, 1, socket.inet_aton("127.0.0.1")),
    (socket.AF_INET, 24, 2, socket.inet_aton("192.0.2.2")),
    (socket.AF_INET, 16, 3, socket.inet_aton("172.17.0.1")),
    (socket.AF_INET6, 64, 2, socket.inet_pton(socket.AF_INET6, "2001:db8::2")),
]
DENIED = netguard.host_denied(HOST, {1: "lo", 2: "eth0", 3: "docker0"})


def ip4(
    target: str, payload: bytes = b"", protocol: int = 6, fragment: int = 0, options: int = 0
) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45 + options, 0, 20 + 4 * options + len(payload), 1, fragment,
                       64, protocol, 0)  # fmt: skip
    addresses = socket.inet_aton(netguard.GUEST) + socket.inet_aton(target)
    return MACS + b"\x08\x00" + head + addresses + b"\x01" * 4 * options + payload


def tcp(flags: int = SYN, port: int = 80) -> bytes:
    return struct.pack(">HHIIBBHHH", 40000, port, 7, 0, 0x50, flags, 1000, 0, 0)


def ip6(target: str) -> bytes:
    head = struct.pack(">IHBB", 6 << 28, 20, 6, 64)
    source = socket.inet_pton(socket.AF_INET6, "fe80::1")
    return MACS + b"\x86\xdd" + head + source + socket.inet_pton(socket.AF_INET6, target) + tcp()


@pytest.mark.parametrize(
    "target",
    [
        *("127.0.0.1", "127.255.1.2", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.1.1"),
        *("224.0.0.1", "239.255.255.250", "255.255.255.255", "240.0.0.1"),
        *("192.0.2.2", "172.17.0.1", "172.17.0.2", "172.17.255.255"),
        *("168.63.129.16", "100.100.100.200", "192.0.0.192", netguard.GATEWAY, netguard.RESOLVER),
    ],
)
def test_the_host_its_bridges_and_metadata_are_out_of_reach(target: str) -> None:
    assert not verdict(ip4(target, tcp()), DENIED)
    assert not verdict(ip4(target, b"\0" * 8, protocol=17), DENIED)
    assert not verdict(ip4(target, b"\0" * 8, protocol=1), DENIED)
    assert not verdict(ip4(target, b"\0" * 8, fragment=0x2000), DENIED), "a first fragment"
    assert not verdict(ip4(target, b"\0" * 8, fragment=100), DENIED), "a later fragment"
    assert not verdict(ip4(target, tcp(), options=3), DENIED), "behind IP options"


@pytest.mark.parametrize("target", ["192.0.2.1", "192.0.2.3", "8.8.8.8", "10.1.2.3", "172.18.0.1"])
def test_the_rest_of_the_network_is_reached(target: str) -> None:
    assert verdict(ip4(target, tcp()), DENIED)


@pytest.mark.parametrize(
    "target",
    [
        *("::1", "::", "::ffff:127.0.0.1", "::ffff:192.0.2.2", "::127.0.0.1", "fe80::1", "ff02::1"),
        *("2001:db8::2", "fd00:ec2::254", "64:ff9b::7f00:1", "2002:7f00:1::1"),
    ],
)
def test_the_same_for_ipv6_whatever_way_it_is_written(target: str) -> None:
    assert not verdict(ip6(target), DENIED)


def test_other_ipv6_addresses_are_reached() -> None:
    assert verdict(ip6("2001:db8::3"), DENIED)


def test_answers_in_ssh_connections_go_back_to_the_gateway_and_nothing_else() -> None:
    assert verdict(ip4(netguard.GATEWAY, tcp(SYN | ACK)), DENIED)
    assert verdict(ip4(netguard.GATEWAY, tcp(ACK)), DENIED)
    assert not verdict(ip4(netguard.GATEWAY, tcp(SYN)), DENIED)
    assert not verdict(ip4(netguard.GATEWAY, tcp(ACK), fragment=100), DENIED)


def test_only_arp_and_ip_are_known() -> None:
    arp = MACS + b"\x08\x06" + bytes(28)
    assert verdict(arp, DENIED)
    assert not verdict(MACS + b"\x81\x00" + bytes(4) + ip4("8.8.8.8", tcp())[12:], DENIED), "VLAN"
    assert not verdict(MACS + b"\x88\xa8" + bytes(60), DENIED)
    assert not verdict(MACS + b"\x00\x20" + bytes(60), DENIED), "a length, not a type"


def test_an_attempt_that_is_refused_is_told_so_at_once() -> None:
    answer = refusal(ip4("127.0.0.1", tcp()))
    assert answer is not None
    assert answer[:12] == MACS[6:] + MACS[:6]
    assert answer[47] == RST | ACK
    assert int.from_bytes(answer[42:46], "big") == 8, "it acknowledges the attempt"
    assert netguard._sum(answer[14:34]) == 0
    pseudo = answer[26:34] + struct.pack(">BBH", 0, 6, 20)
    assert netguard._sum(pseudo + answer[34:54]) == 0
    assert refusal(ip4("127.0.0.1", tcp(ACK))) is None
    assert refusal(ip4("127.0.0.1", b"\0" * 8, protocol=17)) is None


def test_garbage_never_passes_where_it_must_not_nor_raises() -> None:
    dice = random.Random(7)
    starts = [ip4("127.0.0.1", tcp()), ip6("::1"), ip4(netguard.RESOLVER, tcp())]
    for _ in range(20000):
        frame = bytearray(dice.choice(starts))
        for _ in range(dice.randrange(1, 4)):
            frame[dice.randrange(len(frame))] = dice.randrange(256)
        frame = frame[: dice.randrange(len(frame) + 1)]
        data = bytes(frame)
        passed = verdict(data, DENIED)
        refusal(data)
        netguard.dns_question(data)
        if passed and data[12:14] == b"\x08\x00":
            assert data[30] not in (0, 127)
        if passed and data[12:14] == b"\x86\xdd":
            assert data[38:54] != bytes(15) + b"\1"


Wires = tuple[netguard.Guard, socket.socket, socket.socket]


@pytest.fixture
def wires() -> Iterator[Wires]:
    qemu, inside = socket.socketpair()
    passt, outside = socket.socketpair()
    found = netguard.Guard(inside, outside, True)
    found.denied = DENIED
    yield found, qemu, passt
    for one in (qemu, inside, passt, outside):
        one.close()


def wire(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


def test_frames_are_judged_however_the_stream_is_cut(wires: Wires) -> None:
    good, bad = ip4("8.8.8.8", tcp()), ip4("127.0.0.1", tcp(ACK))
    found, *_ = wires
    stream = b"".join(map(wire, [good, bad, good, good, bad]))
    for size in (1, 3, 57, 1000):
        passed, rest = b"", b""
        for at in range(0, len(stream), size):
            part, rest = found.judge(rest + stream[at : at + size])
            passed += part
        assert (passed, rest) == (wire(good) * 3, b"")


def test_a_frame_of_impossible_length_ends_the_network(wires: Wires) -> None:
    found, *_ = wires
    with pytest.raises(ValueError, match="impossible"):
        found.judge((1 << 20).to_bytes(4, "big") + bytes(100))


def test_both_directions_and_the_introduction(wires: Wires) -> None:
    found, qemu, passt = wires

    def pump(work: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):  # the wires end with the test
            work()

    for work in (found.outward, found.inward):
        threading.Thread(target=pump, args=(work,), daemon=True).start()
    passt.settimeout(60)
    qemu.settimeout(60)
    assert passt.recv(200) == netguard.introduction()
    qemu.sendall(wire(ip4("127.0.0.1", tcp())) + wire(ip4("8.8.8.8", tcp())))
    assert passt.recv(200) == wire(ip4("8.8.8.8", tcp()))
    assert qemu.recv(200)[4 + 47] == RST | ACK
    passt.sendall(wire(b"x" * 100))
    assert qemu.recv(200) == wire(b"x" * 100)


# --- names


def question(payload: bytes) -> bytes:
    udp = struct.pack(">HHHH", 5555, 53, 8 + len(payload), 0)
    return ip4(netguard.RESOLVER, udp + payload, protocol=17)


ASK = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\3deb\0\0\1\0\1"


def test_a_question_to_the_resolver_is_taken_out_and_answered_from_its_address() -> None:
    frame = question(ASK)
    assert netguard.dns_question(frame) == ASK
    answer = netguard.dns_frame(frame, ASK)
    assert answer[26:34] == socket.inet_aton(netguard.RESOLVER) + socket.inet_aton(netguard.GUEST)
    assert answer[34:38] == struct.pack(">HH", 53, 5555)
    pseudo = answer[26:34] + struct.pack(">BBH", 0, 17, len(answer) - 34)
    assert netguard._sum(pseudo + answer[34:]) == 0


@pytest.mark.parametrize(
    "payload", [b"short", b"\0\7\x84\0" + bytes(20), b"\0\7\x28\0" + bytes(20)]
)
def test_what_is_no_question_does_not_reach_the_hosts_resolver(payload: bytes) -> None:
    assert netguard.dns_question(question(payload)) is None


def test_a_resolver_on_loopback_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    answers: list[bytes] = []
    done = threading.Event()
    file = tmp_path / "resolv.conf"
    file.write_text("search x\nnameserver 127.0.0.53\nnameserver ::1\n")
    monkeypatch.setattr(netguard, "_RESOLV_CONF", str(file))
    asked: list[tuple[int, str]] = []

    def resolve(family: int, address: str, message: bytes) -> bytes:
        asked.append((family, address))
        if len(asked) == 1:
            raise OSError("it is down")
        return message + b"answer"

    monkeypatch.setattr(netguard.Names, "resolve", staticmethod(resolve))
    netguard.Names().ask(question(ASK), ASK, lambda frame: (answers.append(frame), done.set()))  # type: ignore[arg-type, func-returns-value]
    assert done.wait(60)
    assert asked == [(socket.AF_INET, "127.0.0.53"), (socket.AF_INET6, "::1")]
    assert answers[0].endswith(b"answer")


# --- the host's addresses, the console


def test_the_kernel_names_the_hosts_addresses() -> None:
    found = netguard.host_addresses()
    assert (socket.AF_INET, 8, 1, socket.inet_aton("127.0.0.1")) in found


def test_half_a_netlink_message_is_no_crash() -> None:
    dice = random.Random(3)
    for _ in range(2000):
        netguard.parse_addresses(dice.randbytes(dice.randrange(80)))


def test_the_console_is_kept_to_a_limit(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import os

    log = os.open(tmp_path / "console.log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    reader, writer = os.pipe()
    thread = threading.Thread(target=netguard.keep_console, args=(reader, log))
    thread.start()
    for number in range(80):
        os.write(writer, b"%04d" % number + b"x" * 60000)
    os.write(writer, b"the end")
    os.close(writer)
    thread.join(20)
    data = (tmp_path / "console.log").read_bytes()
    assert len(data) <= netguard._CONSOLE_LIMIT
    assert data.endswith(b"the end")
    os.close(log)
    os.close(reader)


def test_the_guard_stays_small_and_needs_nothing_of_vmoat() -> None:
    import subprocess
    import sys

    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='x');"
        "print(sorted(n for n in sys.modules if n in "
        "('ssl', 'subprocess', 'asyncio', 'logging', 'ctypes', 'vmoat')))"
    )
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, netguard.__file__],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert out.stdout.strip() == "[]"


def test_denied_remembers_no_more_than_it_should() -> None:
    denied = Denied()
    for number in range(10000):
        denied.has4(number.to_bytes(4, "big"))
    assert len(denied._seen) <= 4097
