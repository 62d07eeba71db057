"""The Homebrew formula of a built sdist, on stdout.

    uv pip compile --format pylock.toml --python-platform macos -o pylock.macos.toml pyproject.toml
    uv pip compile --format pylock.toml --python-platform linux -o pylock.linux.toml pyproject.toml
    python .github/release/formula.py --repository OWNER/NAME dist/vmoat-X.Y.Z.tar.gz pylock.*.toml

Homebrew installs Python programs from source, each dependency as a ``resource`` with its address
and digest.  Both stand in a lock file as PEP 751 has it (``[[packages]]``, ``sdist``), which uv
writes without building anything; pip's own report would build each package for its metadata.  Run
it with a Python that has jinja2.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from email import message_from_bytes
from pathlib import Path
from typing import NamedTuple

import jinja2

TEMPLATE = Path(__file__).with_name("formula.rb.j2")
PYTHON = "python@3.13"
"""Homebrew's formula of the Python that vmoat runs on there."""


class Source(NamedTuple):
    """A source archive: whose, where it is, its digest."""

    name: str
    url: str
    sha256: str


class About(NamedTuple):
    """What the sdist says of itself."""

    version: str
    summary: str
    license: str


def resources(locks: Sequence[Path]) -> list[Source]:
    """The sdists of everything that vmoat needs on these platforms, by name.

    Raises SystemExit for a package without one, and where two locks disagree.
    """
    found: dict[str, tuple[str, Source]] = {}
    for lock in locks:
        for package in tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]:
            name, version = package["name"], package["version"]
            if "sdist" not in package:
                raise SystemExit(f"{name} {version} has no sdist")
            sdist = package["sdist"]
            source = Source(name, sdist["url"], sdist["hashes"]["sha256"])
            if found.setdefault(name, (version, source)) != (version, source):
                raise SystemExit(f"{lock}: {name} {version}, but {found[name][0]} elsewhere")
    return [source for _, (_, source) in sorted(found.items())]


def about(sdist: Path) -> About:
    """Read PKG-INFO of an sdist."""
    with tarfile.open(sdist) as tar:
        file = tar.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert file is not None
        info = message_from_bytes(file.read())
    return About(info["Version"], info["Summary"], info["License-Expression"])


def render(repository: str, sdist: Path, needed: Sequence[Source]) -> str:
    """The formula's text."""
    said = about(sdist)
    homepage = f"https://github.com/{repository}"
    url = f"{homepage}/releases/download/v{said.version}/{sdist.name}"
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True,
        autoescape=False,
    )  # fmt: skip
    return environment.from_string(TEMPLATE.read_text()).render(
        homepage=homepage,
        source=Source("vmoat", url, hashlib.sha256(sdist.read_bytes()).hexdigest()),
        # `brew style` wants it short.
        summary=said.summary.partition(":")[0],
        license=said.license,
        python=PYTHON,
        resources=needed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the Homebrew formula of an sdist.")
    parser.add_argument("--repository", required=True, metavar="OWNER/NAME")
    parser.add_argument("sdist", type=Path)
    parser.add_argument("locks", type=Path, nargs="+")
    args = parser.parse_args()
    sys.stdout.write(render(args.repository, args.sdist, resources(args.locks)))


if __name__ == "__main__":
    main()
