"""What a VM's guest and QEMU said, as kept in the VM's state folder."""

from __future__ import annotations

from pathlib import Path

from vmoat import paths


def log(name: str) -> Path:
    """Where the guest's console is kept."""
    return paths.vm_dir(name) / "console.log"


def text(name: str) -> str:
    """What the guest's console said, "" when nothing."""
    try:
        return log(name).read_text(errors="replace")
    except OSError:
        return ""


def last_lines(path: Path, count: int = 12) -> tuple[str, ...]:
    """The end of a log, printable."""
    try:
        data = path.read_bytes()[-16384:]
    except OSError:
        return ()
    text = data.decode(errors="replace").replace("\r", "")
    lines = ["".join(c for c in line if c.isprintable() or c == "\t") for line in text.splitlines()]
    return tuple(line for line in lines if line.strip())[-count:]
