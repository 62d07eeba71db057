"""What a release is made with: the changelog's form, the formula, the workflows."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

import vmoat

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github/workflows"


def script(name: str) -> ModuleType:
    """A program of .github/release as a module."""
    path = ROOT / f".github/release/{name}.py"
    spec = importlib.util.spec_from_file_location(f"release_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuples look for theirs
    spec.loader.exec_module(module)
    return module


changes, formula = script("changes"), script("formula")

# -- the changelog --

KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
"""https://keepachangelog.com/en/1.1.0/, "Types of changes"."""


def test_the_changelog_keeps_its_form() -> None:
    found = changes.sections((ROOT / "CHANGELOG.md").read_text())
    assert next(iter(found)) == vmoat.__version__ == changes.version()
    for version, (date, text) in found.items():
        assert re.fullmatch(r"\d{4}-\d\d-\d\d|unreleased", date), version
        assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= KINDS
        assert text.startswith("#") or text[0].isupper()


GOOD = (
    "# Changelog\n\n## [1.2.0] - 2026-01-31\n\n### Added\n- x\n\n## [1.1.0] - 2025-01-01\n\n- y\n"
)


@pytest.mark.parametrize(
    ("tag", "changelog", "says"),
    [
        ("v1.2.0", GOOD, ""),
        ("v1.3.0", GOOD, "the tag is v1.3.0, but"),
        ("1.2.0", GOOD, "the tag is 1.2.0"),
        ("v1.2.0", GOOD.replace("2026-01-31", "unreleased"), "write the date"),
        ("v1.2.0", GOOD.replace("[1.2.0]", "[1.4.0]"), "has no section"),
        ("v1.2.0", "## [1.3.0] - unreleased\n\n" + GOOD, "1.3.0 stands above"),
        ("v1.2.0", GOOD.replace("### Added\n- x\n", ""), "says nothing"),
        ("v1.2.0", "", "has no section"),
    ],
)
def test_a_tag_is_released_where_all_agrees(tag: str, changelog: str, says: str) -> None:
    wrong = changes.check(tag, "1.2.0", changelog)
    assert says in wrong if says else wrong == ""


def test_the_notes_are_the_versions_own() -> None:
    assert changes.sections(GOOD)["1.2.0"][1] == "### Added\n- x"


# -- the formula --


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    """As setuptools writes it, as far as the formula looks."""
    info = (
        b"Metadata-Version: 2.4\nName: vmoat\nVersion: 9.9.9\n"
        b"Summary: One ephemeral VM for every git worktree: own kernel, own Docker daemon, stock\n"
        b"License-Expression: MIT\n\nText\n"
    )
    path = tmp_path / "vmoat-9.9.9.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("vmoat-9.9.9/PKG-INFO")
        entry.size = len(info)
        tar.addfile(entry, io.BytesIO(info))
    return path


def lock(path: Path, *packages: str, sdist: bool = True, version: str = "1.0") -> Path:
    """As `uv pip compile --format pylock.toml` writes it (PEP 751)."""
    text = 'lock-version = "1.0"\ncreated-by = "uv"\n'
    for name in packages:
        text += f'\n[[packages]]\nname = "{name}"\nversion = "{version}"\n'
        for kind, suffix in (("sdist", "tar.gz"), ("wheel", "whl")):
            digest = hashlib.sha256(f"{name}.{suffix}".encode()).hexdigest()
            url = f"https://files.example.org/{name}-{version}.{suffix}"
            file = f'{{ url = "{url}", size = 1, hashes = {{ sha256 = "{digest}" }} }}'
            if kind == "wheel":
                text += f"wheels = [{file}]\n"
            elif sdist:
                text += f"sdist = {file}\n"
    path.write_text(text)
    return path


@pytest.fixture
def locks(tmp_path: Path) -> list[Path]:
    return [
        lock(tmp_path / "pylock.macos.toml", "rich", "jinja2"),
        lock(tmp_path / "pylock.linux.toml", "jinja2", "rich", "watchfiles"),
    ]


