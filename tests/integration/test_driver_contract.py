"""The promises of ``vmoat.drivers.Driver``, kept by real machines.

qemu: on the VM of a worktree that other tests use as well, one boot.  colima: where `colima` and
`limactl` are on PATH and the user is not root, two boots; ``VMOAT_TESTS_COLIMA_ARGS`` are words for
`colima start` (a local ``--disk-image``).  On recorded words: tests/unit/test_colima_driver.py.
"""

from __future__ import annotations

import gc
import os
import shlex
import shutil
from collections.abc import Iterator

import drivers_contract as contract
import pytest
from drivers_contract import Subject
from lab import Vm, git

from vmoat import paths
from vmoat.drivers import Owner, VmSpec, load

pytestmark = pytest.mark.vm


# What the driver starts outlives who started it, and here that is the test run itself.
STARTER = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@STARTER
def test_qemu(second: Vm, as_vmoat: None) -> None:
    from vmoat.context import load as context_of

    ctx = context_of(second.worktree, claim=False)
    subject = Subject(
        ctx.driver, ctx.spec, lambda: ctx.driver.status(ctx.instance.name).pids["qemu"], list
    )
    before = ctx.driver.status(subject.name)
    contract.a_look(subject)
    contract.a_kill(subject)
    contract.a_stop(subject)
    boot, disk = contract.a_start(subject)
    assert boot != before.boot, "another boot"
    assert disk == before.disk, "the same disk"
    second.cli("up")
    gc.collect()  # here, where the warning is expected


@pytest.fixture
def as_vmoat(second: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has the folders of the VM's owner."""
    for name, value in second.home.env().items():
        if name.startswith("XDG_"):
            monkeypatch.setenv(name, value)


def why_no_colima() -> str:
    if os.getuid() == 0:
        return "Lima runs no VMs for root"
    missing = [name for name in ("colima", "limactl") if shutil.which(name) is None]
    return f"not on PATH: {', '.join(missing)}" if missing else ""


@pytest.fixture
def colima(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Subject]:
    if why := why_no_colima():
        pytest.skip(why)
    root = tmp_path_factory.mktemp("c")
    for name in ("STATE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(root / name.lower()))
    main, worktree = root / "app", root / "wt"
    main.mkdir()
    git(main, "init", "-q", "-b", "main")
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    git(main, *who, "commit", "-q", "--allow-empty", "-m", "1")
    git(main, "worktree", "add", "-q", str(worktree))
    info = worktree.stat()
    spec = VmSpec(
        name="wt-contract", vm_id="c0ffee00c0ffee00", cpus=2, memory_gib=2, disk_gib=10,
        worktree=worktree, git_dir=main / ".git/worktrees/wt", common_dir=main / ".git",
        owner=Owner(worktree.owner(), info.st_uid, info.st_gid),
        start_args=tuple(shlex.split(os.environ.get("VMOAT_TESTS_COLIMA_ARGS", ""))),
    )  # fmt: skip
    paths.make_private(paths.vm_dir(spec.name))
    rows = (spec.vm_id, spec.git_dir, worktree, "colima")
    (paths.vm_dir(spec.name) / "owner").write_text("".join(f"{row}\n" for row in rows))
    yield (subject := contract.of_colima(load("colima"), spec))
    subject.driver.delete(spec.name)


@pytest.mark.colima
@pytest.mark.timeout(3600)
def test_colima(colima: Subject) -> None:
    colima.driver.check()
    contract.a_vm_that_was_never_made(colima)
    boot, disk = contract.a_start(colima)
    contract.a_look(colima)
    contract.a_kill(colima)
    contract.a_stop(colima)
    again = contract.a_start(colima)
    assert again[0] != boot, "another boot"
    assert again[1] == disk, "the same disk"
    contract.a_removal(colima)
