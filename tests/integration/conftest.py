"""Fixtures of the tests with real VMs.

``vm`` is the golden one: its stack is up, and a test leaves it as it found it.  ``second`` is
another worktree of the same repository, for tests that break what they touch; each of them ends
with a VM that ``vmoat up`` has repaired.  Files are run in an order that serves both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab import Lab, Vm, add_worktree

from vmoat import paths
from vmoat.errors import VmoatError

if TYPE_CHECKING:
    from vmoat.guest import Guest

ORDER = ("test_up", "test_inside", "test_guest_stage", "test_walls", "test_bad_input",
         "test_mcp_session", "test_daily", "test_agents", "test_two", "test_watch_files",
         "test_dev_server", "test_browser", "test_two_agents", "test_fleet", "test_idle",
         "test_cache", "test_odds", "test_local", "test_logins", "test_kills",
         "test_driver_contract", "test_virtiofs", "test_repair", "test_host",
         "test_user")  # fmt: skip
"""Files that only look come first; the last ones break things.

``test_two`` is the first that wants the second VM: it starts it beside the golden one.
"""

BUILD_LIMIT = 1500
"""Seconds for the golden image, on a machine that never built it."""

CONSOLE_LINES = 40


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return ORDER.index(name) if name in ORDER else -1

    items.sort(key=rank)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The machine's image, and folders of vmoat for this run; skips where no VM can run.

    ``VMOAT_TESTS_LAB=DIR`` keeps VMs between runs in DIR, for work on one test;
    ``VMOAT_TESTS_NEED_VM=1`` fails where others skip.
    """
    from vmoat.drivers import load

    try:
        load("qemu").check(walls=True)
    except VmoatError as error:
        if os.environ.get("VMOAT_TESTS_NEED_VM"):
            raise
        pytest.skip(f"no VM can run here: {error.message} ({error.hint})")
    started = time.monotonic()
    built = subprocess.run(
        [sys.executable, "-P", "-m", "vmoat", "image", "build"],
        capture_output=True, text=True, timeout=BUILD_LIMIT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert built.returncode == 0, f"the image could not be built\n{built.stderr[-3000:]}"
    kept = os.environ.get("VMOAT_TESTS_LAB", "")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("lab")
    place = Lab(folder, paths.images_dir())
    place.figure("image build (0: it was there)", time.monotonic() - started, "")
    _OPEN.append(place)
    yield place
    if not kept:
        place.close()


_OPEN: list[Lab] = []


@pytest.fixture(scope="session")
def repository(lab: Lab) -> Path:
    """The main checkout."""
    return lab.repository("shop")


@pytest.fixture(scope="session")
def golden(lab: Lab, repository: Path) -> Vm:
    """A worktree whose VM has not been started (``test_up`` starts it first)."""
    return lab.vm(add_worktree(repository, lab.folder / "wt" / "golden", "golden"), repository)


@pytest.fixture(scope="session")
def first_up(lab: Lab, golden: Vm) -> str:
    """What the golden VM's first ``up`` said."""
    began = time.monotonic()
    story = golden.up("-v")
    lab.figure("first up", time.monotonic() - began, "≤ 120 s")
    return story


@pytest.fixture
def vm(golden: Vm, first_up: str) -> Vm:
    """The golden VM, up."""
    return golden


@pytest.fixture(scope="session")
def guest(golden: Vm, first_up: str) -> Guest:
    """The golden VM's guest, connected."""
    from vmoat import context

    before = dict(os.environ)
    os.environ.update(golden.home.env())
    try:
        found = context.load(golden.worktree).guest
    finally:
        os.environ.clear()
        os.environ.update(before)
    found.connect(60)
    return found


ODD = "it's a $HOME \"wt\" `x`; ü"
"""A worktree's folder name that breaks whatever quotes wrongly."""


@pytest.fixture(scope="session")
def odd(lab: Lab, repository: Path) -> Vm:
    """The second worktree, in a folder with an odd name; nothing is started yet."""
    return lab.vm(add_worktree(repository, lab.folder / "wt" / ODD, "odd"), repository)


@pytest.fixture
def second(odd: Vm, first_up: str) -> Vm:
    """The second worktree's VM, up."""
    odd.up()
    return odd


# --- reports


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """What the VMs of a failed test last said."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "teardown" or not report.failed:
        return
    known = [vm for vm in getattr(item, "funcargs", {}).values() if isinstance(vm, Vm)]
    for vm in known or [vm for place in _OPEN for vm in place.vms]:
        try:
            sections = last_words(vm)
        except (OSError, AssertionError, subprocess.SubprocessError):
            continue
        report.sections += sections


def last_words(vm: Vm) -> list[tuple[str, str]]:
    found = []
    for name in ("console.log", "qemu.log", "driver.toml", "stages.toml", "worker.err"):
        file = vm.folder / name
        if file.is_file():
            lines = file.read_text(errors="replace").splitlines()[-CONSOLE_LINES:]
            found.append((f"{vm.name}: {name}", "\n".join(lines)))
    rows = [str(event) for event in vm.events()[-CONSOLE_LINES:]]
    return [*found, (f"{vm.name}: events", "\n".join(rows))]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    figures = [row for place in _OPEN for row in place.figures]
    if figures:
        terminalreporter.section("figures of this machine")
    for name, seconds, limit in figures:
        terminalreporter.write_line(f"{name:<40} {seconds:7.2f} s  {limit}")
