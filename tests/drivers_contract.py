"""What every driver promises (``vmoat.drivers.Driver``), as steps that their tests take."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from timing import quickest

from vmoat import paths
from vmoat.drivers import Driver, VmSpec
from vmoat.drivers.colima import homes, look, pids
from vmoat.errors import Code, VmoatError

STATUS_SECONDS = 0.05


@dataclass
class Subject:
    """A driver, and a VM of its own to try it on."""

    driver: Driver
    spec: VmSpec
    vm_pid: Callable[[], int]
    """The process that runs the VM."""
    left: Callable[[], list[str]]
    """Files and processes of the VM, however they are found."""

    @property
    def name(self) -> str:
        return self.spec.name

    def state(self) -> str:
        return self.driver.status(self.name).state


def of_colima(driver: Driver, spec: VmSpec) -> Subject:
    """A VM of the colima driver in a home of its own, real or not."""
    place = homes.place_of(spec.name)

    def vm_pid() -> int:
        found = look.machine(place)
        assert found
        return found.pid

    def left() -> list[str]:
        living = [f"process {one.pid}" for one in pids.with_mark(place.home)]
        state = [str(p) for p in paths.vm_dir(spec.name).iterdir() if p.name != "owner"]
        return files_below(place.home) + living + state

    return Subject(driver, spec, vm_pid, left)


def quiet(line: str) -> None:
    """Takes progress that nobody reads."""


def a_vm_that_was_never_made(subject: Subject) -> None:
    assert subject.state() == "absent"
    subject.driver.stop(subject.name)
    subject.driver.delete(subject.name)
    with pytest.raises(VmoatError) as caught:
        subject.driver.ssh_endpoint(subject.name)
    assert (caught.value.code, "vmoat up" in caught.value.hint) == (Code.VM, True)
    assert subject.driver.weight(subject.name) == 0


def a_start(subject: Subject) -> tuple[str, str]:
    """Create and start it, both twice; returns its boot and its disk."""
    driver, spec = subject.driver, subject.spec
    driver.create(spec, quiet)
    driver.create(spec, quiet)
    driver.start(spec, quiet)
    found = driver.status(subject.name)
    assert (found.state, found.reasons) == ("running", ())
    assert found.boot
    assert found.disk
    assert found.mount
    driver.start(spec, quiet)
    assert driver.status(subject.name).boot == found.boot, "a second start restarts nothing"
    end = driver.ssh_endpoint(subject.name)
    assert end.host == "127.0.0.1"
    assert end.key.is_file()
    assert "vmoat" in end.known_hosts.read_text(), "under the name that it is looked up by"
    assert driver.weight(subject.name) > 0
    assert driver.weights(subject.name)["memory"] > 0
    assert driver.console_log(subject.name).is_file()
    return found.boot, found.disk


def a_look(subject: Subject) -> None:
    """Status is quick, whatever else the machine does: the best of a few counts."""
    best = quickest(lambda: subject.driver.status(subject.name), STATUS_SECONDS, 20)
    assert best < STATUS_SECONDS


def a_kill(subject: Subject) -> None:
    """kill -9 of what runs it is told with a reason, and repaired by the next start."""
    os.kill(subject.vm_pid(), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while subject.state() == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    found = subject.driver.status(subject.name)
    assert found.state == "broken"
    assert found.reasons
    assert all(reason[0] != reason[0].upper() or " " in reason for reason in found.reasons)


def a_stop(subject: Subject) -> None:
    subject.driver.stop(subject.name)
    assert subject.state() == "stopped"
    subject.driver.stop(subject.name)
    assert subject.state() == "stopped"


def a_removal(subject: Subject) -> None:
    subject.driver.delete(subject.name)
    assert subject.state() == "absent"
    assert subject.left() == []
    subject.driver.delete(subject.name)


def files_below(*folders: Path) -> list[str]:
    """What is in these folders, those that are not there left out."""
    return [str(entry) for folder in folders if folder.exists() for entry in folder.rglob("*")]
