"""The network's wall: a process between QEMU and passt that drops what the VM may not reach.

passt turns the guest's packets into the host user's own connections and has no list of addresses
to refuse, so without this the guest would reach the host's own addresses, its bridges, and the
cloud's metadata service.  The guest's frames come here first, and those for such addresses are
dropped (a TCP attempt is answered with a reset, so that programs fail at once).  What comes from
the network is only copied.

It runs by its path with a bare interpreter (``python -I -S netguard.py …``), one for every VM, so
it imports little and nothing of vmoat.  Facts: QEMU's ``stream`` netdev sends each frame behind
its length in four bytes, big-endian (QEMU's docs, ``-netdev stream``); netlink messages from
rtnetlink(7); passt's gateway address is the source of forwarded connections.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable

GUEST = "10.0.2.15"
GATEWAY = "10.0.2.2"
RESOLVER = "10.0.2.3"
"""The guest's network: the addresses that QEMU's own user network has."""

GUEST_MAC = "52:54:00:76:6d:01"
PREFIX = 24
_RECHECK = 30.0  # seconds between two looks at the host's addresses without a notice of change
_CHUNK = 1 << 18
_FRAME_LIMIT = 1 << 17
_CONSOLE_LIMIT = 1 << 20  # bytes of console kept

_BRIDGES = (
    *("docker", "br-", "virbr", "podman", "lxc", "lxd", "incus", "cni", "cbr", "flannel"),
    *("nerdctl", "vboxnet", "vmnet", "tap", "vnet", "cilium", "kube", "veth"),
)
"""Names of interfaces whose whole subnet is other containers or virtual machines."""

_ALWAYS_4 = (
    *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"),
    "168.63.129.16/32",  # Azure: metadata and agent
    "100.100.100.200/32",  # Alibaba: metadata
    "192.0.0.192/32",  # Oracle: metadata
)
_ALWAYS_6 = (
    *("::/96", "::ffff:0:0/96", "64:ff9b::/96", "fe80::/10", "fec0::/10", "ff00::/8"),
    "fd00:ec2::/32",  # AWS: metadata
)

Net = tuple[int, int]
"""Network and mask, as numbers."""


def net4(text: str) -> Net:
    """``a.b.c.d/n`` as a number and its mask."""
    address, _, bits = text.partition("/")
    mask = (0xFFFFFFFF << (32 - int(bits or 32))) & 0xFFFFFFFF
    return int.from_bytes(socket.inet_pton(socket.AF_INET, address), "big") & mask, mask


def net6(text: str) -> Net:
    """The same for IPv6."""
    address, _, bits = text.partition("/")
    full = (1 << 128) - 1
    mask = (full << (128 - int(bits or 128))) & full
    return int.from_bytes(socket.inet_pton(socket.AF_INET6, address), "big") & mask, mask


class Denied:
    """Where the guest may not go."""

    def __init__(self, four: Iterable[str] = (), six: Iterable[str] = ()) -> None:
        self.four = tuple(dict.fromkeys(net4(text) for text in (*_ALWAYS_4, *four)))
        self.six = tuple(dict.fromkeys(net6(text) for text in (*_ALWAYS_6, *six)))
        self._seen: dict[bytes, bool] = {}

    def has4(self, address: bytes) -> bool:
        seen = self._seen.get(address)
        if seen is None:
            number = int.from_bytes(address, "big")
            seen = any(number & mask == net for net, mask in self.four)
            if len(self._seen) > 4096:
                self._seen.clear()
            self._seen[address] = seen
        return seen

    def has6(self, address: bytes) -> bool:
        number = int.from_bytes(address, "big")
        if any(number & mask == net for net, mask in self.six):
            return True
        # 6to4 and Teredo hold an IPv4 address too
        return number >> 112 == 0x2002 or number >> 96 == 0x20010000


_GATEWAY_4 = socket.inet_aton(GATEWAY)
_RESOLVER_4 = socket.inet_aton(RESOLVER)


def verdict(frame: bytes | memoryview, denied: Denied) -> bool:
    """Whether this Ethernet frame of the guest may go on.  Unknown things may not."""
    if len(frame) < 34:
        # ARP is 42 bytes, the smallest IPv4 packet 34
        return False
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return _verdict4(frame, denied)
    if kind == b"\x08\x06":
        return len(frame) >= 42
    if kind == b"\x86\xdd":
        return len(frame) >= 54 and frame[14] >> 4 == 6 and not denied.has6(bytes(frame[38:54]))
    return False


def _verdict4(frame: bytes | memoryview, denied: Denied) -> bool:
    first = frame[14]
    header = (first & 15) * 4
    if first >> 4 != 4 or header < 20 or len(frame) < 14 + header:
        return False
    target = bytes(frame[30:34])
    if target == _RESOLVER_4:
        return False  # answered here, see Names
    if target == _GATEWAY_4:
        # only answers within connections that came in: nothing else lives there
        return _is_answer(frame, 14 + header)
    return not denied.has4(target)


def _first_fragment(frame: bytes | memoryview) -> bool:
    return frame[20] & 0x3F == 0 and frame[21] == 0


def _is_answer(frame: bytes | memoryview, at: int) -> bool:
    whole = _first_fragment(frame) and len(frame) >= at + 20
    return whole and frame[23] == 6 and frame[at + 13] & 0x16 != 0x02


def _sum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def refusal(frame: bytes | memoryview) -> bytes | None:
    """The reset that answers a TCP attempt (IPv4) which is not let through, or None."""
    if len(frame) < 54 or bytes(frame[12:14]) != b"\x08\x00" or frame[23] != 6:
        return None
    at = 14 + (frame[14] & 15) * 4
    if not _first_fragment(frame) or len(frame) < at + 20 or frame[at + 13] & 0x16 != 0x02:
        return None
    source, target = bytes(frame[26:30]), bytes(frame[30:34])
    ports = bytes(frame[at + 2 : at + 4]) + bytes(frame[at : at + 2])
    sequence = (int.from_bytes(frame[at + 4 : at + 8], "big") + 1) & 0xFFFFFFFF
    tcp = ports + struct.pack(">IIBBHHH", 0, sequence, 0x50, 0x14, 0, 0, 0)
    check = _sum(target + source + struct.pack(">BBH", 0, 6, 20) + tcp)
    tcp = tcp[:16] + struct.pack(">H", check) + tcp[18:]
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 0, 0x4000, 64, 6, 0, target, source)
    ip = ip[:10] + struct.pack(">H", _sum(ip)) + ip[12:]
    return bytes(frame[6:12]) + bytes(frame[0:6]) + b"\x08\x00" + ip + tcp


# --- names -----------------------------------------------------------------------------------

_RESOLV_CONF = "/etc/resolv.conf"
_DNS_SECONDS = 4.0
_DNS_AT_ONCE = 64


def dns_question(frame: bytes) -> bytes | None:
    """The DNS message in a frame that asks our resolver, or None."""
    if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[30:34] != _RESOLVER_4:
        return None
    at = 14 + (frame[14] & 15) * 4
    if frame[23] != 17 or not _first_fragment(frame) or frame[at + 2 : at + 4] != b"\x00\x35":
        return None
    message = frame[at + 8 : at + int.from_bytes(frame[at + 4 : at + 6], "big")]
    # a question (QR 0), an ordinary one (opcode 0): nothing else is passed to the host's resolver
    return message if len(message) > 16 and message[2] & 0xF8 == 0 else None


def dns_frame(frame: bytes, answer: bytes) -> bytes:
    """The frame that brings ``answer`` to whoever sent ``frame``."""
    at = 14 + (frame[14] & 15) * 4
    source, target = frame[30:34], frame[26:30]
    udp = frame[at + 2 : at + 4] + frame[at : at + 2] + struct.pack(">HH", 8 + len(answer), 0)
    head = struct.pack(">BBH", 0, 17, 8 + len(answer))
    check = _sum(source + target + head + udp + answer) or 0xFFFF
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 28 + len(answer), 0, 0x4000, 64, 17, 0, source, target
    )
    ip = ip[:10] + struct.pack(">H", _sum(ip)) + ip[12:]
    udp = udp[:6] + struct.pack(">H", check)
    return frame[6:12] + frame[0:6] + b"\x08\x00" + ip + udp + answer


def name_servers(text: str) -> list[tuple[int, str]]:
    """(family, address) of a resolv.conf's name servers."""
    found: list[tuple[int, str]] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            found.append((socket.AF_INET6 if ":" in words[1] else socket.AF_INET, words[1]))
    return found[:3]


