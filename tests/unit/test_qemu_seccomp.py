"""The system call filter, run by a small interpreter of its instructions."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from vmoat.drivers.qemu import sandbox
from vmoat.errors import VmoatError

ALLOWED = "allowed"


def judge(machine: str, call: str | int, *arguments: int, arch: int | None = None) -> str | int:
    """What the filter answers: ``allowed`` or the errno (0: success without effect)."""
    number = sandbox.SYSCALLS[machine][call] if isinstance(call, str) else call
    data = struct.pack("<iIQ6Q", number, arch or sandbox.AUDIT_ARCH[machine], 0,
                       *(*arguments, *[0] * (6 - len(arguments))))  # fmt: skip
    program = list(struct.iter_unpack("<HBBI", sandbox.seccomp_program(machine)))
    at, accumulator = 0, 0
    while True:
        code, yes, no, value = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return ALLOWED if value == 0x7FFF0000 else value & 0xFFFF
        else:
            true = {
                0x15: accumulator == value,
                0x45: bool(accumulator & value),
                0x35: accumulator >= value,
            }[code]
            at += yes if true else no


MACHINES = list(sandbox.SYSCALLS)


@pytest.mark.parametrize("machine", MACHINES)
def test_no_file_can_be_made_setuid(machine: str) -> None:
    for call, where in sandbox._CHMOD.items():
        if call in sandbox.SYSCALLS[machine]:
            before = [0] * where
            assert judge(machine, call, *before, 0o4755) == errno.EPERM
            assert judge(machine, call, *before, 0o6755) == errno.EPERM
            assert judge(machine, call, *before, 0o2755) == 0, "said to be done, not done"
            assert judge(machine, call, *before, 0o1777) == ALLOWED
    assert judge(machine, "mknodat", 0, 0, 0o104755) == errno.EPERM
    assert judge(machine, "mkdirat", 0, 0, 0o2755) == ALLOWED, "the kernel drops the bit itself"


@pytest.mark.parametrize("machine", MACHINES)
def test_open_is_judged_by_its_mode_only_where_it_creates(machine: str) -> None:
    garbage = 0o7777
    assert judge(machine, "openat", 0, 0, os.O_RDWR, garbage) == ALLOWED
    assert judge(machine, "openat", 0, 0, os.O_CREAT | os.O_RDWR, 0o644) == ALLOWED
    assert judge(machine, "openat", 0, 0, os.O_CREAT | os.O_RDWR, 0o4755) == errno.EPERM
    assert judge(machine, "openat", 0, 0, 0o20200000 | os.O_RDWR, 0o2755) == errno.EPERM, (
        "O_TMPFILE"
    )
    assert judge(machine, "openat2") == errno.ENOSYS
    assert judge(machine, "io_uring_setup") == errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_chown_succeeds_without_effect(machine: str) -> None:
    for call in ("chown", "fchown", "lchown", "fchownat"):
        if call in sandbox.SYSCALLS[machine]:
            assert judge(machine, call, 0, 0, 0) == 0


@pytest.mark.parametrize("machine", MACHINES)
def test_no_namespaces_mounts_or_debugging(machine: str) -> None:
    for call in sandbox._REFUSED:
        assert judge(machine, call) == errno.EPERM, call
    assert judge(machine, "clone", 0x10000000) == errno.EPERM, "CLONE_NEWUSER"
    assert judge(machine, "clone", 0x3D0F00) == ALLOWED, "a thread"
    assert judge(machine, "clone3") == errno.ENOSYS, "whose flags a filter cannot read"


def test_other_architectures_calls_are_not_let_through() -> None:
    assert judge("x86_64", 15, arch=0x40000003) == errno.ENOSYS, "i386's chmod"
    assert judge("x86_64", 0x40000000 | 90, 0, 0o4755) == errno.ENOSYS, "x32's chmod"
    assert judge("x86_64", 0) == ALLOWED


def test_an_unknown_machine_is_said_so() -> None:
    with pytest.raises(VmoatError, match="riscv64") as found:
        sandbox.seccomp_program("riscv64")
    assert found.value.code == 4
