"""The Homebrew formula of a built sdist, on stdout.

    python .github/release/formula.py --repository OWNER/NAME dist/vmoat-X.Y.Z.tar.gz

Homebrew installs Python programs from source, each dependency as a ``resource`` with its address
and digest.  Both come from pip's own report (``pip install --dry-run --report``, format 1 of pip's
"Installation Report"): once for the whole list, once more for each package's sdist.  Run it with a
Python that has vmoat's dependencies (jinja2) and pip.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from email import message_from_bytes
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

TEMPLATE = Path(__file__).with_name("formula.rb.j2")
PYTHON = "python@3.13"
"""Homebrew's formula of the Python that vmoat runs on there."""

Report = Mapping[str, Any]
AskPip = Callable[[Sequence[str]], Report]


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


def ask_pip(words: Sequence[str]) -> Report:
    """pip's report of what it would install; raises SystemExit with its last words."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "--dry-run", "--ignore-installed", "--report", "-", *words]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"pip failed: {' '.join(words)}\n{done.stderr.strip()}")
    report: Report = json.loads(done.stdout)
    return report


def resources(sdist: Path, ask: AskPip = ask_pip) -> list[Source]:
    """The sdists of everything that vmoat needs, by name."""
    pinned = [
        (item["metadata"]["name"], item["metadata"]["version"])
        for item in ask([str(sdist)])["install"]
        if not item.get("requested", False)
    ]
    return [_sdist_of(name, version, ask) for name, version in sorted(pinned, key=_by_name)]


def _by_name(pin: tuple[str, str]) -> str:
    return pin[0].lower()


def _sdist_of(name: str, version: str, ask: AskPip) -> Source:
    report = ask(["--no-deps", "--no-binary", name, f"{name}=={version}"])
    (item,) = report["install"]
    found = item["download_info"]
    if found["url"].endswith(".whl"):
        raise SystemExit(f"{name} {version} has no sdist")
    return Source(name.lower(), found["url"], found["archive_info"]["hashes"]["sha256"])


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
        # `brew style` wants neither a full stop nor more than 80 characters
        summary=said.summary.rstrip(".")[:80],
        license=said.license,
        python=PYTHON,
        resources=needed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the Homebrew formula of an sdist.")
    parser.add_argument("--repository", required=True, metavar="OWNER/NAME")
    parser.add_argument("sdist", type=Path)
    args = parser.parse_args()
    sys.stdout.write(render(args.repository, args.sdist, resources(args.sdist)))


if __name__ == "__main__":
    main()
