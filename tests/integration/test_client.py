"""The plugin in the real Claude Code, without a login: it validates, installs, fires its hooks.

The client comes from npm, of the one version that was tried, into a folder that is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CLIENT = "@anthropic-ai/claude-code@2.1.330"
INSTALL_LIMIT = 400

VMOAT = """\
#!/bin/sh
echo "$(pwd -P) $*" >>"$VMOAT_CALLS"
[ "$1" != hook ] || echo '{"hookSpecificOutput": {"hookEventName": "SessionStart",
  "additionalContext": "its VM is wt-told"}}'
"""
"""Stands where an installed vmoat is, and writes down how the plugin's hooks call it."""


@pytest.fixture(scope="session")
def client() -> Path:
    """The program; installed once for all runs on this machine."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, which the client comes from")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "vmoat-tests" / CLIENT.rpartition("@")[2]
    program = folder / "node_modules/.bin/claude"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, CLIENT],
            check=True, timeout=INSTALL_LIMIT, stdin=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
    return program


class Desk:
    """A home of its own, a project with a worktree, and the client in it."""

    def __init__(self, root: Path, program: Path) -> None:
        self.program = program
        self.home, self.tree = root / "home", root / "tree"
        self.calls = root / "calls"
        (root / "bin").mkdir()
        self.home.mkdir()
        stand_in = root / "bin/vmoat"
        stand_in.write_text(VMOAT)
        stand_in.chmod(0o755)
        repo = root / "repo"
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        for words in (
            ["init", "-q", "-b", "main", repo],
            [*who, "-C", repo, "commit", "-q", "--allow-empty", "-m", "one"],
            ["-C", repo, "worktree", "add", "-q", "-b", "work", self.tree],
        ):
            subprocess.run(["git", *words], check=True, timeout=20)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC", "CLAUDE"))}
        self.env = {
            **kept,
            "HOME": str(self.home),
            "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
            "VMOAT_CALLS": str(self.calls),
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }

    def run(self, *words: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *words], cwd=cwd, env=self.env, capture_output=True, text=True,
            timeout=90, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def ok(self, *words: str | Path, cwd: Path = ROOT) -> str:
        done = self.run(*words, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def desk(tmp_path: Path, client: Path) -> Desk:
    return Desk(tmp_path, client)


def said(text: str) -> list[dict[str, Any]]:
    """The events of `--output-format stream-json`."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(
    "words",
    [("--strict", "."), ("--strict", "./plugin"), ("--profile", "directory", "./plugin")],
    ids=" ".join,
)
def test_marketplace_and_plugin_are_valid(desk: Desk, words: tuple[str, ...]) -> None:
    assert "Validation passed" in desk.ok("plugin", "validate", *words)


def test_it_is_installed_from_the_marketplace(desk: Desk) -> None:
    desk.ok("plugin", "marketplace", "add", ROOT)
    desk.ok("plugin", "install", "vmoat@vmoat")
    (entry,) = json.loads(desk.ok("plugin", "list", "--json"))
    version = json.loads((ROOT / "plugin/.claude-plugin/plugin.json").read_text())["version"]
    assert (entry["id"], entry["version"], entry["enabled"]) == ("vmoat@vmoat", version, True)
    assert "vmoat" in desk.ok("plugin", "details", "vmoat")
    # Whoever is not logged in gets no further than the first event, which is what counts here.
    done = desk.run("-p", "--output-format", "stream-json", "--verbose", "hi", cwd=desk.tree)
    (begun,) = [e for e in said(done.stdout) if (e["type"], e.get("subtype")) == ("system", "init")]
    assert "vmoat:vmoat" in begun["skills"]
    assert not begun.get("plugin_errors")
    assert "vmoat" in [plugin["name"] for plugin in begun["plugins"]]


def test_a_session_is_told_of_the_vm_and_cleans_up_at_its_end(desk: Desk) -> None:
    """What hook.sh calls proves that both hooks fire; `gc` comes from a process of its own."""
    done = desk.run(
        "-p", "--output-format", "stream-json", "--verbose", "--include-hook-events",
        "--plugin-dir", ROOT / "plugin", "hi", cwd=desk.tree,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while "/ gc --quiet" not in desk.called() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert desk.called() == [f"{desk.tree} hook facts", "/ gc --quiet"]
    hooks = [e for e in said(done.stdout) if e.get("subtype") == "hook_response"]
    starts = [e for e in hooks if e["hook_event"] == "SessionStart"]
    assert [e["outcome"] for e in starts] == ["success"]
    assert "its VM is wt-told" in starts[0]["stdout"]


def test_a_session_that_only_starts_fires_both(desk: Desk) -> None:
    desk.ok("--plugin-dir", ROOT / "plugin", "--init-only", cwd=desk.tree)
    deadline = time.monotonic() + 60
    while len(desk.called()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert desk.called() == [f"{desk.tree} hook facts", "/ gc --quiet"]