class Names:
    """Passes the guest's DNS questions to the host's resolver, wherever that listens.

    passt's own ``--dns-forward`` of 2023 sends them to 0.0.0.0 when a resolver is named, and knows
    none that listens on loopback (127.0.0.53) without the gateway mapping; and it reads
    resolv.conf once, while a laptop changes its network.
    """

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(_DNS_AT_ONCE)

    def ask(self, frame: bytes, message: bytes, reply: Callable[[bytes], None]) -> None:
        """Answer through ``reply`` later; dropped when too many questions are open."""
        if self._places.acquire(blocking=False):
            threading.Thread(target=self._answer, args=(frame, message, reply), daemon=True).start()

    def _answer(self, frame: bytes, message: bytes, reply: Callable[[bytes], None]) -> None:
        try:
            with open(_RESOLV_CONF, encoding="utf-8", errors="replace") as file:
                servers = name_servers(file.read())
            for family, address in servers or [(socket.AF_INET, "127.0.0.1")]:
                with contextlib.suppress(OSError, ValueError):
                    reply(dns_frame(frame, self.resolve(family, address, message)))
                    return
        except OSError:
            pass
        finally:
            self._places.release()

    @staticmethod
    def resolve(family: int, address: str, message: bytes) -> bytes:
        """One question to one server; a truncated answer is asked for again over TCP."""
        with socket.socket(family, socket.SOCK_DGRAM) as link:
            link.settimeout(_DNS_SECONDS)
            # as bytes: names would load a codec, which the user we became may not read
            link.connect((address.encode(), 53))
            link.send(message)
            answer = link.recv(65535)
            while answer[:2] != message[:2]:
                answer = link.recv(65535)
        if len(answer) > 2 and answer[2] & 2:
            with contextlib.suppress(OSError):
                return Names._over_tcp(family, address, message)
        return answer

    @staticmethod
    def _over_tcp(family: int, address: str, message: bytes) -> bytes:
        with socket.socket(family) as link:
            link.settimeout(_DNS_SECONDS)
            link.connect((address.encode(), 53))
            link.sendall(len(message).to_bytes(2, "big") + message)
            data = b""
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
                chunk = link.recv(65536)
                if not chunk:
                    raise OSError("the name server closed the connection")
                data += chunk
            return data[2:]


