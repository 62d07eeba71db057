"""A vmoat.conf that computes: which files it takes in, and what bash makes of it once trusted.

Nothing here decides about trust: ``evaluate`` is called by ``vmoat.config.trust`` alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from vmoat.config.errors import config_error
from vmoat.config.files import decode, exists, read_bytes
from vmoat.config.shell_form import Computes, Value, parse, word_at
from vmoat.config.sources import Code, Layer, Project, known_variables
from vmoat.config.table import BY_SHELL, PROJECT_SHELL
from vmoat.config.toml_form import Given
from vmoat.errors import Code as ExitCode
from vmoat.errors import VmoatError

TIMEOUT: float = 30
FILES = 64
SCRIPT_LIMIT = 8 << 20
"""Seconds for bash; how many files a config may take in, and bytes of each."""

_HERE = "__vmoat_here"
# Ways to say "the folder of this file" or "the worktree"; the config lies at the worktree's top.
_HERE_FORMS = re.compile(
    r"""\$\(\s*(?:dirname\s+(?:--\s+)?"?\$\{?BASH_SOURCE(?:\[0\])?\}?"?"""
    r"""|git\s+rev-parse\s+--show-toplevel|pwd)\s*\)|\$\{BASH_SOURCE(?:\[0\])?%/\*\}"""
    r"""|\$PWD\b|\$\{PWD\}"""
)
_CD_PWD = re.compile(
    r"""\$\(\s*cd\s+(?:--\s+)?(?:"\$\{__vmoat_here\}"|\$\{__vmoat_here\})\s*&&\s*pwd\s*\)"""
)
_OPEN = re.compile(r"\$\(|[(`]")
_TOKEN = re.compile(r"[^\s;&|()<>\"'`$={}]+")
_WORD = re.compile(r"[^ \t\n;&|()<>#\"'`$\\]+")
_TRANSPARENT = frozenset(
    ("then", "do", "else", "elif", "if", "while", "until", "time", "{", "!", "builtin", "command",
     "exec", "env", "eval")
)  # fmt: skip


def follow(project: Project, env: Mapping[str, str]) -> Project:
    """The project with every file that its code sources or names in ``contents``.

    Files of the worktree that stand on a computing line (`$(./cpus.sh)`) count too: they are about
    to run on the host.  Raises CONFIG for a `source` whose file only bash could tell.
    """
    found: dict[str, bytes | None] = dict(project.contents)
    code = list(project.code)
    waiting = [(name, data) for name, data in project.contents if data is not None]
    while waiting:
        name, data = waiting.pop(0)
        # A program that is named, not sourced, may be anything but a text.
        text = data.decode("utf-8", "replace") if name not in PROJECT_SHELL else decode(data, name)
        for path, line, sourced in _named(project, text, name, env):
            label = _label(project.root, path)
            if label in found:
                continue
            if len(found) >= FILES:
                raise config_error(
                    f"{name}:{line}", f"takes in more than {FILES} files", "source fewer"
                )
            found[label] = read_bytes(path, label, SCRIPT_LIMIT) if exists(path) else None
            verb = "sources" if sourced else "names"
            code.append(Code(name, line, f"{verb} {label}", text.split("\n")[line - 1].strip()))
            content = found[label]
            if sourced and content is not None:
                waiting.append((label, content))
    return replace(project, contents=tuple(sorted(found.items())), code=tuple(code))


def _label(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _named(
    project: Project, text: str, name: str, env: Mapping[str, str]
) -> Iterator[tuple[Path, int, bool]]:
    """(file, line, whether sourced) of all that the code of one file takes in."""
    plain = _HERE_FORMS.sub("${" + _HERE + "}", text)
    plain = _CD_PWD.sub("${" + _HERE + "}", plain)
    known: dict[str, Value] = {**known_variables(env), _HERE: str(project.root)}
    rows = plain.split("\n")
    computing: list[int] = []
    for number, row in enumerate(rows, 1):
        try:
            known |= {key: item.value for key, item in parse(row, name, known).items()}
        except (Computes, VmoatError):
            computing.append(number)
    for line, start in source_places(plain):
        try:
            word = word_at(plain, start, known)
        except (Computes, VmoatError) as error:
            raise config_error(
                f"{name}:{line}",
                "sources a file that only bash can name, so that trust couldn't cover it",
                'name the file plainly, for example: source "$HOME/shared.conf"',
            ) from error
        if word:
            yield project.root / word, line, True
    for number in computing:
        for token in _TOKEN.findall(rows[number - 1]):
            path = project.root / token
            if _is_file_inside(project.root, path):
                yield path, number, False


def _is_file_inside(root: Path, path: Path) -> bool:
    try:
        return path.is_file() and path.is_relative_to(root)
    except (OSError, ValueError):
        return False


def source_places(text: str) -> list[tuple[int, int]]:
    """(line, position of the argument) of each `source` and `.` that stands where a command may.

    A scanner of quotes and substitutions, no parser; in doubt it takes a word for a command.
    """
    found: list[tuple[int, int]] = []
    stack = ["("]
    pos, fresh = 0, True
    while pos < len(text):
        char = text[pos]
        if char == "\\":
            pos += 2
        elif char == '"':
            if stack[-1] == '"':
                stack.pop()
            else:
                stack.append('"')
            pos, fresh = pos + 1, False
        elif char == "`":
            if "`" in stack:
                del stack[stack.index("`") :]
            else:
                stack.append("`")
            pos, fresh = pos + 1, True
        elif text.startswith("$(", pos):
            stack.append("(")
            pos, fresh = pos + 2, True
        elif stack[-1] == '"':
            pos += 1
        elif char == "'":
            end = text.find("'", pos + 1)
            pos, fresh = (end + 1 if end >= 0 else len(text)), False
        elif char == "(":
            stack.append("(")
            pos, fresh = pos + 1, True
        elif char == ")":
            if len(stack) > 1:
                stack.pop()
            pos, fresh = pos + 1, True
        elif char == "#" and (pos == 0 or text[pos - 1] in " \t\n;"):
            end = text.find("\n", pos)
            pos = end if end >= 0 else len(text)
        elif char in "\n;&|":
            pos, fresh = pos + 1, True
        elif char in " \t<>$#":
            pos += 1
        else:
            word = _WORD.match(text, pos)
            assert word is not None  # every other character begins a word
            pos = word.end()
            if fresh and word[0] in ("source", "."):
                found.append((text.count("\n", 0, word.start()) + 1, pos))
                fresh = False
            else:
                fresh = fresh and (word[0] in _TRANSPARENT or "=" in word[0])
    return found


_SCRIPT = r"""
exec 3>&1 1>&2
shopt -u sourcepath
%(check)s
set --
%(source)s
set +eux
trap - EXIT DEBUG ERR RETURN
for __vmoat_key in %(keys)s; do
  __vmoat_type=$(builtin declare -p "$__vmoat_key" 2>/dev/null) || continue
  case ${__vmoat_type%%%%"$__vmoat_key"*} in
    *-*a*) __vmoat_type=a ;;
    *) __vmoat_type=s ;;
  esac
  __vmoat_all="${__vmoat_key}[@]"
  set -- "${!__vmoat_all}"
  builtin printf '%%s\0%%s\0%%d\0' "$__vmoat_key" "$__vmoat_type" "$#" >&3
  [ "$#" -gt 0 ] && builtin printf '%%s\0' "$@" >&3
