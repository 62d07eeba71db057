"""The walls around QEMU and virtiofsd: what they may see (bubblewrap) and call (seccomp).

Both are pure functions: an argument list, and the bytes of a classic BPF program.  Facts:
bubblewrap's options from bwrap(1) 0.8; ``struct seccomp_data`` and return values from seccomp(2);
system call numbers from Linux' ``asm/unistd_64.h`` and ``asm-generic/unistd.h``.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmoat.errors import Code, VmoatError

# --- seccomp ---------------------------------------------------------------------------------

_LOAD, _JEQ, _JSET, _JGE, _RET = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_NR, _ARCH, _ARGS = 0, 4, 16

_SUID, _SGID = 0o4000, 0o2000
_CREATES = os.O_CREAT | 0o20000000  # __O_TMPFILE
_CLONE_NEW = 0x7E020080  # every CLONE_NEW… flag
_X32 = 0x40000000

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_COMMON = {
    "clone3": 435,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "openat2": 437,
    "mount_setattr": 442,
    "fchmodat2": 452,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
}
SYSCALLS: dict[str, dict[str, int]] = {
    "x86_64": {
        **_COMMON,
        "open": 2,
        "clone": 56,
        "mkdir": 83,
        "creat": 85,
        "chmod": 90,
        "fchmod": 91,
        "chown": 92,
        "fchown": 93,
        "lchown": 94,
        "ptrace": 101,
        "mknod": 133,
        "pivot_root": 155,
        "chroot": 161,
        "mount": 165,
        "umount2": 166,
        "init_module": 175,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "openat": 257,
        "mkdirat": 258,
        "mknodat": 259,
        "fchownat": 260,
        "fchmodat": 268,
        "unshare": 272,
        "perf_event_open": 298,
        "open_by_handle_at": 304,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "finit_module": 313,
        "kexec_file_load": 320,
        "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": {
        **_COMMON,
        "mknodat": 33,
        "mkdirat": 34,
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "chroot": 51,
        "fchmod": 52,
        "fchmodat": 53,
        "fchownat": 54,
        "fchown": 55,
        "openat": 56,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "ptrace": 117,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "clone": 220,
        "perf_event_open": 241,
        "open_by_handle_at": 265,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "finit_module": 273,
        "bpf": 280,
        "userfaultfd": 282,
        "kexec_file_load": 294,
    },
}

_REFUSED = (
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "ptrace", "process_vm_readv"),
    *("process_vm_writev", "keyctl", "add_key", "request_key", "bpf", "perf_event_open"),
    *("userfaultfd", "kexec_load", "kexec_file_load", "init_module", "finit_module"),
    "open_by_handle_at",
)
# ENOSYS: callers fall back to the calls whose arguments a filter can read.
_ABSENT = ["openat2", "clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"]
_CHOWN = ["chown", "fchown", "lchown", "fchownat"]
_CHMOD = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}
_MAKE = {"creat": 1, "mknod": 1, "mknodat": 2}
_OPEN = {"open": (1, 2), "openat": (2, 3)}

_Op = tuple[int, int, int, int]


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> _Op:
    return code, yes, no, value


def _fail(number: int) -> _Op:
    return _op(_RET, _ERRNO | number)


def _argument(index: int) -> _Op:
    return _op(_LOAD, _ARGS + 8 * index)  # the low half; both machines are little-endian


def _chmod_block(mode: int) -> list[_Op]:
    """Set-user-id: refused.  Set-group-id alone: success without effect.

    The guest's kernel asks for the latter at each mkdir below a set-group-id directory (QEMU
    repeats it as chmod): refusing it would break mkdir there, obeying it would leave executables
    of the user's group.
    """
    return [
        _argument(mode),
        _op(_JSET, _SUID, 0, 1),
        _fail(errno.EPERM),
        _op(_JSET, _SGID, 0, 1),
        _fail(0),
        _op(_RET, _ALLOW),
    ]


def _make_block(mode: int) -> list[_Op]:
    return [_argument(mode), _op(_JSET, _SUID | _SGID, 0, 1), _fail(errno.EPERM), _op(_RET, _ALLOW)]


def _open_block(flags: int, mode: int) -> list[_Op]:
    # without O_CREAT or O_TMPFILE the mode is whatever the register holds
    return [
        _argument(flags),
        _op(_JSET, _CREATES, 1, 0),
        _op(_RET, _ALLOW),
        *_make_block(mode),
    ]


def _clone_block() -> list[_Op]:
    return [_argument(0), _op(_JSET, _CLONE_NEW, 0, 1), _fail(errno.EPERM), _op(_RET, _ALLOW)]


def seccomp_rules(machine: str) -> list[tuple[str, list[_Op]]]:
    """What is done about each system call that is not simply allowed."""
    rules: list[tuple[str, list[_Op]]] = []
    rules += [(name, _open_block(*where)) for name, where in _OPEN.items()]
    rules += [(name, _chmod_block(where)) for name, where in _CHMOD.items()]
    rules += [(name, _make_block(where)) for name, where in _MAKE.items()]
    # chown "succeeds", so that tar, install and containers go on; the file stays the user's
    rules += [(name, [_fail(0)]) for name in _CHOWN]
    rules += [("clone", _clone_block())]
    rules += [(name, [_fail(errno.EPERM)]) for name in _REFUSED]
    rules += [(name, [_fail(errno.ENOSYS)]) for name in _ABSENT]
    known = SYSCALLS[machine]
    return [(name, block) for name, block in rules if name in known]


def seccomp_program(machine: str) -> bytes:
    """The filter for ``bwrap --seccomp``: an array of ``struct sock_filter``.

    Raises MISSING for a machine whose system call numbers are not known here.
    """
    if machine not in SYSCALLS:
        raise VmoatError(
            f"vmoat's walls do not know this machine's system calls ({machine})",
            hint="use an x86_64 or aarch64 host, or set walls = false in your own config",
            code=Code.MISSING,
        )
    program = [
        _op(_LOAD, _ARCH),
        _op(_JEQ, AUDIT_ARCH[machine], 1, 0),
        _fail(errno.ENOSYS),  # 32-bit calls have other numbers: none is let through
        _op(_LOAD, _NR),
    ]
    if machine == "x86_64":
        program += [_op(_JGE, _X32, 0, 1), _fail(errno.ENOSYS)]
    for name, block in seccomp_rules(machine):
        program += [_op(_JEQ, SYSCALLS[machine][name], 0, len(block)), *block]
    program.append(_op(_RET, _ALLOW))
    return b"".join(struct.pack("<HBBI", *step) for step in program)


# --- bubblewrap ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bind:
    """A host path at a path inside the sandbox."""

    source: str
    target: str
    writable: bool = False
    device: bool = False

    def argv(self) -> list[str]:
        option = "--dev-bind" if self.device else "--bind" if self.writable else "--ro-bind"
        return [option, self.source, self.target]


@dataclass(frozen=True)
class Identity:
    """Who the sandboxed program is.

    ``drop_to``: started by root for another user, it becomes that user (uid, gid).  Otherwise it
    stays who it is, in a user namespace that maps only that one id; for root this means: no
    capability over anything.
    ``shown``: the uid and gid that it sees itself as in that namespace; its own without.
    """

    drop_to: tuple[int, int] | None = None
    shown: int | None = None


def system_binds(
    programs: Iterable[str],
    *,
    islink: Callable[[str], bool] = os.path.islink,
    exists: Callable[[str], bool] = os.path.exists,
) -> list[str]:
    """Arguments that give the sandbox the host's programs and libraries, read-only."""
    words = ["--ro-bind", "/usr", "/usr"]
    for folder in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if islink(folder):
            words += ["--symlink", "usr" + folder, folder]
        elif exists(folder):
            words += ["--ro-bind", folder, folder]
    for extra in ("/etc/ld.so.cache", "/nix/store", "/gnu/store"):
        words += ["--ro-bind-try", extra, extra]
    for program in programs:
        place = Path(os.path.realpath(program)).parent
        prefix = str(place.parent if place.name in ("bin", "sbin", "libexec") else place)
        if prefix == "/" or prefix.startswith(("/usr", "/nix/", "/gnu/", "/bin", "/sbin", "/lib")):
            continue
        words += ["--ro-bind", prefix, prefix]
    return words