# --- the host's addresses --------------------------------------------------------------------

_RTM_NEWADDR, _RTM_GETADDR, _NLMSG_DONE, _NLMSG_ERROR = 20, 22, 3, 2
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def parse_addresses(data: bytes) -> tuple[list[tuple[int, int, int, bytes]], bool]:
    """(family, prefix length, interface index, address) of netlink's answers; True at the end."""
    found: list[tuple[int, int, int, bytes]] = []
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < 16:
            return found, True
        if kind == _RTM_NEWADDR:
            family, bits, _flags, _scope, index = struct.unpack_from("=BBBBI", data, 16)
            at, best = 24, b""
            while at + 4 <= min(length, len(data)):
                size, attribute = struct.unpack_from("=HH", data, at)
                if size < 4:
                    break
                if attribute == _IFA_LOCAL or (attribute == _IFA_ADDRESS and not best):
                    best = data[at + 4 : at + size]
                at += (size + 3) & ~3
            if len(best) == (4 if family == socket.AF_INET else 16):
                found.append((family, bits, index, best))
        data = data[(length + 3) & ~3 :]
    return found, False


def host_addresses() -> list[tuple[int, int, int, bytes]]:
    """Every address of this host's interfaces, from the kernel."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.settimeout(5)
        link.bind((0, 0))
        link.send(struct.pack("=IHHIIBxxx", 20, _RTM_GETADDR, 0x301, 1, 0, 0))
        found: list[tuple[int, int, int, bytes]] = []
        ended = False
        while not ended:
            part, ended = parse_addresses(link.recv(1 << 16))
            found += part
        return found


def host_denied(addresses: Iterable[tuple[int, int, int, bytes]], names: dict[int, str]) -> Denied:
    """The deny list that follows from the host's addresses: each of them, and bridges whole."""
    four, six = [], []
    for family, bits, index, address in addresses:
        whole = names.get(index, "").startswith(_BRIDGES)
        if family == socket.AF_INET:
            four.append(f"{socket.inet_ntop(family, address)}/{bits if whole else 32}")
        else:
            six.append(f"{socket.inet_ntop(family, address)}/{bits if whole else 128}")
    return Denied(four, six)


def introduction() -> bytes:
    """An ARP request in the guest's name (RFC 826).

    passt learns the guest's hardware address from the first frame that it gets, and until then
    sends connections that come in to no address at all.
    """
    mac = bytes.fromhex(GUEST_MAC.replace(":", ""))
    arp = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1)
    arp += mac + socket.inet_aton(GUEST) + bytes(6) + _GATEWAY_4
    frame = b"\xff" * 6 + mac + b"\x08\x06" + arp
    return len(frame).to_bytes(4, "big") + frame


