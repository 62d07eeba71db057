"""The one error of this project, and the exit codes that the command line promises.

The library raises; only ``vmoat.cli`` prints and exits.  An error always holds what is wrong
(``message``, in the user's terms), what to do (``hint``) and the exit code that it ends with.
"""

from __future__ import annotations

from enum import IntEnum

TYPE_CHECKING = False  # `typing` takes longer to load than `vmoat name` to answer
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


class Code(IntEnum):
    """Exit codes of the command line (the table of the README)."""

    OK = 0
    STAGE = 1
    USAGE = 2
    CONFIG = 3
    MISSING = 4
    VM = 5
    TIMEOUT = 6
    BUSY = 7
    BEFORE = 125
    INTERRUPTED = 130


class VmoatError(Exception):
    """What went wrong, what to do about it, and the exit code.

    ``details`` are lines that belong under the message: the last words of a program that failed,
    the keys that a config file may not set yet.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: int = Code.STAGE,
        details: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = int(code)
        self.details = tuple(details)
        self.stage = ""
        """The stage that failed; "" for all else."""

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def as_fields(error: VmoatError) -> dict[str, Any]:
    """The error as data: what ``run_end`` events and ``vmoat.error/1`` have in common.

    ``next`` are the command lines that the hint names, in its order.
    """
    import re

    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "details": list(error.details),
        "stage": error.stage,
        "next": re.findall(r"`(vmoat [^`]*)`", error.hint),
    }


def as_document(error: VmoatError) -> dict[str, Any]:
    """The error as a document of its own."""
    return {"schema": "vmoat.error/1", **as_fields(error)}


def as_error(error: Exception) -> VmoatError:
    """Whatever was raised, as the one class that is shown."""
    if isinstance(error, VmoatError):
        return error
    return system_error(error) if isinstance(error, OSError) else defect(error)


def system_error(error: OSError) -> VmoatError:
    """The error of a file or folder that nothing nearer to it has explained."""
    import errno
    import os

    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    hints = {
        errno.ENOSPC: "make room on this disk",
        errno.EDQUOT: "make room within this user's quota",
        errno.EROFS: "name writable folders in XDG_STATE_HOME and XDG_DATA_HOME",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
    }
    return VmoatError(
        f"{place}{error.strerror or error}",
        hint=hints.get(error.errno or 0, "`vmoat doctor` checks this machine"),
        code=Code.MISSING,
    )


def defect(error: Exception) -> VmoatError:
    """The error of a mistake in vmoat itself; its place stands under it, for the report."""
    import traceback

    return VmoatError(
        "vmoat itself failed; this is a defect",
        hint="please report it with these lines and what `vmoat logs --bundle DIR` writes",
        details="".join(traceback.format_exception(error)).splitlines()[-15:],
    )