def bwrap_argv(
    command: Sequence[str],
    binds: Iterable[Bind],
    *,
    bwrap: str,
    setpriv: str,
    identity: Identity,
    seccomp_fd: int,
    info_fd: int,
    system: Sequence[str],
) -> list[str]:
    """The command in a sandbox of its own: mounts, processes, IPC, host name, no network.

    It is process 1 of its namespace.  ``/proc`` is read-only, for a
    process of uid 0 may write kernel settings there even without capabilities.
    """
    words = [bwrap]
    if identity.drop_to is None:
        words += ["--unshare-user", "--cap-drop", "ALL"]
        if identity.shown is not None:
            words += ["--uid", str(identity.shown), "--gid", str(identity.shown)]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    words += ["--unshare-cgroup-try", "--hostname", "vmoat"]
    words += ["--new-session", "--as-pid-1"]
    words += ["--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LC_ALL", "C.UTF-8"]
    words += system
    words += ["--dev", "/dev", "--proc", "/proc", "--remount-ro", "/proc", "--tmpfs", "/tmp"]
    for folder in ("/vm", "/vm/share"):  # else made for root alone
        words += ["--perms", "0755", "--dir", folder]
    for bind in binds:
        words += bind.argv()
    words += ["--chdir", "/", "--seccomp", str(seccomp_fd), "--info-fd", str(info_fd), "--"]
    if identity.drop_to is not None:
        uid, gid = identity.drop_to
        words += [setpriv, f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        words += ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]
    return [*words, *command]
