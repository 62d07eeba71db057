"""What Colima and Lima say (logrus lines), for a person; and what to do about their last words."""

from __future__ import annotations

import re
from pathlib import Path

LOG = "colima.log"
"""In the VM's state folder: what the last `colima start` said."""

_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')

CURES = (
    (r"disk image must be downloaded|hash failure|checksum mismatch",
     "a local image of your own needs --force-disk-image in colima.start_args"),
    (r"no such host|dial tcp|i/o timeout|could not download|error getting qcow image|TLS handshake",
     "Colima fetches its disk image once: it needs the network, or a local one "
     "(colima.start_args = [\"--disk-image\", FILE])"),
    (r"no space left", "make room on this machine's disk"),
    (r"unknown (shorthand )?flag|unknown command",
     "this Colima is too old, or colima.start_args names an option that it does not have"),
    (r"in use by instance|failed to lock disk|already in use",
     "another VM holds the disk: `vmoat down` it, or `limactl disk unlock` in its LIMA_HOME"),
    (r"[Kk][Vv][Mm]", "KVM does not work here: the next `vmoat up` uses software emulation"),
    (r"overlaps", "folders of mounts.share may not lie in the worktree or in each other"),
    (r"firmware|edk2|OVMF", "install UEFI firmware for QEMU (Debian: ovmf)"),
    (r"qemu-system-|qemu-img|qemu is required",
     "install QEMU (Debian: qemu-system-x86 and qemu-utils; macOS: brew install qemu)"),
    (r"resolve the IP address|did not receive an event|degraded|essential requirement",
     "the guest did not come up: `vmoat logs --console` shows how far it came"),
    (r"too long", "name a shorter folder in XDG_DATA_HOME"),
)  # fmt: skip
"""Last words → what to do; the first that fits."""


def fields(line: str) -> dict[str, str]:
    """The fields of a line of logrus: ``level``, ``msg``, ``context``…; empty for another's."""
    if not line.startswith("time="):
        return {}
    found = {}
    for key, value in _FIELD.findall(line):
        if value.startswith('"'):
            value = re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), value[1:-1])
        found[key] = value
    return found


def told(line: str) -> str:
    """A line as progress for a person; "" for what only a developer of Lima wants to know."""
    parts = fields(line)
    text = parts.get("msg", "")
    if text.startswith("[hostagent] Waiting for"):
        text = text.removeprefix("[hostagent] ")
    if not text or text.startswith("[hostagent]") or parts.get("level") in ("debug", "trace"):
        return ""
    if "Terminal is not available" in text or "SSH Local Port" in text or text == "done":
        return ""
    if text.startswith("READY.") or "is supported only for debugging" in text:
        return ""
    who = parts.get("context", "")
    return f"colima: {who}: {text}" if who else f"colima: {text}"


def last(log: Path) -> str:
    """The message of a log's last line."""
    lines = text(log).rstrip().splitlines()
    return fields(lines[-1]).get("msg", lines[-1]) if lines else ""


def text(log: Path) -> str:
    try:
        return log.read_text(errors="replace")
    except OSError:
        return ""


def last_words(log: str, count: int = 8) -> list[str]:
    """What a start that failed said: its errors and warnings, else its last lines."""
    lines = [line for line in log.splitlines() if line.strip()]
    chosen = [fields(line).get("msg", line) for line in lines if _matters(line)]
    return list(dict.fromkeys(chosen))[-count:] or lines[-count:]


def _matters(line: str) -> bool:
    """Errors, warnings that are for a user, and the words of other programs."""
    level = fields(line).get("level")
    return level in (None, "error", "fatal") or (level == "warning" and bool(told(line)))


def cure(log: str) -> str:
    """What to do about a start that failed, by its last words."""
    said = "\n".join(last_words(log))
    return next((cure for pattern, cure in CURES if re.search(pattern, said)), "")
