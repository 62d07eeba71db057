"""Reading config files that a branch brought: regular files, of a sane size, in UTF-8.

A branch may commit ``vmoat.toml`` as a symlink to a device, a pipe that never ends or a file of
two gigabytes: none of these may hang or fill the host.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vmoat.config.errors import config_error

LIMIT = 1 << 18
"""Bytes of a config file; the largest seen in the wild has 4 KiB."""


def exists(path: Path) -> bool:
    """Whether anything is there, a dangling symlink included."""
    return os.path.lexists(path)


def read_bytes(path: Path, name: str, limit: int = LIMIT) -> bytes:
    """The file's content; raises CONFIG naming it for all that is no readable regular file."""
    try:
        # O_NONBLOCK: opening a pipe must not wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise config_error(
            name, f"can't be read: {error.strerror}", "make it readable, or remove it"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise config_error(name, "is not a regular file", "replace it by a file, or remove it")
        with open(descriptor, "rb", closefd=False) as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise config_error(
            name, f"can't be read: {error.strerror}", "make it readable, or remove it"
        ) from error
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise config_error(name, f"has more than {limit} bytes", "shorten it")
    return data


def decode(data: bytes, name: str) -> str:
    """The text of a config file, without a byte order mark."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise config_error(f"{name}:{line}", "is not UTF-8", "save the file as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise config_error(f"{name}:{line}", "holds a NUL byte", "remove it")
    return text
