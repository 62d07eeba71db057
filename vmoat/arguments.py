"""argparse, loaded only where a command line holds more than a command's name."""

from __future__ import annotations

import argparse
from argparse import SUPPRESS
from typing import NoReturn

from vmoat.errors import Code, VmoatError

__all__ = ["SUPPRESS", "Parser"]


class Parser(argparse.ArgumentParser):
    """Raises instead of exiting: only the command line's entry exits."""

    def error(self, message: str) -> NoReturn:
        raise VmoatError(
            message, hint=f"`{self.prog} --help` shows its arguments", code=Code.USAGE
        )
