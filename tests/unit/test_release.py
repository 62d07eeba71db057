"""What a release is made of: one version, workflows without mistakes, a formula that is Ruby."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vmoat

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def entry(name: str) -> dict[str, Any]:
    """One distribution, as pip's report has it."""
    return {
        "metadata": {"name": name, "version": "1.0"},
        "download_info": {
            "url": f"https://index.invalid/{name}-1.0.tar.gz",
            "archive_info": {"hashes": {"sha256": "0" * 64}},
        },
    }


@pytest.fixture(scope="module")
def formula() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", GITHUB / "homebrew/render.py")
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def program(name: str) -> str:
    """A program of this environment."""
    return str(Path(sys.executable).parent / name)


def test_the_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", vmoat.__version__)
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == vmoat.__version__


def test_the_workflows_are_what_github_takes() -> None:
    assert [path.name for path in WORKFLOWS] == ["release.yml", "test.yml"]
    done = subprocess.run(
        [program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *WORKFLOWS],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_a_linter_finds_nothing_in_the_workflows() -> None:
    done = subprocess.run(
        [program("zizmor"), "--offline", "--no-progress", GITHUB / "workflows"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_actions_are_pinned() -> None:
    for path in WORKFLOWS:
        for used in re.findall(r"uses: (.*)", path.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", used), used


def test_the_formula_has_every_resource(formula: ModuleType, monkeypatch: Any) -> None:
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://git.invalid")
    monkeypatch.setenv("GITHUB_REPOSITORY", "us/vmoat")
    text = formula.render(formula.parts([entry("vmoat"), entry("doit"), entry("Jinja2")]))
    assert re.findall(r'resource "(\S+)"', text) == ["doit", "Jinja2"]
    assert 'homepage "https://git.invalid/us/vmoat"' in text
    assert text.count('sha256 "') == 3


@pytest.mark.skipif(not shutil.which("ruby"), reason="ruby is not installed")
def test_the_formula_is_ruby(formula: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "vmoat.rb"
    file.write_text(formula.render(formula.parts([entry("vmoat"), entry("doit")])))
    done = subprocess.run(["ruby", "-wc", file], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "Syntax OK", done.stderr
