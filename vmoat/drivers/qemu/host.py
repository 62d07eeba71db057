"""What the guest gets from this host: proxies, certificates, the git identity."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from vmoat import proc
from vmoat.drivers.qemu.meta import PROXIES

_LOCAL_CERTIFICATES = "/usr/local/share/ca-certificates"
_STOCK_CERTIFICATES = "/usr/share/ca-certificates"
_VARIABLES = (
    *("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
    *("GIT_SSL_CAINFO", "PIP_CERT"),
)
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----")
_LIMIT = 200


def proxies(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The proxy variables that are set, lower case first."""
    found = {}
    for name in PROXIES:
        value = env.get(name) or env.get(name.upper())
        if value and "\n" not in value:
            found[name] = value
    return found


def pem_blocks(text: str) -> list[str]:
    """The certificates in a file, without what stands between them."""
    return ["\n".join(block.split("\r\n")) for block in _PEM.findall(text)]


def _read(path: Path) -> list[str]:
    try:
        return pem_blocks(path.read_text(errors="replace"))
    except OSError:
        return []


def extra_certificates(env: Mapping[str, str] = os.environ) -> list[str]:
    """Certificates that this host trusts beyond its distribution's own.

    From the place that Debian gives to the administrator, and from the bundles that the usual
    variables name; the stock ones are left out, for the guest has its own.
    """
    found: list[str] = []
    for path in sorted(Path(_LOCAL_CERTIFICATES).glob("**/*.crt")):
        found += _read(path)
    named = [Path(env[name]) for name in _VARIABLES if env.get(name)]
    if named:
        stock = {re.sub(r"\s", "", one) for one in _stock()}
        for path in named:
            found += [one for one in _read(path) if re.sub(r"\s", "", one) not in stock]
    return list(dict.fromkeys(found))[:_LIMIT]


def _stock() -> list[str]:
    return [one for path in Path(_STOCK_CERTIFICATES).glob("**/*.crt") for one in _read(path)]


def git_identity(common_dir: Path) -> tuple[str, str]:
    """Name and email that the user commits with, for commits made in the VM."""
    answers = []
    for key in ("user.name", "user.email"):
        argv = ["git", f"--git-dir={common_dir}", "config", "--get", key]
        answers.append(proc.run(argv, check=False, timeout=20).out.strip().partition("\n")[0])
    return answers[0], answers[1]


def gitlinks(git_dir: Path, worktree: Path, depth: int = 8) -> tuple[Path, ...]:
    """Submodules in the worktree's index (mode 160000), checked out or not, and theirs."""
    argv = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    argv += [f"--git-dir={git_dir}", f"--work-tree={worktree}", "ls-files", "-s", "-z"]
    rows = proc.run(argv, cwd=worktree, check=False, timeout=120).out.split("\0")
    names = [row.partition("\t")[2] for row in rows if row.startswith("160000 ")]
    found: list[Path] = []
    for path in (worktree / name for name in names):
        found.append(path)
        inner = submodule_git_dir(path)
        if inner is not None and depth:
            found += gitlinks(inner, path, depth - 1)
    return tuple(found)


def submodule_git_dir(path: Path) -> Path | None:
    """Where a submodule's ``.git`` leads to; None where it is not checked out."""
    dot_git = path / ".git"
    if dot_git.is_symlink() or not dot_git.exists():
        return None
    if dot_git.is_dir():
        return dot_git
    try:
        text = dot_git.read_text(errors="surrogateescape").strip()
    except OSError:
        return None
    target = text.removeprefix("gitdir: ")
    return Path(os.path.normpath(path / target)) if target != text else None