done
builtin printf 'end\0' >&3
"""


def bash_argv(project: Project) -> list[str]:
    """How bash is called: ``-p``, so that neither BASH_ENV nor functions and options from the
    environment count (`man bash`, "privileged")."""
    names = [name for name, data in project.contents if name in PROJECT_SHELL and data is not None]
    names.sort(key=PROJECT_SHELL.index)
    files = [shlex.quote(str(project.root / name)) for name in names]
    script = _SCRIPT % {
        # `source` goes on after a syntax error.
        "check": "\n".join(f'"$BASH" -p -n {file} || exit' for file in files),
        "source": "\n".join(f"source {file}" for file in files),
        "keys": " ".join(_mentioned(project)),
    }
    return ["bash", "--noprofile", "--norc", "-p", "-c", script]


def _mentioned(project: Project) -> list[str]:
    """The keys that the files name: others of the environment aren't the config's."""
    everything = b"\n".join(data for _, data in project.contents if data)
    return [key for key in BY_SHELL if re.search(rb"\b%s\b" % key.encode(), everything)]


def evaluate(project: Project, env: Mapping[str, str]) -> Project:
    """Run a TRUSTED project's files by bash; the project with its layers.

    Raises CONFIG when bash fails or takes longer than TIMEOUT, MISSING without bash.
    """
    from vmoat import proc

    names = [code.file for code in project.code]
    where = f"{names[0]}:{project.code[0].line}"
    argv = bash_argv(project)
    if proc.which("timeout"):
        # It ends bash's children with it, whose open pipes would keep us waiting otherwise.
        argv = ["timeout", "-k", "1", f"{TIMEOUT:g}", *argv]
    try:
        with _as_it_was_read(project) as (prefix, fds):
            result = proc.run(
                [*prefix, *argv],
                cwd=project.root,
                env={"HOME": known_variables(env)["HOME"]},
                timeout=TIMEOUT + 5,
                check=False,
                pass_fds=fds,
            )
        late = result.rc in (124, 137)  # `man timeout`, EXIT STATUS
    except VmoatError as error:
        if error.code != ExitCode.TIMEOUT:
            raise
        late = True
    if late:
        raise config_error(
            where, f"bash was not done with it after {TIMEOUT:g} s", "make it quicker"
        )
    fields = result.out.split("\0")
    if fields[-2:] != ["end", ""]:
        raise config_error(
            where,
            "bash didn't come to the end of it",
            f"try `bash -n {names[0]}`; a config must not `exit`",
            details=result.last_lines(),
        )
    return replace(project, layers=tuple(_layers(project, _values(fields[:-2]))))


@contextlib.contextmanager
def _as_it_was_read(project: Project) -> Iterator[tuple[list[str], list[int]]]:
    """A sandbox's arguments (and its open files) in which each file holds the bytes of the digest.

    Trust is for these bytes; on the disk a VM may have put others in their place since, where the
    host replaced a file that was walled off.  Without bubblewrap no VM runs (or one without
    walls), and bash reads the files themselves.
    """
    from vmoat import proc

    bwrap = proc.which("bwrap")
    probe = [str(bwrap), "--die-with-parent", "--dev-bind", "/", "/", "true"]
    if not bwrap or proc.run(probe, check=False, timeout=TIMEOUT).rc != 0:
        yield [], []
        return
    with contextlib.ExitStack() as files:
        words, fds = probe[:-1], []
        for name, data in project.contents:
            path = os.path.realpath(project.root / name)
            if data is None or not os.path.isfile(path):  # bubblewrap would make one
                continue
            file = files.enter_context(tempfile.TemporaryFile())
            file.write(data)
            file.seek(0)
            fds.append(file.fileno())
            mode = "0755" if os.access(path, os.X_OK) else "0644"
            words += ["--perms", mode, "--ro-bind-data", str(file.fileno()), path]
        yield [*words, "--chdir", str(project.root), "--"], fds


def _values(fields: list[str]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    rest = iter(fields)
    for key in rest:
        kind, count = next(rest), int(next(rest))
        items = tuple(next(rest) for _ in range(count))
        found[key] = items if kind == "a" else "".join(items[:1])
    return found


def _layers(project: Project, values: Mapping[str, Value]) -> Iterator[Layer]:
    """Each value goes to the last file that assigns it, as far as the text tells."""
    texts = {name: (data or b"").decode("utf-8", "replace") for name, data in project.contents}
    order = [name for name in texts if name not in PROJECT_SHELL]
    order += [name for name in PROJECT_SHELL if name in texts]
    placed: dict[str, dict[str, Given]] = {name: {} for name in order}
    for key, value in values.items():
        for name in reversed(order):
            places = [m.start() for m in re.finditer(rf"\b{key}\+?=", texts[name])]
            if places:
                line = texts[name].count("\n", 0, places[-1]) + 1
                placed[name][BY_SHELL[key].key] = Given(value, line)
                break
        else:
            placed[order[-1]][BY_SHELL[key].key] = Given(value, 0)
    for name, given in placed.items():
        yield Layer("local" if ".local." in name else "project", name, "shell", given, {})
