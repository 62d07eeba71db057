"""The shell form: the plain assignments of a vmoat.conf, parsed as bash would and never run.

What is understood (``man bash``: QUOTING, PARAMETERS, EXPANSION): ``KEY=value`` and ``KEY+=value``,
arrays, all quotes, ``$'…'``, ``$NAME``, ``${NAME}`` and ``${NAME:-text}`` of names that are known,
``~``, ``export``, ``;``, comments, line continuations.  Everything else computes: it raises
``Computes``, and the file is left to ``vmoat.config.computed``, behind ``vmoat trust``.  In doubt
something computes: then bash itself says what it means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from vmoat.config.errors import config_error

Value = str | tuple[str, ...]


class Assigned(NamedTuple):
    """The last value of a variable and the line where it was given."""

    value: Value
    line: int


class Computes(Exception):  # noqa: N818
    """From this line on the file is a program: why, in words that follow "it", and what was
    assigned before."""

    def __init__(self, line: int, why: str, found: Mapping[str, Assigned]) -> None:
        super().__init__(why)
        self.line = line
        self.why = why
        self.found = dict(found)


EXPANDED = 1 << 20
"""Characters that all variables of a file may expand to."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"[^ \t\n;&|()<>#\"'`$\\]+")
_BLANK = re.compile(r"(?:[ \t]|\\\n)+")
_META = frozenset(" \t\n;&|<>()")
_GLOB = frozenset("*?[{")
_LONE = frozenset(" \t\n;,./:%=+^~]}|&)") | {""}
"""What may follow a `$` that is just a dollar sign."""

# Variables to which bash gives meanings or values of its own: assigning them changes how the rest
# of the file reads, or fails.  (`man bash`, Shell Variables)
_SPECIAL = frozenset(
    ("IFS", "RANDOM", "SRANDOM", "SECONDS", "LINENO", "EPOCHSECONDS", "EPOCHREALTIME", "BASHPID",
     "BASHOPTS", "SHELLOPTS", "BASH_ARGV0", "BASH_COMMAND", "BASH_VERSINFO", "BASH_SUBSHELL",
     "BASH_COMPAT", "UID", "EUID", "PPID", "GROUPS", "FUNCNAME", "DIRSTACK", "HISTCMD",
     "POSIXLY_CORRECT", "_")
)  # fmt: skip
_KEYWORDS: dict[str, str] = {
    **dict.fromkeys(("if", "case", "[[", "[", "test"), "decides by a condition"),
    **dict.fromkeys(("for", "while", "until", "select"), "loops"),
    **dict.fromkeys(("source", "."), "sources another file"),
    "function": "defines a function",
    "eval": "evaluates a text as code",
    **dict.fromkeys(("declare", "typeset", "local", "readonly"), "declares with attributes"),
}
_ANSI = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b",
         "f": "\f", "v": "\v", "\\": "\\", "'": "'", '"': '"', "?": "?"}  # fmt: skip
_ANSI_CODE = re.compile(r"x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{1,4})|U([0-9A-Fa-f]{1,8})|([0-7]{1,3})")


def parse(text: str, name: str, known: Mapping[str, Value]) -> dict[str, Assigned]:
    """The variables that the file assigns, in its order.

    ``known`` are variables from before it (HOME, earlier files).  Raises Computes where it is more
    than assignments, and CONFIG for what no shell takes (a quote that never ends) and for Windows
    line ends.
    """
    if "\r" in text:
        line = text.count("\n", 0, text.index("\r")) + 1
        raise config_error(
            f"{name}:{line}", "has Windows line ends", f"save it with LF (dos2unix {name})"
        )
    return _Parser(text, name, known).file()


def word_at(text: str, start: int, known: Mapping[str, Value]) -> str:
    """The shell word at ``start``; raises Computes where only bash can tell it."""
    parser = _Parser(text, "", known)
    parser.pos = start
    parser.blanks()
    return parser.word(array=True)


