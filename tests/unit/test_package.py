"""What is shipped: packages, data files, a wheel and an sdist that install and run."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import vmoat

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TABLE = PROJECT["tool"]["setuptools"]
SHIPPED = ("vmoat", "tasks", "templates", "plugin")
HEAVY = ("doit", "plumbum", "jinja2", "tomli_w", "platformdirs", "rich")
MOST_LINES = 465


def python(*words: str, **env: str) -> str:
    """A Python of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, text=True, timeout=120,
        env={**os.environ, **env},
    )  # fmt: skip
    return done.stdout


def test_the_package_list_is_the_folders() -> None:
    found = []
    for top in SHIPPED:
        name = top if top == "vmoat" else f"vmoat.{top}"
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / top).parts
            found.append(".".join((name, *parts)))
    assert sorted(TABLE["packages"]) == sorted(found)


def test_every_module_is_in_a_package() -> None:
    stray = [
        str(path.relative_to(ROOT))
        for top in SHIPPED
        for path in (ROOT / top).rglob("*.py")
        if not (path.parent / "__init__.py").is_file()
    ]
    assert stray == []


def test_modules_are_of_a_size_to_read() -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for top in SHIPPED
        for path in (ROOT / top).rglob("*.py")
    }
    assert {name: size for name, size in sizes.items() if size > MOST_LINES} == {}


@pytest.mark.parametrize("command", ["name", "version", "help"])
def test_quick_commands_load_nothing_heavy(command: str, tmp_path: Path) -> None:
    repository = tmp_path / "tree"
    subprocess.run(["git", "init", "-q", str(repository)], check=True, timeout=60)
    code = (
        "import sys\nfrom vmoat.cli import main\n"
        f"code = main(['-C', {str(repository)!r}, {command!r}])\n"
        f"print(code, sorted(set(sys.modules) & {set(HEAVY)!r}))"
    )
    env = {f"XDG_{name}_HOME": str(tmp_path / name) for name in ("STATE", "DATA", "CONFIG")}
    for _ in range(2):  # `name` is claimed by the first call
        assert python("-c", code, **env).splitlines()[-1] == "0 []"


def test_dependencies_are_loaded_where_they_are_used_only() -> None:
    """doit by the graph, rich by the view, plumbum by the one door to programs."""
    users: dict[str, set[str]] = {name: set() for name in ("doit", "rich", "plumbum")}
    for path in (ROOT / "vmoat").rglob("*.py"):
        imported = re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
        for name in users.keys() & set(imported):
            users[name].add(path.stem)
    assert users == {"doit": {"graph"}, "rich": {"view"}, "plumbum": {"proc"}}


# --- built ----------------------------------------------------------------------------------------


def _isolated() -> bool:
    """Whether the build must fetch its own setuptools: the one here may be absent or too old."""
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) < 77
    except importlib.metadata.PackageNotFoundError:
        return True


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and the wheel built from it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (*SHIPPED, "pyproject.toml", "README.md", "LICENSE"):
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(path, source / name, ignore=ignored)
        else:
            shutil.copy(path, source / name)
    words = [] if _isolated() else ["--no-isolation"]
    python("-m", "build", *words, "--outdir", str(target), str(source))
    return target


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def data_files() -> list[str]:
    """What is no Python file, by its path in the wheel."""
    found = ["vmoat/py.typed"]
    tops = {
        "templates": "vmoat/templates",
        "vmoat/dashboard/page": "vmoat/dashboard/page",
        "vmoat/docs": "vmoat/docs",
        "vmoat/schemas": "vmoat/schemas",
        "plugin/skills": "vmoat/plugin/skills",
    }
    for top, where in tops.items():
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                found.append(f"{where}/{path.relative_to(ROOT / top)}")
    return found


def test_every_data_file_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert [name for name in data_files() if name not in names] == []
    assert {"vmoat/tasks/stack.py", "vmoat/templates/guest/packages"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tasks/", "templates/", "tests/", "plugin/")) for name in names)


def test_the_index_would_take_them(built: Path) -> None:
    """twine's check, warnings included: the README renders, the metadata is whole."""
    said = python("-m", "twine", "check", "--strict", *map(str, built.iterdir()))
    assert said.count("PASSED") == 2


def test_the_version_is_the_same_everywhere(wheel: Path, built: Path) -> None:
    """It stands in vmoat/__init__.py alone; what is made from it says the same."""
    version = vmoat.__version__
    assert "version" not in PROJECT["project"]
    assert wheel.name.startswith(f"vmoat-{version}-")
    assert (built / f"vmoat-{version}.tar.gz").is_file()
    heading = re.search(r"^## \[([^]]+)\] - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading
    assert heading[1] == version
    page = zipfile.ZipFile(wheel).read(f"vmoat-{version}.data/data/share/man/man1/vmoat.1")
    assert f'"vmoat {version}"'.encode() in page


def test_the_sdist_holds_what_the_wheel_is_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"tasks/stack.py", "templates/guest/packages", "README.md", "LICENSE"} <= names


def test_the_wheel_runs_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """Without one of its dependencies: `version` and `help` need none."""
    venv.create(tmp_path / "env", with_pip=False)
    inner = tmp_path / "env" / "bin"
    python("-m", "pip", "--python", str(inner / "python"), "install", "-q", "--no-deps",
           "--no-index", "--disable-pip-version-check", str(wheel))  # fmt: skip
    done = subprocess.run(
        [str(inner / "vmoat"), "version"], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"vmoat {vmoat.__version__}\n"
    code = (
        "from vmoat import demo\nfrom vmoat.drivers.qemu import image\nfrom pathlib import Path\n"
        "demo.write_files(Path('shop')); print(image.digest(''))"
    )
    page = inner.parent / "share/man/man1/vmoat.1"
    assert page.read_text() == (ROOT / "vmoat/docs/vmoat.1").read_text()
    # The dependencies of the running environment, behind the installed package.
    site = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
    digest = subprocess.run(
        [str(inner / "python"), "-c", code], check=True, capture_output=True, text=True,
        timeout=60, cwd=tmp_path, env={**os.environ, "PYTHONPATH": site},
    ).stdout.strip()  # fmt: skip
    assert (tmp_path / "shop" / ".gitignore").is_file()
    for words in (["completion", "bash"], ["help", "switching"], ["help", "walls"],
                  ["help", "agents"], ["schema", "event"]):  # fmt: skip
        done = subprocess.run(
            [str(inner / "vmoat"), *words], check=True, capture_output=True, text=True,
            timeout=60, cwd=tmp_path, env={**os.environ, "PYTHONPATH": site},
        )  # fmt: skip
        assert len(done.stdout) > 500
    # The recipe as installed is the recipe of the sources: one image serves both.
    from vmoat.drivers.qemu import image

    assert digest == image.digest("")
