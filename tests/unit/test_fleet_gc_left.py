"""`vmoat gc` says of nothing that it was removed when it was not."""

from __future__ import annotations

import os
import shutil
import time

import pytest
from test_fleet_gc import Fleet, a_runtime, age, an_image, disks_of
from test_fleet_gc import fleet as fleet

from vmoat import locks, paths
from vmoat.drivers.qemu import image
from vmoat.fleet import gc, rows
from vmoat.state import VmLock


def the_plan() -> gc.Plan:
    return gc.plan(rows.rows(), grace=1, current=image.digest(""), now=time.time())


def test_what_somebody_takes_between_the_look_and_the_removal_is_told_as_left(
    fleet: Fleet,
) -> None:
    fleet.vm(fleet.world.tree)
    for digest in ("oldimage", "wanted"):
        an_image(digest)
    plan = the_plan()
    assert [item.name for item in plan.items] == ["oldimage", "wanted"]
    disks_of("a" * 16, data=True, stands_on="wanted")
    with locks.in_turn(paths.images_dir() / ".oldimage.lock"):
        items = gc.carry_out(plan)
    assert [(item.name, item.done, item.note) for item in items] == [
        ("oldimage", False, "somebody works with it"), ("wanted", False, "a VM has it by now"),
    ]  # fmt: skip


def test_a_draft_of_a_vm_that_is_worked_on_is_told_as_left(fleet: Fleet) -> None:
    mine = fleet.vm(fleet.world.tree)
    folder = paths.disks_dir(mine.name)
    folder.mkdir(parents=True)
    (folder / ".new-1234-data.raw").write_text("x")
    plan = the_plan()
    lock = VmLock(mine.folder)
    assert lock.take()
    (item,) = gc.carry_out(plan)
    lock.free()
    assert (item.kind, item.done, item.note) == ("draft", False, "somebody works with it")


def test_what_cannot_be_removed_is_an_error(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.make_private(paths.vms_dir())
    sockets = a_runtime(os.urandom(8).hex(), paths.vms_dir())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *words, **more: None)
        (item,) = gc.carry_out(the_plan())
    assert (item.done, item.failed) == (False, True)
    assert f"{sockets} could not be removed" in item.note
    (item,) = gc.carry_out(the_plan())
    assert item.done


def test_what_a_killed_removal_left_of_an_image_is_removed_by_the_next(fleet: Fleet) -> None:
    fleet.vm(fleet.world.tree)
    folder = an_image("oldimage")
    (folder / image.PARTS[0]).unlink()
    age(folder)
    (item,) = gc.carry_out(the_plan())
    assert (item.kind, item.done, folder.exists()) == ("image", True, False)
