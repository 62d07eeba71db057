"""The Homebrew formula: ``python render.py REQUIREMENT``, on standard output.

pip says what the project needs, and where each source distribution is and what its digest is
(``pip install --dry-run --report``, the installation report of pip's documentation), so that
nothing stands here by hand.  Homebrew builds from source: hence the second question, a distribution
at a time, so that what builds them may come as a wheel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]


def report(*words: str) -> list[dict[str, Any]]:
    """What pip would install, by its own report."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
         "--report", "-", *words],
        check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return found


def sources(requirement: str) -> list[dict[str, Any]]:
    """The project and all that it needs, each as a source distribution."""
    found = []
    for entry in report(requirement):
        name, version = entry["metadata"]["name"], entry["metadata"]["version"]
        found += report("--no-deps", "--no-binary", name, f"{name}=={version}")
    return found


def parts(entries: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Name, address and digest of each distribution, by name."""
    rows = [
        {
            "name": entry["metadata"]["name"],
            "url": entry["download_info"]["url"],
            "sha256": entry["download_info"]["archive_info"]["hashes"]["sha256"],
        }
        for entry in entries
    ]
    return sorted(rows, key=lambda row: row["name"].lower())


def homepage() -> str:
    """Where the project lives: of pyproject.toml, else the repository that runs the release."""
    found: str = PROJECT.get("urls", {}).get("Homepage", "")
    server, name = (os.environ.get(f"GITHUB_{key}", "") for key in ("SERVER_URL", "REPOSITORY"))
    return found or f"{server}/{name}"


def render(rows: list[dict[str, str]]) -> str:
    """The formula; raises StopIteration where the project itself is not among the rows."""
    env = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    main = next(row for row in rows if row["name"] == PROJECT["name"])
    return env.from_string((HERE / "vmoat.rb.j2").read_text()).render(
        description=PROJECT["description"],
        homepage=homepage(),
        license=PROJECT["license"],
        main=main,
        resources=[row for row in rows if row is not main],
    )


if __name__ == "__main__":
    sys.stdout.write(render(parts(sources(sys.argv[1]))))
