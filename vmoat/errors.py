"""The one error of this project, and the exit codes that the command line promises.

The library raises; only ``vmoat.cli`` prints and exits.  An error always holds what is wrong
(``message``, in the user's terms), what to do (``hint``) and the exit code that it ends with.
"""

from __future__ import annotations

from enum import IntEnum

TYPE_CHECKING = False  # `typing` takes longer to load than `vmoat name` to answer
if TYPE_CHECKING:
    from collections.abc import Iterable


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

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