class _Parser:
    def __init__(self, text: str, name: str, known: Mapping[str, Value]) -> None:
        self.text = text
        self.name = name
        self.pos = 0
        self.known = dict(known)
        self.found: dict[str, Assigned] = {}
        self.counted = (0, 1)
        self.expanded = 0

    # -- places --

    def peek(self, count: int = 1) -> str:
        return self.text[self.pos : self.pos + count]

    def line(self) -> int:
        start, line = self.counted
        line += self.text.count("\n", start, self.pos)
        self.counted = (self.pos, line)
        return line

    def computes(self, why: str) -> Computes:
        return Computes(self.line(), why, self.found)

    def unterminated(self, what: str, start: int) -> Exception:
        line = self.text.count("\n", 0, start) + 1
        return config_error(f"{self.name}:{line}", f"{what} begins here and never ends", "close it")

    # -- statements --

    def file(self) -> dict[str, Assigned]:
        while self.to_statement():
            self.statement()
        return self.found

    def to_statement(self) -> bool:
        while self.pos < len(self.text):
            self.blanks()
            if self.peek() == "#":
                self.comment()
            elif self.peek() == "\n":
                self.pos += 1
            else:
                break
        return self.pos < len(self.text)

    def blanks(self) -> None:
        found = _BLANK.match(self.text, self.pos)
        if found:
            self.pos = found.end()

    def comment(self) -> None:
        end = self.text.find("\n", self.pos)
        self.pos = len(self.text) if end < 0 else end

    def statement(self) -> None:
        """One simple command: assignments up to a newline or `;`."""
        exporting = self.exports()
        assigned: list[str] = []
        while True:
            if name := self.assignment():
                assigned.append(name)
            else:
                if not exporting:
                    for name in assigned:  # they are the command's own: A=1 cmd
                        self.found.pop(name, None)
                    raise self.command()
                name = self.take_name()
                if not name or self.peek() not in ("", *_META):
                    raise self.computes("exports something that is no assignment")
            self.blanks()
            if self.peek() in ("", "\n"):
                return
            if self.peek() == "#" and self.text[self.pos - 1] in " \t":
                self.comment()
                return
            if self.peek() == ";":
                if self.peek(2) == ";;":
                    raise self.computes("is not made of assignments alone")
                self.pos += 1
                return
            if self.peek() in _META:
                raise self.computes(f"uses `{self.peek()}` outside of quotes")

    def exports(self) -> bool:
        found = re.compile(r"export(?:[ \t]|\\\n)+").match(self.text, self.pos)
        if found:
            self.pos = found.end()
            if self.peek() == "-":
                raise self.computes("exports with options")
        return bool(found)

    def take_name(self) -> str:
        found = _NAME.match(self.text, self.pos)
        if found:
            self.pos = found.end()
        return found[0] if found else ""

    def assignment(self) -> str:
        """Take one assignment; the variable's name, or "" where none stands."""
        start = self.pos
        name = self.take_name()
        append = self.peek(2) == "+="
        if name and self.peek() == "[":
            raise self.computes("assigns an element, whose index bash evaluates")
        if not name or not (append or self.peek() == "="):
            self.pos = start
            return ""
        line = self.line()
        self.pos += 2 if append else 1
        if name in _SPECIAL:
            raise self.computes(f"assigns {name}, which means something to bash itself")
        value: Value = self.array() if self.peek() == "(" else self.word(array=False)
        old = self.known.get(name)
        if append:
            value = self.appended(old, value)
        elif isinstance(old, tuple) and isinstance(value, str):
            raise self.computes(f"assigns an element of the array {name}")
        self.known[name] = value
        self.found[name] = Assigned(value, line)
        return name

    def appended(self, old: Value | None, value: Value) -> Value:
        if old is None:
            return value
        if isinstance(old, str) and isinstance(value, str):
            return old + value
        if isinstance(old, tuple) and isinstance(value, tuple):
            return old + value
        raise self.computes("appends a text to an array")

    def command(self) -> Computes:
        """Why a statement that is no assignment computes."""
        found = _WORD.match(self.text, self.pos)
        word = found[0] if found else self.peek()
        if self.peek(2) == "((":
            return self.computes("does arithmetic")
        after = re.compile(r"[ \t]*\(").match(self.text, self.pos + len(word))
        if found and after:
            return self.computes(f"defines a function ({word})")
        shown = word if word.isprintable() else ascii(word)
        return self.computes(_KEYWORDS.get(word, f"runs a command ({shown[:30]})"))

    # -- values --

    def array(self) -> tuple[str, ...]:
        start = self.pos
        self.pos += 1
        items: list[str] = []
        while True:
            while self.peek() in (" ", "\t", "\n") or self.peek(2) == "\\\n":
                self.pos += 2 if self.peek() == "\\" else 1
                if self.peek() == "#":
                    self.comment()
            if self.peek() == "#" and self.text[self.pos - 1] == "(":
                self.comment()
                continue
            if self.peek() == "":
                raise self.unterminated("an array", start)
            if self.peek() == ")":
                self.pos += 1
                break
            if self.peek() in _META:
                raise self.computes(f"uses `{self.peek()}` outside of quotes")
            items.append(self.word(array=True))
        if self.peek() not in ("", *_META):
            raise self.computes("has text right after an array")
        return tuple(items)

    def word(self, *, array: bool) -> str:
        """One word, expanded; in an array bash would also split and glob: then it computes."""
        out: list[str] = []
        tilde = True
        while (char := self.peek()) and char not in _META:
            if char == "~" and tilde:
                out.append(self.tilde())
                tilde = False
                continue
            tilde = char == ":" and not array
            if char == "'":
                out.append(self.single())
            elif char == '"':
                out.append(self.double())
            elif char == "\\":
                self.pos += 2
                taken = self.text[self.pos - 1 : self.pos]
                out.append("" if taken == "\n" else taken)
            elif char in "$`":
                out.append(self.dollar(quoted=False, split=array))
            elif array and char in _GLOB:
                raise self.computes(f"uses the pattern character `{char}` in a list")
            elif array and char in "=:" and self.text[self.pos + 1 : self.pos + 2] == "~":
                raise self.computes("uses ~ inside a word")
            else:
                out.append(char)
                self.pos += 1
        if char in ("(", "<", ">"):
            raise self.computes(f"uses `{char}` outside of quotes")
        return "".join(out)

    def tilde(self) -> str:
        following = self.text[self.pos + 1 : self.pos + 2]
        home = self.known.get("HOME")
        if following not in ("", "/", ":", *_META) or not isinstance(home, str):
            raise self.computes("uses ~ for something else than your home folder")
        self.pos += 1
        return home

    def single(self) -> str:
        start = self.pos
        end = self.text.find("'", start + 1)
        if end < 0:
            raise self.unterminated("a ' quote", start)
        self.pos = end + 1
        return self.text[start + 1 : end]

    def double(self) -> str:
        start = self.pos
        self.pos += 1
        out: list[str] = []
        while (char := self.peek()) != '"':
            if char == "":
                raise self.unterminated('a " quote', start)
            if char == "\\":
                following = self.text[self.pos + 1 : self.pos + 2]
                if following == "\n":
                    pass
                elif following and following in '$`"\\':
                    out.append(following)
                else:
                    out.append("\\" + following)
                self.pos += 2
            elif char in "$`":
                out.append(self.dollar(quoted=True, split=False))
            else:
                out.append(char)
                self.pos += 1
        self.pos += 1
        return "".join(out)

    def dollar(self, *, quoted: bool, split: bool) -> str:
        """``$…`` and backticks: a variable, a ``$'…'``, a lone ``$``, or it computes."""
        following = self.text[self.pos + 1 : self.pos + 2]
        if self.peek() == "`" or following == "(":
            raise self.computes("runs a command in $(…) or backticks")
        if following == "'" and not quoted:
            return self.ansi()
        if following == "{":
            value = self.braced()
        elif found := _NAME.match(self.text, self.pos + 1):
            value = self.variable(found[0])
            self.pos = found.end()
        elif following in _LONE or (quoted and following in "\"'"):
            self.pos += 1
            return "$"
        else:
            raise self.computes(f"uses ${following}, which only bash knows")
        if split and (not value or re.search(r"[\s*?\[\\]", value)):
            raise self.computes("splits the value of a variable into words")
        self.expanded += len(value)
        if self.expanded > EXPANDED:  # A=$A$A, forty times, is a terabyte
            raise config_error(
                f"{self.name}:{self.line()}", "expands to megabytes", "use fewer variables"
            )
        return value

    def variable(self, name: str) -> str:
        value = self.known.get(name)
        if value is None:
            raise self.computes(f"uses ${name}, which this file hasn't assigned")
        if isinstance(value, tuple):
            raise self.computes(f"uses the array {name}")
        return value

    def braced(self) -> str:
        """``${NAME}``, and ``${NAME:-text}`` or ``${NAME-text}`` with a text that is plain."""
        found = re.compile(
            r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?-)([A-Za-z0-9 _./:@%+,-]*))?\}"
        ).match(self.text, self.pos)
        if not found:
            raise self.computes("uses an expansion of ${…} that only bash knows")
        name, operator, default = found[1], found[2], found[3]
        value = self.known.get(name)
        if operator and value is None and name not in self.plain_defaults:
            raise self.computes(f"uses ${name}, which this file hasn't assigned")
        if not operator or value or (operator == "-" and value is not None):
            value = self.variable(name)
        else:
            value = default
        self.pos = found.end()
        return value

    @property
    def plain_defaults(self) -> Mapping[str, object]:
        """Names that are certainly unset when ``known`` lacks them: vmoat's own keys, which the
        caller takes from the environment into ``known``.  Any other variable of the environment
        may hold a secret that has no business in a VM."""
        from vmoat.config.table import BY_SHELL

        return BY_SHELL

    def ansi(self) -> str:
        """``$'…'`` (`man bash`, QUOTING); what gives bytes that are no ASCII is left to bash."""
        start = self.pos
        self.pos += 2
        out: list[str] = []
        while (char := self.peek()) != "'":
            if char == "":
                raise self.unterminated("a $' quote", start)
            self.pos += 1
            if char != "\\":
                out.append(char)
                continue
            code = _ANSI_CODE.match(self.text, self.pos)
            if code:
                digits = code[1] or code[2] or code[3]
                number = int(digits, 16) if digits else int(code[4], 8)
                if not 0 < number < 128 and not ((code[2] or code[3]) and 0 < number < 0xD800):
                    raise self.computes("uses a byte code in $'…'")
                out.append(chr(number))
                self.pos = code.end()
            elif self.peek() in _ANSI:
                out.append(_ANSI[self.peek()])
                self.pos += 1
            else:
                raise self.computes("uses an escape in $'…' that only bash knows")
        self.pos += 1
        return "".join(out)