class Guard:
    """Two pumps between QEMU's and passt's sockets, and the deny list that follows the host."""

    def __init__(self, inside: socket.socket, outside: socket.socket, filtered: bool) -> None:
        self.inside, self.outside, self.filtered = inside, outside, filtered
        self.lock = threading.Lock()
        self.denied = Denied()
        self.names = Names()

    def refresh(self) -> None:
        """Look at the host's addresses again; on failure the list stays as it was."""
        try:
            names = dict(socket.if_nameindex())
            self.denied = host_denied(host_addresses(), names)
        except OSError:
            pass

    def outward(self) -> None:
        """From the guest: whole frames only, each judged."""
        self.outside.sendall(introduction())
        data = b""
        while chunk := self.inside.recv(_CHUNK):
            passed, data = self.judge(data + chunk if data else chunk)
            if passed:
                self.outside.sendall(passed)

    def judge(self, data: bytes) -> tuple[bytes, bytes]:
        """What of ``data`` may go on, and the unfinished frame at its end."""
        passed: list[bytes] = []
        kept, at, end = 0, 0, len(data)
        while at + 4 <= end:
            length = int.from_bytes(data[at : at + 4], "big")
            if length > _FRAME_LIMIT:
                raise ValueError("a frame of an impossible length")
            after = at + 4 + length
            if after > end:
                break
            frame = data[at + 4 : after]
            question = dns_question(frame)
            if question is not None or not self._may_pass(frame):
                passed.append(data[kept:at])
                kept = after
                if question is not None:
                    self.names.ask(frame, question, self._inject)
                elif answer := refusal(frame):
                    self._inject(answer)
            at = after
        passed.append(data[kept:at])
        return b"".join(passed), data[at:]

    def _may_pass(self, frame: bytes) -> bool:
        return verdict(frame, self.denied) if self.filtered else frame[30:34] != _RESOLVER_4

    def _inject(self, frame: bytes) -> None:
        with self.lock:
            self.inside.sendall(len(frame).to_bytes(4, "big") + frame)

    def inward(self) -> None:
        """To the guest: copied as it is, in whole frames so that an answer of ours fits between."""
        data = b""
        while chunk := self.outside.recv(_CHUNK):
            data = data + chunk if data else chunk
            at, end = 0, len(data)
            while at + 4 <= end:
                after = at + 4 + int.from_bytes(data[at : at + 4], "big")
                if after > end:
                    break
                at = after
            if at:
                with self.lock:
                    self.inside.sendall(data[:at] if at < end else data)
                data = data[at:]


def keep_console(source: int, log: int) -> None:
    """Keep the last of what the guest's console says: the guest must not fill the host's disk."""
    size = os.fstat(log).st_size
    while chunk := os.read(source, 65536):
        if size + len(chunk) > _CONSOLE_LIMIT:
            tail = os.pread(log, _CONSOLE_LIMIT // 2, max(0, size - _CONSOLE_LIMIT // 2))
            os.ftruncate(log, 0)
            os.write(log, tail)
            size = len(tail)
        os.write(log, chunk)
        size += len(chunk)


def _pump(work: Callable[..., None], *arguments: int) -> None:
    """Run one direction; when it ends, so does everything: half a network helps nobody."""
    with contextlib.suppress(OSError, ValueError):
        work(*arguments)
    os._exit(0)


def main(words: list[str]) -> None:
    """``INSIDE-FD OUTSIDE-FD CONSOLE-FD LOG-FD UID:GID|- filter|open``."""
    inside, outside, console, log, who, mode = words
    if who != "-" and os.getuid() == 0:
        uid, _, gid = who.partition(":")
        os.setgroups([])
        os.setresgid(int(gid), int(gid), int(gid))
        os.setresuid(int(uid), int(uid), int(uid))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    qemu, passt = socket.socket(fileno=int(inside)), socket.socket(fileno=int(outside))
    guard = Guard(qemu, passt, mode != "open")
    guard.refresh()
    threading.Thread(target=_pump, args=(guard.outward,), daemon=True).start()
    threading.Thread(target=_pump, args=(guard.inward,), daemon=True).start()
    console_pump = (keep_console, int(console), int(log))
    threading.Thread(target=_pump, args=console_pump, daemon=True).start()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.bind((0, 0x10 | 0x100))  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
        while True:
            ready, _, _ = select.select([link], [], [], _RECHECK)
            if ready:
                with contextlib.suppress(OSError):
                    link.recv(1 << 16)
            guard.refresh()


if __name__ == "__main__":
    main(sys.argv[1:])