def test_the_formula_names_every_dependencys_sdist(sdist: Path, locks: list[Path]) -> None:
    needed = formula.resources(locks)
    assert [source.name for source in needed] == ["jinja2", "rich", "watchfiles"]
    assert needed[1].url == "https://files.example.org/rich-1.0.tar.gz"
    assert needed[1].sha256 == hashlib.sha256(b"rich.tar.gz").hexdigest()
    text = formula.render("someone/vmoat", sdist, needed)
    assert 'url "https://github.com/someone/vmoat/releases/download/v9.9.9/vmoat-9.9.9.tar' in text
    assert f'sha256 "{hashlib.sha256(sdist.read_bytes()).hexdigest()}"' in text
    assert re.findall(r'resource "(.+)" do', text) == ["jinja2", "rich", "watchfiles"]
    assert 'desc "One ephemeral VM for every git worktree"' in text
    assert len(re.findall(r'^ +url "https://', text, re.MULTILINE)) == 4


def test_a_dependency_without_source_is_an_error(tmp_path: Path) -> None:
    bare = lock(tmp_path / "pylock.toml", "rich", sdist=False)
    with pytest.raises(SystemExit, match=r"rich 1\.0 has no sdist"):
        formula.resources([bare])


def test_platforms_that_disagree_are_an_error(tmp_path: Path, locks: list[Path]) -> None:
    newer = lock(tmp_path / "pylock.toml", "rich", version="2.0")
    with pytest.raises(SystemExit, match=r"rich 2\.0, but 1\.0 elsewhere"):
        formula.resources([*locks, newer])


DOUBLES = """
module Language; module Python; module Virtualenv; end; end; end
class Formula
  def self.method_missing(name, *words, **more, &block)
    (@said ||= []) << [name, *words.map(&:to_s)]
    block.call if %i[on_macos resource].include?(name)
  end
  def self.test = nil # Kernel's own would be called
  def self.respond_to_missing?(*) = true
  def self.said = @said
end
load ARGV[0]
Vmoat.said.each { |words| puts words.join(" ") }
"""
"""Enough of Homebrew to load a formula: each word that its class says is printed."""


def test_ruby_takes_the_formula(sdist: Path, locks: list[Path], tmp_path: Path) -> None:
    if shutil.which("ruby") is None:
        pytest.skip("ruby is not here (apt install ruby)")
    needed = formula.resources(locks)
    path = tmp_path / "vmoat.rb"
    path.write_text(formula.render("someone/vmoat", sdist, needed))
    done = subprocess.run(["ruby", "-wc", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("Syntax OK\n", "")
    done = subprocess.run(["ruby", "-e", DOUBLES, str(path)], capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "license MIT" in said
    assert said.count("resource rich") == said.count("resource watchfiles") == 1
    assert sum(line.startswith("sha256 ") for line in said) == 4


# -- the workflows --


def test_the_linter_finds_nothing_in_the_workflows() -> None:
    """Pins, permissions, credentials that stay behind, what a name could inject."""
    zizmor = Path(sys.executable).with_name("zizmor")
    done = subprocess.run(
        [str(zizmor), "--offline", "--no-progress", "--no-config", str(ROOT / ".github")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("test.yml", "release.yml", "dependabot.yml"):
        assert f"completed .github/{'' if name[0] == 'd' else 'workflows/'}{name}" in (
            done.stderr.replace(f"{ROOT}/", "")
        )


def test_every_action_is_pinned_and_named() -> None:
    for file in WORKFLOWS.glob("*.yml"):
        for line in re.findall(r"uses: (.+)", file.read_text()):
            local = line.startswith("./.github/")
            assert local or re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_the_workflows_run_files_that_are_here() -> None:
    for file in WORKFLOWS.glob("*.yml"):
        text = file.read_text()
        named = set(re.findall(r"(?:\./)?(\.(?:github|ci)/[\w./-]+)", text))
        assert named, file.name
        assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_long_tests_and_colima_run_once_a_night() -> None:
    text = (WORKFLOWS / "test.yml").read_text()
    for mark in ("long", "colima"):
        job = text.partition(f"\n  {mark}:\n")[2].partition("\n\n")[0]
        assert "github.event_name == 'schedule'" in job
        assert f"pytest -m {mark} " in job
    assert "macos" in text.partition("\n  colima:\n")[2]
